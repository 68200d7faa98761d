import logging

import torch
import torch.distributed as dist
import torch.nn.functional as F


def init_log(name, level):
    logger = logging.getLogger(name)
    logger.setLevel(level)
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False
    return logger


def count_overlaps(pairs, classes):
    """Intersection and union of predictions and labels, by class, over all processes."""
    counts = torch.zeros(2, classes)
    for predicted, truth in pairs:
        found, there = (F.one_hot(x.cpu().flatten(), classes).bool() for x in (predicted, truth))
        counts += torch.stack(((found & there).sum(0), (found | there).sum(0)))
    counts = counts.cuda()
    dist.all_reduce(counts)
    return counts.cpu().double().numpy()
