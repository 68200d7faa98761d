import argparse

from networks.unet import UNet

parser = argparse.ArgumentParser()  # of its own, which refuses what it does not know
for name in ("root_path", "exp", "model", "max_iterations", "batch_size", "labeled_bs", "labeled_num"):
    parser.add_argument(f"--{name}")
args = parser.parse_args()


def net_factory(net_type="unet", in_chns=1, class_num=3):
    return {"unet": UNet}[net_type](in_chns=in_chns, class_num=class_num).cuda()
