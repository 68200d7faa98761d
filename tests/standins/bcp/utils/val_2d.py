import torch


def test_single_volume(image, label, net, classes):
    """Dice and a distance (not measured here) of each class but the background."""
    net.eval()
    with torch.no_grad():
        found = net(image[0].unsqueeze(1).cuda()).argmax(dim=1)
    pairs = [(found == cls, label[0] == cls) for cls in range(1, classes)]
    return [(2 * (a & b).sum().item() / max((a.sum() + b.sum()).item(), 1), 0.0) for a, b in pairs]
