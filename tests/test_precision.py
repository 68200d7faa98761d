"""Half precision around the head, half-precision features in it, and what coarser matrix products may change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from builders import CLASSES, DIM, fresh, gradients, head, labeled, run, unlabeled
from torch import Tensor, nn
from torch.testing import assert_close

from brpg_lib import LabeledBatch, PrototypeBank, PrototypeHead, UnlabeledBatch

HALF = [torch.bfloat16, torch.float16]
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of losses, and of prototypes relative to the largest: what rounding may change."""
TF32_RATE = 2e-3
"""Share of points whose most similar prototype may be another one when products are rounded to TF32."""


def in_half(batches: tuple[LabeledBatch, UnlabeledBatch], dtype: torch.dtype) -> tuple[LabeledBatch, UnlabeledBatch]:
    """All features and logits rounded."""

    def rounded(batch: Any) -> dict[str, Tensor]:
        names = [name for name in vars(batch) if name.endswith(("features", "logits"))]
        return {name: getattr(batch, name).detach().to(dtype) for name in names}

    first, second = batches
    return fresh(first, **rounded(first)), fresh(second, **rounded(second))


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_in_float32_inside(dtype: torch.dtype, device: torch.device) -> None:
    """A whole training on rounded features stays near the one on exact ones."""
    exact = run(head(unlabeled_samples_per_image=10**6), 4)
    rounded = copy.deepcopy(exact).to(device)
    for step in range(4, 40):
        batches = labeled(step), unlabeled(step)
        out = exact(*batches)
        halved = tuple(to(batch, device) for batch in in_half((labeled(step), unlabeled(step)), dtype))
        other = rounded(*halved)
        assert other.loss.dtype == torch.float32
        assert_close(other.loss.cpu(), out.loss, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        found = gradients(other, *halved)
        assert all(gradient.dtype == dtype and gradient.isfinite().all() for gradient in found)
    for name, value in rounded.state_dict().items():
        assert value.dtype == exact.state_dict()[name].dtype, name
    scale = exact.bank.prototypes.abs().max()
    assert_close(rounded.bank.prototypes.cpu() / scale, exact.bank.prototypes / scale, atol=TOLERANCE[dtype], rtol=0)


def to(batch: Any, device: torch.device) -> Any:
    moved = {name: None if value is None else value.detach().to(device) for name, value in vars(batch).items()}
    return fresh(type(batch)(**moved))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.classifier = nn.Conv2d(DIM, DIM, 1), nn.Conv2d(DIM, CLASSES, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return features, self.classifier(features)


def trained(dtype: torch.dtype | None, device: torch.device, steps: int = 30) -> tuple[PrototypeHead, list[float]]:
    """A small network and the head under autocast and a gradient scaler."""
    torch.manual_seed(0)
    net, module = Net().to(device), head(unlabeled_samples_per_image=10**6).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    # Small enough that it need not skip steps first.
    scaler = torch.amp.GradScaler(device.type, init_scale=256.0, enabled=dtype == torch.float16)
    losses = []
    for step in range(steps):
        first, second = (to(batch, device) for batch in (labeled(step), unlabeled(step)))
        # From the same clusters on, as other samples would give others.
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None and step > 4):
            features, logits = net(first.features.detach())
            strong, _ = net(second.features.detach())
            weak, weak_logits = net(second.weak_features)
            out = module(
                LabeledBatch(features=features, logits=logits, labels=first.labels),
                UnlabeledBatch(
                    features=strong,
                    pseudo_labels=second.pseudo_labels,
                    confidence=second.confidence,
                    weak_features=weak,
                    weak_logits=weak_logits,
                ),
            )
            labels = first.labels[:, ::2, ::2]
            loss = nn.functional.cross_entropy(logits, labels, ignore_index=255) + out.loss
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(out.loss.item())
    assert all(p.isfinite().all() for p in net.parameters())
    return module, losses


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_and_a_gradient_scaler_around_a_training(dtype: torch.dtype, device: torch.device) -> None:
    exact, losses = trained(None, device)
    module, found = trained(dtype, device)
    assert torch.tensor(found).isfinite().all()
    assert module.bank.prototypes.dtype == torch.float32
    assert module.bank.prototypes.isfinite().all()
    assert torch.equal(module.bank.mask, exact.bank.mask)
    assert_close(torch.tensor(found), torch.tensor(losses), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    scale = exact.bank.prototypes.abs().max()
    assert_close(module.bank.prototypes / scale, exact.bank.prototypes / scale, atol=TOLERANCE[dtype], rtol=0)


def to_tf32(values: Tensor) -> Tensor:
    """Rounded to the ten bits of mantissa that a tensor core reads."""
    return ((values.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def bank_and_points(spread: float) -> tuple[PrototypeBank, Tensor]:
    """Prototypes at the sizes of PASCAL VOC, and points about them."""
    random = torch.Generator().manual_seed(0)
    bank = PrototypeBank(21, 256)
    bank.set(torch.randn(bank.prototypes.shape, generator=random), torch.ones(21, 2, 3, dtype=torch.bool))
    near = bank.prototypes.flatten(0, 2)[torch.randint(126, (20_000,), generator=random)]
    return bank, near + spread * torch.randn(near.shape, generator=random)


@pytest.mark.parametrize("spread", [1.0, 3.0, 10.0])
def test_tf32_hardly_changes_which_prototype_wins(spread: float) -> None:
    """Products of rounded factors, summed in float32, as tensor cores do."""
    bank, points = bank_and_points(spread)
    winner = bank.compare(points)[1].flatten(1).argmax(1)
    directions = nn.functional.normalize(bank.prototypes.flatten(0, 2), dim=1)
    rounded = (to_tf32(points) @ to_tf32(directions).T).argmax(1)
    assert (rounded != winner).float().mean() <= TF32_RATE


@pytest.mark.cuda
def test_tf32_on_the_device() -> None:
    for spread in (1.0, 3.0, 10.0):
        bank, points = bank_and_points(spread)
        bank, points = bank.cuda(), points.cuda()
        winner = bank.compare(points)[1].flatten(1).argmax(1)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            rounded = bank.compare(points)[1].flatten(1).argmax(1)
        finally:
            torch.set_float32_matmul_precision(before)
        assert (rounded != winner).float().mean() <= TF32_RATE
