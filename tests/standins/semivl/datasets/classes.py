CLASSES = {"pascal": [f"class {index}" for index in range(21)]}
