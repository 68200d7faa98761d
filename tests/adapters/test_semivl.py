"""SemiVL's decoder works on one class at a time: how its maps become those of images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.adapters.frameworks.semivl import PLUGIN, STEP
from brpg_lib.adapters.plugin import Plugin

CLASSES, CHANNELS, SIDE = 3, 2, 4


class Recorder:
    """In the place of the plug-in: hands out maps, and keeps what it is given."""

    enabled = True

    def __init__(self, passes: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.passes = passes

    def take(self, calls: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        assert calls == len(self.passes)
        return self.passes

    def project(self, *maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return maps

    def weak_view(self, features: torch.Tensor, logits: torch.Tensor, valid: torch.Tensor) -> dict[str, Any]:
        return {"weak_features": features, "weak_logits": logits, "weak_valid": valid}

    def __call__(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch, *, iteration: int) -> float:
        self.labeled, self.unlabeled = labeled, unlabeled
        return 1.0


def test_pixels_get_the_features_of_all_classes() -> None:
    # two labeled images, two weak views, and the perturbed copies of all; then two strong views of each
    features = [torch.rand(count, CLASSES, CHANNELS, SIDE, SIDE) for count in (8, 4)]
    logits = [torch.rand(count, CLASSES, 1, SIDE, SIDE) for count in (8, 4)]
    one_by_one = [(maps.flatten(0, 1), scores.flatten(0, 1)) for maps, scores in zip(features, logits, strict=True)]
    plugin = Recorder(one_by_one)
    masks = {f"mask_w_mixed{view}": torch.randint(CLASSES, (2, 16, 16)) for view in (1, 2)}
    ignored = {f"ignore_mask_mixed{view}": torch.randint(2, (2, 16, 16)) * 255 for view in (1, 2)}
    sure = {f"conf_w_mixed{view}": torch.rand(2, 16, 16) for view in (1, 2)}
    images = {"img_x": torch.rand(2, 3, 16, 16), "img_w": torch.rand(2, 3, 16, 16)}
    padding = torch.randint(2, (2, 16, 16)) * 255
    names: dict[str, Any] = masks | ignored | sure | images
    names |= {"mask_x": masks["mask_w_mixed1"], "ignore_mask": padding, "iters": 0, "cfg": {"nclass": CLASSES}}
    names |= {"torch": torch, "LabeledBatch": LabeledBatch, "UnlabeledBatch": UnlabeledBatch}
    names |= {"brpg": plugin, "loss": 2.0}
    exec(STEP, names)
    assert names["loss"] == 3.0
    assert plugin.labeled.features.equal(features[0][:2].flatten(1, 2))
    assert plugin.labeled.logits.equal(logits[0][:2, :, 0])
    assert plugin.unlabeled.features.equal(features[1].flatten(1, 2))
    assert plugin.unlabeled.weak_logits is not None
    assert plugin.unlabeled.weak_logits.equal(logits[0][2:4, :, 0]), "not the perturbed copies"
    used = torch.cat(
        [masks[f"mask_w_mixed{view}"].where(ignored[f"ignore_mask_mixed{view}"] == 0, 255) for view in (1, 2)]
    )
    assert plugin.unlabeled.pseudo_labels.equal(used)
    assert plugin.unlabeled.weak_valid is not None
    assert plugin.unlabeled.weak_valid.equal(padding == 0)


@pytest.mark.parametrize("enabled", [True, False])
def test_other_networks_of_its_repository(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "cuda", lambda self: self)
    network = nn.Module()
    network.decode_head = nn.Module()
    network.decode_head.head = nn.Sequential(nn.Conv2d(8, CLASSES, 1))  # as in its DeepLabv3+
    names: dict[str, Any] = {
        "Plugin": Plugin,
        "cfg": {"dataset": "pascal", "nclass": CLASSES, "epochs": 3, "brpg": {"enabled": enabled}},
        "trainloader_u": range(4),
        "logger": None,
        "model": network,
        "optimizer": None,
    }
    if enabled:
        with pytest.raises(ValueError, match=r"decode_head\.up2"):
            exec(PLUGIN, names)
    else:
        exec(PLUGIN, names)
        assert not names["brpg"].enabled
