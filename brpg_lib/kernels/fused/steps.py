"""All that a step needs of this folder; importing it needs Triton."""

import torch

from brpg_lib.kernels.fused.collecting import Candidates, judge_pixels, write_rings
from brpg_lib.kernels.fused.comparing import Options, compare_points
from brpg_lib.kernels.fused.prototypes import directions, health, move
from brpg_lib.kernels.fused.reading import Where, read_points
from brpg_lib.kernels.fused.scores import race, scores

__all__ = [
    "Candidates",
    "Options",
    "Where",
    "compare_points",
    "directions",
    "health",
    "judge_pixels",
    "move",
    "race",
    "read_points",
    "rehearse",
    "scores",
    "write_rings",
]


def rehearse(device: torch.device) -> None:
    """Run each kernel once on two points, forward and backward, and look at what comes out.

    Raises:
        RuntimeError: Something else than expected.
    """
    maps = torch.eye(2, dtype=torch.float32, device=device).view(1, 2, 1, 2).requires_grad_()
    labels = torch.arange(2, device=device).view(1, 1, 2)
    now, mask = torch.zeros((), dtype=torch.int64, device=device), torch.ones(2, 2, 1, dtype=torch.bool, device=device)
    ones = torch.ones(2, dtype=torch.float32, device=device)
    drawn = scores(labels.flatten(), ones, 0 * ones[0], (now, 0, 0), 2)
    grid, pixels = (1, 2, 0, 1), torch.arange(2, device=device)
    where = [Where(labels, None, None, grid), Where(labels, pixels, drawn, (0, 0, 0, 0))]
    read = read_points([maps, maps], where, align_corners=True, num_classes=2, ignore_index=255)
    candidates, logits = Candidates.empty(2, device), 9.0 * maps.detach()
    judge_pixels(candidates, 0, maps.detach(), logits, ones / 2, 0.0, labels, None, torch.float32)
    rings, sure = ones.new_zeros(2, 2, 3, 2), ones.new_zeros(2, 2, 3)
    rows, cursor = torch.zeros(2, 2, 2, dtype=torch.int64, device=device).unbind()
    write_rings([maps.detach()], candidates, rings, sure, rows, cursor)
    bank = torch.eye(2, dtype=torch.float32, device=device).view(2, 1, 1, 2).repeat(1, 2, 1, 1)
    idle = torch.zeros(2, 2, 1, dtype=torch.int64, device=device)
    found = compare_points(read, directions(bank), mask.flatten(), Options(2, 2, 2, 0.1, 1.0))
    found.terms[..., 0].sum().backward()
    move(bank, mask, idle, found.pull, found.hits, 0.99)
    numbers = [*found.counts.flatten().tolist(), *health(bank, mask, idle, 0.999, 1).tolist(), *rows.flatten().tolist()]
    if numbers != [2.0, 2.0, 2.0, 2.0, 4.0, 1.0, 2.0, 2.0, 1, 0, 1, 0] or maps.grad is None:
        raise RuntimeError(f"expected other counts than {numbers}")
