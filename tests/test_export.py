"""A network that holds a head can be deployed: exported graphs compute what the network does."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import CLASSES, DIM, learning_head, same, state, step
from packages import needs_export
from torch import Tensor, nn
from torch.testing import assert_close

IMAGES = torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))

NAMES = {0: "batch", 2: "height", 3: "width"}
SIZES = {axis: torch.export.Dim(name, min=2, max=512) for axis, name in NAMES.items()}


class Segmenter(nn.Module):
    """Holds a head, and answers by its classifier, by the prototypes' similarities, or by the nearest of them."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.classifier = nn.Conv2d(3, DIM, 3, padding=1), nn.Conv2d(DIM, CLASSES, 1)
        self.head, self.answer = learning_head(), answer

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder(images)
        if self.answer == "logits":
            return self.classifier(features)
        return getattr(self.head.bank, self.answer)(features)


@pytest.fixture(params=["logits-grad", "similarity-grad", "similarity-no_grad", "classify-grad"])
def network(request: pytest.FixtureRequest) -> Iterator[Segmenter]:
    """People export with gradients on or off."""
    answer, mode = request.param.split("-")
    with torch.set_grad_enabled(mode == "grad"):
        yield Segmenter(answer).eval()


def answers(file: Path, images: Tensor) -> list[Tensor]:
    """Of the file, by those that can run it here."""
    inputs = {"images": images.numpy()}
    found = [pytest.importorskip("onnx.reference").ReferenceEvaluator(str(file)).run(None, inputs)[0]]
    if importlib.util.find_spec("onnxruntime"):
        found.append(importlib.import_module("onnxruntime").InferenceSession(str(file)).run(None, inputs)[0])
    return [torch.from_numpy(answer) for answer in found]


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=needs_export)])
def test_onnx(network: Segmenter, dynamo: bool, tmp_path: Path) -> None:
    if dynamo:
        pytest.importorskip("onnxscript")
    before = state(network)
    file = tmp_path / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about the shapes that are checked
        sizes: dict[str, Any] = {"dynamic_shapes": {"images": SIZES}} if dynamo else {"dynamic_axes": {"images": NAMES}}
        torch.onnx.export(network, (IMAGES,), str(file), dynamo=dynamo, input_names=["images"], **sizes)
    for images in (IMAGES, torch.rand(5, 3, 12, 7)):
        with torch.no_grad():
            expected = network(images)
        for found in answers(file, images):
            assert found.dtype == expected.dtype
            assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert same(before, state(network))


@needs_export
@pytest.mark.parametrize("strict", [False, True])
def test_torch_export(network: Segmenter, strict: bool) -> None:
    program = torch.export.export(network, (IMAGES,), strict=strict, dynamic_shapes={"images": SIZES})
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for images in (IMAGES, torch.rand(5, 3, 12, 7)):
        assert torch.equal(loaded(images), network(images))


def test_torch_jit_trace(network: Segmenter) -> None:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, IMAGES), file)
    file.seek(0)
    assert torch.equal(torch.jit.load(file)(IMAGES), network(IMAGES))


@needs_export
def test_what_is_exported_can_be_trained() -> None:
    network = Segmenter("similarity").eval()
    exported = torch.export.export(network, (IMAGES,)).module()
    gradients = []
    for module in (network, exported):
        parameter = module.encoder.weight
        (gradient,) = torch.autograd.grad(module(IMAGES).square().sum(), parameter)
        gradients.append(gradient)
    assert_close(*gradients)


@needs_export
def test_a_head_goes_on_after_an_export() -> None:
    network = Segmenter("classify").eval()
    twin = copy.deepcopy(network)
    torch.export.export(network, (IMAGES,))
    for module in (network, twin):
        module.train()
        step(module.head, 7)
    assert same(state(network), state(twin))
