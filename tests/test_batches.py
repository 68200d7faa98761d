"""The tensors of a step: what is refused, with which words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from builders import CLASSES, DIM, fresh, labeled, unlabeled

from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.door import admit_step

B, D, C, H, W, h, w = 2, DIM, CLASSES, 17, 21, 9, 11
FLOAT_MAPS = (
    torch.zeros(B, D, h),
    torch.zeros(B, D, h, w, 1, 1),
    torch.zeros(B, D, h, w, dtype=torch.int64),
    None,
    "map",
)
LABELS = torch.zeros(B, H, W, dtype=torch.int64)
WRONG_LABELED: dict[str, tuple[Any, ...]] = {
    "features": (*FLOAT_MAPS, torch.zeros(0, D, h, w), torch.zeros(B, 0, h, w)),
    "logits": (
        torch.zeros(B, C, h),
        torch.zeros(B, C, h, w, dtype=torch.int64),
        torch.zeros(B, C, h + 1, w),
        torch.zeros(B, C, H, W),
        torch.zeros(B + 1, C, h, w),
        torch.zeros(B, 0, h, w),
        torch.zeros(B, C, h, w, device="meta"),
        [1.0],
    ),
    "labels": (
        LABELS[0],
        LABELS[:, None].expand(-1, 2, -1, -1),
        LABELS.float(),
        LABELS[:1],
        LABELS[:, :0],
        LABELS.to("meta"),
        LABELS.numpy(),
        None,
    ),
}
PIXELS = torch.zeros(B, H, W)
WRONG_UNLABELED: dict[str, tuple[Any, ...]] = {
    "features": WRONG_LABELED["features"],
    "pseudo_labels": WRONG_LABELED["labels"],
    "confidence": (
        PIXELS[0],
        PIXELS.long(),
        PIXELS[:1],
        PIXELS[:, :-1],
        PIXELS[:, None].expand(-1, 2, -1, -1),
        PIXELS.to("meta"),
        None,
    ),
    "weak_features": (*FLOAT_MAPS, torch.zeros(B, D, h, w, device="meta")),
    "weak_logits": (None, torch.zeros(B, C, h, w + 1), torch.zeros(B + 1, C, h, w), torch.zeros(B, C, h, w).long()),
    "weak_valid": (PIXELS, PIXELS[0].bool(), PIXELS[:1].bool(), PIXELS.bool().to("meta"), True),
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in WRONG_LABELED.items() for v in values])
def test_labeled_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^labeled\.{field}: expected .+, found "):
        dataclasses.replace(labeled(), **{field: value})


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in WRONG_UNLABELED.items() for v in values])
def test_unlabeled_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^unlabeled\.{field}: expected .+, found "):
        dataclasses.replace(unlabeled(), **{field: value})


def test_the_message_says_shape_dtype_and_device() -> None:
    with pytest.raises(ValueError, match=r"integer tensor \(2, H, W\) on cpu.*found float32 \(2, 17, 21\) on cpu"):
        LabeledBatch(features=labeled().features, logits=None, labels=PIXELS)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_integer_type_of_labels(dtype: torch.dtype) -> None:
    batch = fresh(labeled(ignored=0.0), labels=labeled(ignored=0.0).labels.to(dtype))
    batch.check(C, D, 255)
    fresh(unlabeled(), pseudo_labels=unlabeled().pseudo_labels.to(dtype)).check(C, D, 255)


@pytest.mark.parametrize(
    ("dtype", "ignore_index", "bad"),
    [
        (torch.int64, 255, -1),
        (torch.int64, 255, C),
        (torch.int64, 255, 254),
        (torch.int64, -1, 255),
        (torch.uint8, 255, C),
        (torch.uint8, -1, 255),  # 255 is what -1 looks like in uint8
        (torch.uint8, 511, 255),
        (torch.int8, 255, -1),  # and -1 what 255 looks like in int8
    ],
)
def test_labels_out_of_range(dtype: torch.dtype, ignore_index: int, bad: int) -> None:
    labels = labeled(ignored=0.0).labels.to(dtype)
    labels[0, 3, 4] = bad
    for name, batch in (
        ("labeled.labels", fresh(labeled(), labels=labels)),
        ("unlabeled.pseudo_labels", fresh(unlabeled(), pseudo_labels=labels)),
    ):
        with pytest.raises(
            ValueError, match=rf"{name}: expected classes 0\.\.2 .*found 1 other values such as \[{bad}"
        ):
            batch.check(C, D, ignore_index)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1, 1.1])
def test_confidence_out_of_range(bad: float) -> None:
    confidence = unlabeled().confidence.clone()
    confidence[1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"unlabeled\.confidence: expected values in \[0, 1\], found 1 other"):
        fresh(unlabeled(), confidence=confidence).check(C, D, 255)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_confidence_in_other_precisions(dtype: torch.dtype) -> None:
    fresh(unlabeled(), confidence=unlabeled().confidence.to(dtype)).check(C, D, 255)


def test_other_sizes_than_the_module() -> None:
    with pytest.raises(ValueError, match=r"labeled\.features: expected 7 channels in dimension 1"):
        labeled().check(C, 7, 255)
    with pytest.raises(ValueError, match=r"labeled\.logits: expected 4 channels"):
        labeled().check(4, D, 255)
    with pytest.raises(ValueError, match=r"unlabeled\.features: expected 7 channels"):
        unlabeled().check(C, 7, 255)
    with pytest.raises(ValueError, match=r"unlabeled\.weak_logits: expected 4 channels"):
        unlabeled().check(4, D, 255)
    weak = unlabeled(dim=7).weak_features
    with pytest.raises(ValueError, match=r"unlabeled\.weak_features: expected 5 channels"):
        fresh(unlabeled(), weak_features=weak).check(C, D, 255)


def test_weak_views_may_differ_in_number_and_size() -> None:
    unlabeled(weak_images=3, weak_size=(4, 6)).check(C, D, 255)


def test_device_is_checked_for_both_batches() -> None:
    elsewhere = UnlabeledBatch(features=torch.zeros(B, D, h, w), pseudo_labels=LABELS, confidence=PIXELS).to("meta")
    here = torch.zeros(C, 2, 3, D)
    admit_step(labeled(), unlabeled(), here, 255, needs_logits=True)
    with pytest.raises(ValueError, match=r"unlabeled\.features: expected a tensor on cpu, like the module, found meta"):
        admit_step(labeled(), elsewhere, here, 255, needs_logits=True)
    with pytest.raises(ValueError, match=r"labeled\.features: expected a tensor on meta"):
        admit_step(labeled(), None, here.to("meta"), 255, needs_logits=True)
