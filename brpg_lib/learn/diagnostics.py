"""What the prototypes look like, as numbers for a log. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from brpg_lib.cluster.bank import PrototypeBank
from brpg_lib.config import BRPGConfig
from brpg_lib.kernels.classes import known_classes
from brpg_lib.schedule import Schedule

DEAD_AFTER = 500
"""Steps with points of its class in which a prototype was never the most similar one, until it counts as dead."""
COLLAPSED = 0.999
"""Cosine similarity from which two prototypes of a class count as one."""


def within_class_similarity(prototypes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How alike the prototypes of one class are.

    Args:
        prototypes: ``(C, 2, K, D)`` float32.
        mask: ``(C, 2, K)`` bool.

    Returns:
        ``()`` float32 mean cosine similarity of pairs of prototypes of one class, 0 where no class has two, and ``()``
        int64 number of prototypes that have collapsed onto an earlier one of their class.
    """
    similarity, pairs = within_class_pairs(prototypes, mask)
    mean = (similarity * pairs).sum() / pairs.sum().clamp(min=1)
    return mean, ((similarity > COLLAPSED) & pairs).any(1).sum()


def within_class_pairs(prototypes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine of each prototype to each of its class ``(C, 2K, 2K)``, and whether both exist, the first one earlier.

    Args:
        prototypes: ``(C, 2, K, D)`` float32.
        mask: ``(C, 2, K)`` bool.
    """
    directions = nn.functional.normalize(rearrange(prototypes, "c g k d -> c (g k) d"), dim=-1)
    exists = mask.flatten(1)
    pairs = (exists[:, :, None] & exists[:, None]).triu(diagonal=1)
    return directions @ directions.mT, pairs


def used(hits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which prototypes are the most similar one, in its class, of some point.

    Args:
        hits: ``(C * 2 * K,)`` float32, points of each prototype.
        mask: ``(C, 2, K)`` bool.

    Returns:
        ``(C, 2, K)`` bool: prototypes with points, and prototypes of classes with points.
    """
    hit = (hits > 0).view(mask.shape) & mask
    return hit, hit.flatten(1).any(1)[:, None, None] & mask


def share_used(hit: Tensor, expected: Tensor) -> Tensor:
    """Share ``()`` of the prototypes ``expected`` that were ``hit``, both from :func:`used`."""
    return hit.sum().float() / expected.sum().clamp(min=1)


def points(predicted: Tensor, classes: Tensor, num_classes: int, unlabeled: Tensor) -> Tensor:
    """How many labeled and unlabeled points have a class in 0..C-1, and for how many of them it is the predicted one.

    Args:
        predicted: ``(N,)`` int64, the most similar class.
        classes: ``(N,)`` int64.
        num_classes: Number of classes C.
        unlabeled: ``(N,)`` bool.

    Returns:
        ``(2, 2)`` float32.
    """
    _, counted = known_classes(classes, num_classes)
    both = torch.stack((counted, counted & (predicted == classes)), dim=1)
    later = (both & unlabeled[:, None]).sum(0)
    return torch.stack((both.sum(0) - later, later)).float()


def missing_prototypes(classes: list[int], config: BRPGConfig) -> str:
    """What to say of classes that the labels show, and that have no prototypes.

    Args:
        classes: Their indices.
        config: Hyper-parameters of the head.
    """
    rare = "" if config.rare_class_fallback else ", or BRPGConfig(rare_class_fallback=True)"
    return (
        f"the labels show classes without prototypes ({', '.join(map(str, classes))}): of too few of their "
        "labeled pixels the prediction was right, and too few unlabeled ones were predicted as one of them with a "
        f"confidence of {config.confidence_threshold:g} (confidence_threshold). They join when samples come in; a "
        f"longer Schedule.warmup or collect, or Schedule(min_rows=...){rare} may help"
    )


OTHER_COUNT = (
    "The Schedule is not that of the checkpoint, or counts other steps, such as those of another number of processes"
)


def begins_late(iteration: int, schedule: Schedule, loaded: bool) -> str:
    """What to say where a head that holds nothing begins after its collect phase.

    Args:
        iteration: The first one.
        schedule: That has other phases for it.
        loaded: Whether the head is that of a checkpoint.
    """
    joins = (
        "If this training is resumed, load head.state_dict() of the checkpoint; if the head is new in it, count from "
        f"where it joins (iteration=step - {iteration})"
    )
    return (
        f"a head that holds nothing begins at iteration {iteration}, after its collect phase ({schedule.warmup} to "
        f"{schedule.warmup + schedule.collect}): prototypes will be made of the first samples that come. "
        f"{OTHER_COUNT if loaded else joins}"
    )


def goes_back(iteration: int, schedule: Schedule) -> str:
    """What to say where a head of a checkpoint has prototypes, and its schedule makes none yet."""
    phase, end = schedule.phase(iteration).value, schedule.warmup + schedule.collect
    return (
        f"a head with prototypes goes on at iteration {iteration} in its {phase} phase: its loss is 0 until iteration "
        f"{end}. {OTHER_COUNT}"
    )


PATIENCE = 50
"""Steps after the collect phase in which nothing happens, until somebody is told."""


def nothing_collected(seen: Tensor, config: BRPGConfig) -> str:
    """What to say where the collect phase is long over and no queue has a row. Waits for the device.

    Args:
        seen: ``(C,)`` bool, classes that the labels have shown.
        config: Hyper-parameters of the head.
    """
    shown = ", ".join(map(str, seen.nonzero()[:, 0].tolist()))
    if shown:
        why = (
            f"Of the classes {shown} in the labels no labeled pixel was predicted right, and no unlabeled pixel was "
            f"predicted with a confidence of {config.confidence_threshold:g} (confidence_threshold); are "
            "labeled.logits the logits of these labels? A longer Schedule.warmup or collect may help"
        )
    else:
        why = (
            f"The labels have shown none of the classes 0..{len(seen) - 1}, only {config.ignore_index} (ignore_index); "
            "masks of 0 and 255, or of 1..C, have to be mapped to 0..C-1"
        )
    return f"the collect phase is over and no queue has a row: the loss stays 0. {why}"


def shown_alone(seen: Tensor) -> dict[str, str]:
    """What to warn about labels that show no more than one of several classes. Waits for the device.

    Args:
        seen: ``(C,)`` bool, classes that the labels have shown.
    """
    shown = seen.nonzero()[:, 0].tolist()
    if len(shown) != 1 or len(seen) == 1:
        return {}
    text = (
        f"of {len(seen)} classes the labels have shown class {shown[0]} only, so that nothing is learned from them; "
        "masks of 0 and 255, where 255 is ignored too, have to be mapped to 0 and 1"
    )
    return {"alone": text}


def still_collecting(rows: Tensor, seen: Tensor, min_rows: int) -> str:
    """What to say where ``Schedule.min_rows`` prolongs the collect phase for long. Waits for the device.

    Args:
        rows: ``(C, 2)`` int64, rows of each queue.
        seen: ``(C,)`` bool, classes that the labels have shown.
        min_rows: That each of these needs.
    """
    short = {index: int(rows[index].sum()) for index in (seen & (rows.sum(1) < min_rows)).nonzero()[:, 0].tolist()}
    found = ", ".join(f"{index} ({number})" for index, number in short.items()) or "none that the labels have shown"
    return (
        f"the collect phase goes on, and the loss stays 0, until every class in the labels has {min_rows} rows "
        f"(Schedule.min_rows); fewer have, with their rows: {found}. Schedule(max_collect=...) sets an end"
    )


def health(bank: PrototypeBank, idle: Tensor) -> dict[str, Tensor]:
    """What the prototypes look like, by the names of :data:`brpg_lib.output.METRICS`.

    Args:
        bank: The prototypes.
        idle: ``(C, 2, K)`` int64, steps with points of its class since a prototype was the nearest one to any.
    """
    kernels = bank.kernels
    if kernels is not None:
        names = ("prototypes", "within_class_similarity", "prototypes_collapsed", "prototypes_dead")
        numbers = kernels.health(bank.prototypes, bank.mask, idle, COLLAPSED, DEAD_AFTER)
        return dict(zip(names, numbers, strict=True))
    similarity, collapsed = within_class_similarity(bank.prototypes, bank.mask)
    return {
        "prototypes": bank.mask.sum(),
        "within_class_similarity": similarity,
        "prototypes_collapsed": collapsed,
        "prototypes_dead": ((idle >= DEAD_AFTER) & bank.mask).sum(),
    }


LOOKED_AT = (
    "prototypes_dead",
    "prototypes_collapsed",
    "prototypes",
    "points_labeled",
    "points_unlabeled",
    "pseudo_threshold",
    "dropped",
)
"""Metrics that :func:`warnings_about` looks at."""


def warnings_about(metrics: Mapping[str, float], without: Mapping[str, int]) -> dict[str, str]:
    """What to warn about, by a short name.

    Args:
        metrics: Those of :data:`LOOKED_AT`.
        without: For how many steps of the learn phase there has been no point of a kind, by the name of its metric.
    """
    found = {}
    dead, collapsed, total = (int(metrics[name]) for name in LOOKED_AT[:3])
    if metrics["dropped"] > 0:
        found["dropped"] = (
            f"{metrics['dropped']:.0f} pixels or points have been left out: their features or logits are not finite, "
            "or their label is neither a class nor ignore_index"
        )
    if without["points_labeled"] >= PATIENCE:
        found["points_labeled"] = (
            f"no labeled point in {without['points_labeled']} steps: the labels show ignored pixels only, so that the "
            "labeled part of the loss is 0"
        )
    if without["points_unlabeled"] >= PATIENCE:
        found["points_unlabeled"] = (
            f"no unlabeled point in {without['points_unlabeled']} steps: no pseudo label has a confidence of "
            f"{metrics['pseudo_threshold']:.2g}, so that the unlabeled part of the loss is 0; a lower "
            "Schedule.pseudo_threshold_range or BRPGConfig(pseudo_label_share=0.5) takes more"
        )
    if dead:
        found["dead"] = (
            f"{dead} of {total} prototypes are dead: for {DEAD_AFTER} steps with points of their class they were not "
            "the most similar one to any; fewer num_prototypes or Schedule(recluster_every=...) may help"
        )
    if collapsed > total // 4:
        found["collapsed"] = (
            f"{collapsed} of {total} prototypes have collapsed: their cosine similarity to another one of their class "
            f"is above {COLLAPSED}; the features of a class may all point in one direction"
        )
    return found
