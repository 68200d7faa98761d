"""Reading maps at points, and nearest-neighbour indices."""

from __future__ import annotations

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from brpg_lib.kernels import reading, taps

SIZE = st.integers(1, 9)


@pytest.fixture(params=["compiled", "plain"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With numba, and as if it were not installed."""
    if request.param == "plain":
        monkeypatch.setattr(taps, "_compiled", lambda *_: False)
    else:
        pytest.importorskip("numba")


def every_pixel(num_images: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    axes = torch.meshgrid(torch.arange(num_images), torch.arange(height), torch.arange(width), indexing="ij")
    image, row, column = (axis.flatten() for axis in axes)
    return image, row, column


def read_all(maps: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    image, row, column = every_pixel(len(maps), *size)
    values = reading.read(maps, image, (row, column), size, align_corners=align_corners)
    return values.view(len(maps), *size, maps.shape[1]).movedim(3, 1)


@pytest.mark.usefixtures("loops")
@given(images=st.integers(1, 3), dim=st.integers(1, 4), h=SIZE, w=SIZE, height=st.integers(1, 30),
       width=st.integers(1, 30), align_corners=st.booleans(), seed=st.integers(0, 99))  # fmt: skip
def test_equals_the_upsampled_map(images, dim, h, w, height, width, align_corners, seed):
    torch.manual_seed(seed)
    maps = torch.randn(images, dim, h, w, requires_grad=True)
    expected = reference.upsample(maps, height, width, align_corners)
    found = read_all(maps, (height, width), align_corners)
    assert_close(found, expected, atol=2e-5, rtol=1e-5)
    weights = torch.randn(expected.shape)
    assert_close(
        torch.autograd.grad((found * weights).sum(), maps)[0],
        torch.autograd.grad((expected * weights).sum(), maps)[0],
        atol=2e-3,
        rtol=1e-4,
    )


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("align_corners", [True, False])
def test_large_maps(align_corners: bool) -> None:
    """The sizes of real images: a float32 source position must not read another place."""
    torch.manual_seed(0)
    maps = torch.randn(1, 2, 129, 193)
    expected = reference.upsample(maps, 513, 769, align_corners)
    assert_close(read_all(maps, (513, 769), align_corners), expected, atol=5e-4, rtol=0)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_give_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 4, 5).to(dtype).requires_grad_()
    found = read_all(maps, (9, 13), True)
    assert found.dtype == torch.float32
    assert_close(found, reference.upsample(maps.detach().float(), 9, 13), atol=1e-5, rtol=1e-5)
    found.sum().backward()
    assert maps.grad is not None
    assert maps.grad.dtype == dtype


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided"])
def test_any_memory_layout(layout: str) -> None:
    torch.manual_seed(0)
    plain = torch.randn(2, 3, 4, 6)
    other = {
        "channels_last": plain.contiguous(memory_format=torch.channels_last),
        "transposed": plain.mT.contiguous().mT,
        "strided": plain.repeat_interleave(2, dim=3)[..., ::2],
    }[layout]
    assert torch.equal(read_all(other, (7, 11), True), read_all(plain, (7, 11), True))


@pytest.mark.usefixtures("loops")
def test_no_points() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    assert reading.read(torch.randn(1, 3, 2, 2), empty, (empty, empty), (4, 4), align_corners=True).shape == (0, 3)


@pytest.mark.parametrize("lengths", [range(1, 40), (65, 129, 257, 512, 513, 769, 1024, 2049)])
@pytest.mark.parametrize("sizes", [range(1, 40), (65, 129, 193, 257, 513, 1025)])
def test_nearest_is_torch_nearest(lengths, sizes) -> None:
    for length in lengths:
        image = torch.arange(length, dtype=torch.float32).expand(1, 1, 2, length)
        for size in sizes:
            expected = torch.nn.functional.interpolate(image, (2, size), mode="nearest")[0, 0, 0].long()
            assert torch.equal(reading.nearest(length, size, torch.device("cpu")), expected), (length, size)


def test_memory_is_proportional_to_the_points() -> None:
    """A map upsampled to this size would need 64 GB."""
    image, row, column = torch.tensor([0]), torch.tensor([99_999]), torch.tensor([79_999])
    maps = torch.randn(1, 2, 4, 4)
    value = reading.read(maps, image, (row, column), (100_000, 80_000), align_corners=True)
    assert_close(value[0], maps[0, :, -1, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("loops")
def test_the_gradient_is_the_same_each_time_with_many_threads() -> None:
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 64, 9, 9, generator=random, requires_grad=True)
    image, row, column = (torch.randint(high, (4000,), generator=random) for high in (2, 33, 33))
    outer = torch.randn(4000, 64, generator=random)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        gradients = [
            torch.autograd.grad(reading.read(maps, image, (row, column), (33, 33), align_corners=True), maps, outer)[0]
            for _ in range(10)
        ]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.usefixtures("loops")
def test_images_in_any_order() -> None:
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 40, 5, 7, generator=random, requires_grad=True)
    image, row, column = (torch.randint(high, (200,), generator=random) for high in (3, 9, 13))
    image[image == 1] = 2  # none of image 1
    outer = torch.randn(200, 40, generator=random)
    found = reading.read(maps, image, (row, column), (9, 13), align_corners=True)
    everywhere = reference.upsample(maps, 9, 13)
    expected = everywhere.movedim(1, 3)[image, row, column]
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradients = (torch.autograd.grad((values * outer).sum(), maps)[0] for values in (found, expected))
    assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("loops")
def test_values_that_are_not_finite_come_as_zeros() -> None:
    maps = torch.ones(1, 3, 1, 6)
    maps[0, 1, 0, 0], maps[0, 2, 0, 5] = torch.nan, torch.inf
    image, row, column = every_pixel(1, 1, 6)
    found = reading.read(maps, image, (row, column), (1, 6), align_corners=True)
    # Pixel 4 has a tap at 5, of weight 0.
    assert torch.equal(found, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 0.0])[:, None].expand(6, 3))
