"""The code in the README runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
THREE_LINES, OWN_TRAINER, PARTS_ALONE = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_three_lines() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 256, 5, 5, generator=generator).requires_grad_()
    logits = torch.randn(4, 21, 5, 5, generator=generator)
    scope = {
        "loader": range(10),
        "device": "cpu",
        "loss": torch.tensor(1.0),
        "rep_l": features[:2],
        "rep_u_strong": features[2:4],
        "rep_u_weak": features[4:].detach(),
        "pred_l": logits[:2],
        "pred_u_weak": logits[2:],
        "label_l": torch.randint(0, 21, (2, 17, 17), generator=generator),
        "pseudo": torch.randint(0, 21, (2, 17, 17), generator=generator),
        "conf": torch.rand(2, 17, 17, generator=generator),
    }
    exec(THREE_LINES, scope)
    scope["loss"].backward()
    assert scope["head"].iteration == 1
    assert scope["loss"].item() == 1.0  # warming up
    assert features.grad is not None


def test_parts_alone() -> None:
    scope = {
        "num_classes": 3,
        "feature_dim": 8,
        "vectors": torch.randn(3, 2, 2, 8),
        "mask": torch.ones(3, 2, 2, dtype=torch.bool),
        "features": torch.randn(20, 8, requires_grad=True),
        "classes": torch.arange(20) % 3,
    }
    exec(PARTS_ALONE, scope)
    scope["loss"].backward()
    assert scope["loss"].item() > 0
    assert not torch.equal(scope["bank"].prototypes[:, :, :2], scope["vectors"])


def test_the_loop_is_that_of_the_example() -> None:
    assert OWN_TRAINER in (ROOT / "examples/own_trainer.py").read_text()
