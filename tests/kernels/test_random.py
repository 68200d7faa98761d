"""Random numbers as a function of a key."""

from __future__ import annotations

import pytest
import torch

from brpg_lib.kernels.random import fold, uniform

COUNT = 200_000


def key(*values: int, device: torch.device | str = "cpu") -> torch.Tensor:
    return fold(torch.zeros((), dtype=torch.int64, device=device), *values)


@pytest.mark.parametrize("seed", [0, 1, 7, -1, 2**31, 2**40])
def test_uniform(seed: int, device: torch.device) -> None:
    numbers = uniform((COUNT,), key(seed, device=device)).cpu()
    assert numbers.dtype == torch.float32
    assert numbers.min() > 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, 100, 0, 1)
    chi_square = ((counts - COUNT / 100) ** 2 / (COUNT / 100)).sum()
    assert 50 < chi_square < 170  # 99 degrees of freedom: mean 99, deviation 14
    centered = numbers - 0.5
    for lag in (1, 2, 3, 64, 1000):
        assert abs((centered[lag:] * centered[:-lag]).mean() * 12) < 0.015, f"correlated at lag {lag}"


def test_never_one() -> None:
    """With 25 random bits, number 237865 of this key is rounded to 1."""
    assert uniform((2**18,), torch.tensor(15)).max() < 1.0


def test_equal_keys_equal_numbers(device: torch.device) -> None:
    torch.manual_seed(0)
    first = uniform((50,), key(3, 4, device=device))
    torch.rand(5)
    assert torch.equal(first, uniform((50,), key(3, 4, device=device)))
    assert torch.equal(first.view(5, 10), uniform((5, 10), key(3, 4, device=device)))
    assert torch.equal(first.cpu(), uniform((50,), key(3, 4)))


def test_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    uniform((10,), key(1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("other", [(1,), (2,), (0, 0), (-1,), (2**20,)])
def test_keys_are_independent(other: tuple[int, ...]) -> None:
    first, second = uniform((COUNT,), key(0)), uniform((COUNT,), key(*other))
    assert not torch.equal(first, second)
    assert abs(((first - 0.5) * (second - 0.5)).mean() * 12) < 0.015
    # Not the same numbers in another order or shifted, either.
    assert len(set(first.tolist()) & set(second.tolist())) < 0.05 * COUNT


def test_neighbouring_raw_keys_share_no_sequence() -> None:
    first, second = uniform((1000,), torch.tensor(10)), uniform((1000,), torch.tensor(11))
    assert (first[1:] == second[:-1]).float().mean() < 0.01


def test_fold_stays_in_range_and_depends_on_order() -> None:
    keys = {int(key(a, b)) for a in range(-5, 20) for b in range(20)}
    assert len(keys) == 25 * 20
    assert all(0 <= value < 2**32 for value in keys)
    assert int(fold(torch.tensor(2**32 - 1), 2**32 - 1)) >= 0


def test_fold_takes_tensors() -> None:
    assert torch.equal(key(3), fold(torch.tensor(0), torch.tensor(3)))
