"""One learn step against the reference."""

from __future__ import annotations

import pytest
import reference
import torch
from builders import (
    assert_sound,
    fresh,
    gradients,
    head,
    labeled,
    set_prototypes,
    unlabeled,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from brpg_lib import BRPGConfig

SIDE = st.integers(1, 20)
SMALL = st.integers(1, 7)


@given(
    images=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    image=st.tuples(SIDE, SIDE),
    sizes=st.tuples(SMALL, SMALL),
    other=st.tuples(SIDE, SIDE),
    classes=st.integers(1, 4),
    dim=st.integers(2, 5),
    grid=st.integers(1, 6),
    share=st.sampled_from([0.4, 1.1]),
    iteration=st.integers(0, 120),
    align_corners=st.booleans(),
    weight=st.sampled_from([0.0, 1.0, 2.5]),
    temperature=st.sampled_from([0.07, 0.5]),
    momentum=st.sampled_from([0.0, 0.9, 0.99]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_learn_step_equals_the_reference(
    images, image, sizes, other, classes, dim, grid, share, iteration, align_corners, weight, temperature, momentum,
    dtype, seed,
):  # fmt: skip
    config = BRPGConfig(
        grid_size=grid,
        unlabeled_samples_per_image=10**6,
        temperature=temperature,
        momentum=momentum,
        misclassified_weight=weight,
        align_corners=align_corners,
        loss_weight=0.5,
    )
    module = head(
        classes, dim, config=config, warmup=0, collect=0, total=100, ramp_start=20, extrapolate_threshold=True
    )
    set_prototypes(module, seed, share)
    options = {"num_classes": classes, "dim": dim}
    first = labeled(seed, num_images=images[0], image=image, size=sizes, **options)
    first = fresh(first, features=first.features.detach().to(dtype), logits=None)
    second = unlabeled(seed, num_images=images[1], image=other, size=sizes, **options)
    second = fresh(second, features=second.features.detach().to(dtype), confidence=second.confidence.to(dtype))
    before, mask = module.bank.prototypes.clone(), module.bank.mask.clone()
    out = module(first, second, iteration=iteration)
    expected = reference.learn_step(
        first.features,
        first.labels,
        second.features,
        second.pseudo_labels,
        second.confidence,
        before,
        mask,
        iteration=min(iteration, 100),
        ramp_start=20,
        total=100,
        grid=grid,
        temperature=temperature,
        momentum=momentum,
        misclassified_weight=weight,
        align_corners=align_corners,
    )
    assert_sound(out, first, second)
    assert out.loss_labeled.item() == pytest.approx(expected["loss_labeled"], rel=1e-4, abs=1e-5)
    assert out.loss_unlabeled.item() == pytest.approx(expected["loss_unlabeled"], rel=1e-4, abs=1e-5)
    assert out.loss.item() == pytest.approx(0.5 * expected["loss"], rel=1e-4, abs=1e-5)
    assert int(out.metrics["points_unlabeled"]) == expected["num_pseudo"]
    assert out.metrics["pseudo_threshold"].item() == pytest.approx(expected["threshold_now"])
    found = torch.cat([g.double().flatten() for g in gradients(out, first, second)])
    tolerance = 1e-3 if dtype == torch.float32 else 0.1  # gradients of many points add up in the precision of the map
    exact = 0.5 * expected["grad"].flatten()
    assert (found - exact).norm() <= tolerance * exact.norm() + 1e-5
    assert_close(module.bank.prototypes.double(), expected["prototypes_after"], atol=1e-4, rtol=1e-4)
    assert torch.equal(module.bank.mask, mask)


def test_the_cap_of_unlabeled_points() -> None:
    module = head(unlabeled_samples_per_image=7, warmup=0, collect=0)
    set_prototypes(module)
    out = module(fresh(labeled(), logits=None), unlabeled(num_images=3))
    assert int(out.metrics["points_unlabeled"]) == 21


def test_other_points_every_iteration_and_the_same_again() -> None:
    def loss(iteration: int, seed: int = 0) -> float:
        module = head(unlabeled_samples_per_image=7, seed=seed)
        set_prototypes(module)
        return module(fresh(labeled(), logits=None), unlabeled(), iteration=iteration).loss_unlabeled.item()

    assert loss(10) == loss(10)
    assert len({loss(10), loss(11), loss(12)}) == 3
    assert loss(10) != loss(10, seed=1)
