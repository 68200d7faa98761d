"""The steps of a clustering in Triton against those in plain torch: interpreted where there is no GPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from builders import clusters
from fake_cuda import NoCopies
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from packages import needs_triton
from torch.testing import assert_close
from torch.utils._python_dispatch import _disable_current_modes

from brpg_lib.kernels import lloyd
from brpg_lib.kernels.kmeans import kmeans, steps
from brpg_lib.kernels.kmeans.descent import Descent, Rows

pytestmark = [
    needs_triton,
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),  # on the side of a where that is not taken
]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if torch.cuda.is_available():
    pytestmark.append(pytest.mark.cuda)

slow_examples = settings(phases=[Phase.explicit, Phase.generate], max_examples=8)


def groups_of(sizes: list[int], dim: int, seed: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.full((len(sizes), max(1, *sizes), dim), 1e4)
    for group, (own, size) in enumerate(zip(rows, sizes, strict=True)):
        own[:size] = clusters(size, 3, dim, seed + group, spread=spread)
    return rows.to(DEVICE), torch.tensor(sizes, device=DEVICE)


@slow_examples
@given(
    sizes=st.lists(st.integers(0, 256), min_size=1, max_size=3),
    dim=st.sampled_from([1, 7, 16, 33, 100]),
    most=st.integers(1, 6),
    restarts=st.sampled_from([1, 3, 8]),
    seed=st.integers(0, 999),
)
def test_seeding(sizes: list[int], dim: int, most: int, restarts: int, seed: int) -> None:
    """The same rows are drawn, so that the centers are equal bit for bit."""
    rows, counts = groups_of(sizes, dim, seed)
    rows = torch.where(torch.arange(rows.shape[1], device=DEVICE)[:, None] < counts[:, None, None], rows, 0.0)
    allowed = torch.arange(most, device=DEVICE) < counts[:, None]
    keys = seed + torch.arange(len(sizes), device=DEVICE)
    plain, ours = (each.seed(rows, counts, allowed, restarts, keys, 1) for each in (steps.PLAIN, steps.load()))
    exists = allowed[:, None].expand(-1, restarts, -1)
    assert plain.shape == ours.shape
    assert torch.equal(plain[exists], ours[exists])


def test_numbers() -> None:
    keys = torch.tensor([0, 2**32 - 1, 77], device=DEVICE)
    for count in (1, 32, 256):
        plain, ours = (each.numbers(count, keys, 2) for each in (steps.PLAIN, steps.load()))
        assert torch.equal(plain, ours)


def descend(which: steps.Steps, rows: Rows, start: Descent, allowed: torch.Tensor, **options: Any) -> Descent:
    tolerance = torch.full((len(allowed), 1), options.pop("tolerance", 1e-6), device=DEVICE)
    return which.descend(lloyd.load("triton"), rows, start, allowed, options.pop("most", 30), tolerance, **options)


@slow_examples
@given(
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=3),
    dim=st.sampled_from([1, 5, 33]),
    sets=st.integers(1, 4),
    most=st.integers(1, 5),
    indexed=st.booleans(),
    race=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 999),
)
def test_descent(sizes, dim, sets, most, indexed, race, dtype, seed):
    """Centers far out, some of them without rows, some sets out of the race: every iteration is the same."""
    rows, counts = groups_of(sizes, dim, seed)
    random = torch.Generator().manual_seed(seed)
    start = 2 * torch.randn(len(sizes), sets, most, dim, generator=random)
    start[torch.rand(start.shape[:3], generator=random) < 0.2] = 500.0
    wanted = torch.randint(0, most + 1, (len(sizes), 1), generator=random)
    allowed = torch.arange(most) < wanted.minimum(torch.tensor(sizes)[:, None])
    active = allowed.any(1, keepdim=True) & (torch.rand(len(sizes), sets, generator=random) < 0.8)
    place = None
    if indexed:
        place = torch.randint(0, 2**30, (len(sizes), 1024), generator=random).to(DEVICE) % counts.clamp(min=1)[:, None]
        counts = counts.clamp(max=1).mul(1024)
    allowed, active, shift = allowed.to(DEVICE), active.to(DEVICE), rows[:, 0] * (counts > 0)[:, None]
    given = Rows(rows.to(dtype), counts, shift, place)
    plain, ours = (
        descend(which, given, Descent.start(start.to(DEVICE), active), allowed, race=race)
        for which in (steps.PLAIN, steps.load())
    )
    assert plain.iterations == ours.iterations
    assert torch.equal(plain.active, ours.active)
    assert torch.equal(plain.counts[active], ours.counts[active])
    exists = active[..., None] & allowed[:, None]
    assert_close(ours.centers[exists], plain.centers[exists], atol=1e-4, rtol=1e-4)
    assert_close(ours.inertia[active], plain.inertia[active], atol=1e-2, rtol=1e-4)
    assert_close(ours.rate[active], plain.rate[active], atol=1e-2, rtol=1e-2)


def test_a_descent_that_is_cut_short() -> None:
    rows, counts = groups_of([400], 4, 0)
    every = Rows(rows, counts, rows[:, 0], None)
    start = Descent.start(torch.randn(1, 2, 3, 4, device=DEVICE), torch.ones(1, 2, dtype=torch.bool, device=DEVICE))
    allowed = torch.ones(1, 3, dtype=torch.bool, device=DEVICE)
    for most in (1, 2):
        found = [
            descend(which, every, start, allowed, most=most, tolerance=0.0) for which in (steps.PLAIN, steps.load())
        ]
        assert [each.iterations for each in found] == [most, most]
        assert_close(found[1].centers, found[0].centers, atol=1e-4, rtol=1e-4)


def test_what_is_given_is_not_changed() -> None:
    rows, counts = groups_of([100], 4, 0)
    start = Descent.start(torch.randn(1, 2, 3, 4, device=DEVICE), torch.ones(1, 2, dtype=torch.bool, device=DEVICE))
    before = [value.clone() for value in start[:5]]
    allowed = torch.ones(1, 3, dtype=torch.bool, device=DEVICE)
    descend(steps.load(), Rows(rows, counts, rows[:, 0], None), start, allowed)
    assert all(map(torch.equal, before, start[:5]))


def test_steps_that_fail_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, and plain torch between Triton's passes."""
    from brpg_lib.kernels.kmeans import triton_descent

    class Broken:
        def __getitem__(self, grid: Any) -> Any:
            raise RuntimeError("no compiler")

    rows, counts = groups_of([60, 9], 4, 0)
    arguments = (rows, counts, torch.tensor([3, 2], device=DEVICE), counts)
    expected = kmeans(*arguments, backend="triton")
    monkeypatch.setattr(triton_descent, "_settle", Broken())
    steps._works.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no compiler") as told:
            found = [kmeans(*arguments, backend="triton") for _ in range(2)]
    finally:
        steps._works.cache_clear()
    assert len(told) == 1
    for each in found:
        assert each.backend == "triton"
        assert_close(each.inertia, expected.inertia)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts what the interpreter is given")
