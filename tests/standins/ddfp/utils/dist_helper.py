import os

import torch
import torch.distributed as dist


def setup_distributed():
    """Joins the other processes; returns the rank."""
    rank = int(os.environ["RANK"])
    torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group("nccl", rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    return rank


def parallel(model):
    device = int(os.environ["LOCAL_RANK"])
    return torch.nn.parallel.DistributedDataParallel(model.cuda(), device_ids=[device], output_device=device)
