from networks.unet import UNet


def net_factory(net_type="unet", in_chns=1, class_num=2):
    return {"unet": UNet}[net_type](in_chns=in_chns, class_num=class_num).cuda()


def BCP_net(in_chns=1, class_num=2, ema=False):
    net = UNet(in_chns=in_chns, class_num=class_num).cuda()
    return net.requires_grad_(not ema)