def test_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a clustering through all its stages: with the passes over the rows, at most 300."""
    from brpg_lib.kernels.kmeans import triton_descent, triton_seeding
    from brpg_lib.kernels.lloyd import triton_few

    own: Counter[str] = Counter()

    class Counted:
        def __init__(self, kernel: Any, name: str) -> None:
            self.kernel, self.name = kernel, name

        def __getitem__(self, grid: Any) -> Any:
            def launch(*arguments: Any, **sizes: Any) -> None:
                own[self.name] += 1
                with _disable_current_modes():
                    self.kernel[grid](*arguments, **sizes)

            return launch

    for module, names in (
        (triton_seeding, ["_numbers", "_seed"]),
        (triton_descent, ["_means", "_settle", "_relocate"]),
        (triton_few, ["few_clusters"]),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Counted(getattr(module, name), name))
    rows, counts = groups_of([9000, 40], 2, 0, spread=0.8)
    arguments = (rows, counts, torch.tensor([4, 2]), counts)
    kmeans(*arguments, backend="triton")  # the first time everything is tried
    own.clear()
    with NoCopies("cpu") as guard:
        found = kmeans(*arguments, backend="triton")
    passes = own.pop("few_clusters")
    assert found.counts.sum(1).tolist() == [9000, 40]
    assert passes >= 12, "all stages"
    assert own == {"_numbers": 2, "_seed": 1, "_means": passes, "_settle": passes, "_relocate": passes}
    assert guard.total + 3 + 4 * passes <= 300, guard.launches
