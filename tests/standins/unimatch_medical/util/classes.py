CLASSES = {"acdc": ["Right Ventricle", "Myocardium", "Left Ventricle"]}
