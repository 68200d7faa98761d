"""The k-means pass: every backend against a plain loop over rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packages import needs_triton
from torch import Tensor
from torch.testing import assert_close

from brpg_lib.kernels import lloyd, optional


def backend(name: str) -> Any:
    """A parameter; what runs on a GPU where there is one is a test of CUDA there."""
    marks = [
        needs_triton if name == "triton" else pytest.mark.skipif(not lloyd.installed(name), reason=f"needs {name}")
    ]
    if name != "numba" and torch.cuda.is_available():
        marks.append(pytest.mark.cuda)
    return pytest.param(name, marks=marks)


BACKENDS = [backend(name) for name in ("numba", "torch", "triton")]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(backend: str) -> torch.device:
    """Triton's kernels run on the CPU only through its interpreter, which is chosen where there is no GPU."""
    return torch.device("cpu") if backend == "numba" else DEVICE


def problem(
    seed: int, counts: list[int], sets: int, clusters: int, dim: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (G, n, D), how many count (G,), a shift (G, D), and centers (G, R, K, D) relative to it."""
    random = torch.Generator().manual_seed(seed)
    rows = 2 * torch.randn(len(counts), max(1, *counts) + 3, dim, generator=random) + 5
    shift = torch.full((len(counts), dim), 5.0) + 0.1 * torch.randn(len(counts), dim, generator=random)
    centers = torch.randn(len(counts), sets, clusters, dim, generator=random)
    return rows.to(dtype), torch.tensor(counts), shift, centers


def expected_pass(
    rows: Tensor, num_rows: Tensor, shift: Tensor, index: Tensor | None, centers: Tensor, allowed: Tensor,
    weights: Tensor | None = None,
) -> lloyd.Pass:  # fmt: skip
    groups, sets, clusters, _ = centers.shape
    sums, counts = torch.zeros(centers.shape).double(), torch.zeros(groups, sets, clusters).double()
    inertia = torch.zeros(groups, sets).double()
    for g in range(groups):
        place = torch.arange(int(num_rows[g])) if index is None else index[g, : int(num_rows[g])]
        own = rows[g, place].double() - shift[g].double()
        weight = torch.ones(len(place)) if weights is None else weights[g, place]
        size = int(allowed[g].sum())
        for s in range(sets if size else 0):
            nearest = torch.cdist(own[None], centers[g, s, :size].double()[None])[0].argmin(1)
            for k in range(size):
                mine = own[nearest == k]
                sums[g, s, k] = (mine * weight[nearest == k, None]).sum(0)
                counts[g, s, k] = weight[nearest == k].sum()
                if len(mine):
                    inertia[g, s] += (mine - mine.mean(0)).square().sum()
    return lloyd.Pass(sums.float(), counts.float(), inertia.float())


def check(found: lloyd.Pass, expected: lloyd.Pass, active: Tensor, *, weighted: bool = False) -> None:
    for field in ("sums", "counts") if weighted else expected._fields:
        here, there = getattr(found, field).cpu()[active], getattr(expected, field)[active]
        assert_close(here, there, atol=2e-3, rtol=1e-4, msg=lambda text, field=field: f"{field}: {text}")


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("sets", "clusters", "dim"), [(1, 1, 1), (2, 3, 20), (1, 7, 33), (3, 16, 8)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pass(backend: str, sets: int, clusters: int, dim: int, weighted: bool, indexed: bool) -> None:
    rows, num_rows, shift, centers = problem(0, [90, 0, 41], sets, clusters, dim)
    allowed = torch.arange(clusters) < torch.tensor([clusters, 0, max(1, clusters - 1)])[:, None]
    active = torch.ones(3, sets, dtype=torch.bool)
    active[1], active[2, 1:] = False, False
    random = torch.Generator().manual_seed(1)
    weights = torch.rand(rows.shape[:2], generator=random) if weighted else None
    index = torch.stack([torch.randperm(93, generator=random)[:37] % max(1, n) for n in (90, 0, 41)])
    index, num_rows = (index, num_rows.clamp(max=37)) if indexed else (None, num_rows)
    expected = expected_pass(rows, num_rows, shift, index, centers, allowed, weights)
    device = device_of(backend)
    moved = [None if value is None else value.to(device) for value in (rows, num_rows, shift, index)]
    rest = [None if value is None else value.to(device) for value in (centers, allowed, active, weights)]
    check(lloyd.load(backend)(*moved)(*rest), expected, active, weighted=weighted)


@given(
    seed=st.integers(0, 99),
    counts=st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 70]), min_size=1, max_size=3),
    sets=st.integers(1, 2),
    clusters=st.integers(1, 16),
    dim=st.sampled_from([1, 7, 64, 100, 256, 384]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    lies=st.sampled_from(["together", "apart", "transposed"]),
)
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_pass_of_any_size(backend, seed, counts, sets, clusters, dim, dtype, lies):
    rows, num_rows, shift, centers = problem(seed, counts, sets, clusters, dim, dtype)
    if lies == "apart":
        rows = torch.stack((rows, rows), dim=1).flatten(0, 1)[::2]
    elif lies == "transposed":
        rows = rows.mT.contiguous().mT
    allowed = torch.arange(clusters) < num_rows[:, None]
    active = torch.ones(len(counts), sets, dtype=torch.bool)
    device = device_of(backend)
    found = lloyd.load(backend)(rows.to(device), num_rows.to(device), shift.to(device), None)(
        centers.to(device), allowed.to(device), active.to(device)
    )
    expected = expected_pass(rows, num_rows, shift, None, centers, allowed)
    # A row that is as near to two centers may go to either.
    assert torch.equal(found.counts.sum(-1).cpu(), expected.counts.sum(-1))
    if (found.counts.cpu() == expected.counts).all():
        check(found, expected, active)
    else:
        assert_close(found.inertia.cpu(), expected.inertia, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("clusters", [2, 16])
@pytest.mark.parametrize("backend", BACKENDS[2:])
def test_more_groups_than_a_grid_has_columns(backend: str, clusters: int) -> None:
    """CUDA counts no further than 65,535 along all but the first axis."""
    from brpg_lib.kernels.lloyd import triton_few, triton_lloyd, triton_many

    asked = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            asked.append(grid)
            return lambda *arguments, **sizes: None

    rows, num_rows, shift, centers = problem(0, [3] * 2, 1, clusters, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_few, "few_clusters", Kernel())
        patch.setattr(triton_many, "many_clusters", Kernel())
        many = 40_000
        arguments = (rows.expand(2, -1, -1).repeat(many, 1, 1), num_rows.repeat(many), shift.repeat(many, 1), None)
        triton_lloyd.TritonLloyd(*arguments)(
            centers.repeat(many, 1, 1, 1), torch.ones(2 * many, clusters) > 0, torch.ones(2 * many, 1) > 0
        )
    assert asked[0][0] == 2 * many
    assert max(asked[0][1:]) <= 65_535


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_half_precision_rows(backend: str, dtype: torch.dtype) -> None:
    rows, num_rows, shift, centers = problem(0, [90, 41], 2, 3, 20, dtype)
    allowed, active = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    arguments = (rows, num_rows, shift, None)
    found = lloyd.load(backend)(*(None if v is None else v.to(DEVICE) for v in arguments))(
        *(v.to(DEVICE) for v in (centers, allowed, active))
    )
    check(found, expected_pass(*arguments, centers, allowed), active)


@pytest.mark.parametrize("length", [1023, 1025, 5000])
@pytest.mark.parametrize("backend", BACKENDS)
def test_more_rows_than_one_task_takes(backend: str, length: int) -> None:
    rows, num_rows, shift, centers = problem(0, [length, 7], 1, 2, 4)
    allowed, active = torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 1, dtype=torch.bool)
    device = device_of(backend)
    found = lloyd.load(backend)(rows.to(device), num_rows.to(device), shift.to(device), None)(
        centers.to(device), allowed.to(device), active.to(device)
    )
    expected = expected_pass(rows, num_rows, shift, None, centers, allowed)
    assert torch.equal(found.counts.cpu(), expected.counts)
    assert_close(found.sums.cpu(), expected.sums, atol=2e-2, rtol=1e-4)
    assert_close(found.inertia.cpu(), expected.inertia, rtol=1e-4, atol=0)


@given(
    seed=st.integers(0, 999),
    clusters=st.integers(1, 5),
    dim=st.integers(1, 9),
    steps=st.lists(st.sampled_from([0.0, 0.01, 0.1, 1.0, 30.0]), min_size=1, max_size=6),
    far=st.sampled_from([0.0, 1000.0]),
)
def test_later_passes_skip_no_row_that_changes(seed, clusters, dim, steps, far):
    """Numba's passes read only rows whose center may have changed: each must find what a first pass finds."""
    numba_lloyd = pytest.importorskip("brpg_lib.kernels.lloyd.numba_lloyd").NumbaLloyd
    rows, num_rows, shift, centers = problem(seed, [60, 0, 5], 2, clusters, dim)
    rows, shift = rows + far, shift + far
    allowed = torch.arange(clusters) < torch.tensor([clusters, 0, 1])[:, None]
    active = torch.tensor([[True, True], [False, False], [True, False]])
    random = torch.Generator().manual_seed(seed)
    passes = numba_lloyd(rows, num_rows, shift)
    for step in [0.0, *steps]:
        centers = centers + step * torch.randn(centers.shape, generator=random)
        found, fresh = passes(centers, allowed, active), numba_lloyd(rows, num_rows, shift)(centers, allowed, active)
        assert torch.equal(found.counts[active], fresh.counts[active])
        assert_close(found.sums[active], fresh.sums[active], atol=1e-3, rtol=1e-4)
        assert_close(found.inertia[active], fresh.inertia[active], atol=1e-2, rtol=1e-3)


def test_threads_do_not_matter() -> None:
    numba_lloyd = pytest.importorskip("brpg_lib.kernels.lloyd.numba_lloyd").NumbaLloyd
    rows, num_rows, shift, centers = problem(0, [9000, 5000, 100], 2, 3, 16)
    allowed, active = torch.ones(3, 3, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(numba_lloyd(rows, num_rows, shift)(centers, allowed, active))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("installed", [True, False])
def test_the_fastest_backend_that_fits(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    monkeypatch.setattr(lloyd, "launches", lambda *arguments: installed)
    fast = {"cpu": "numba", "cuda": "triton"} if installed else {"cpu": "torch", "cuda": "torch"}
    for device, backend in fast.items():
        rows = torch.empty(2, 3, 8, device="meta")
        monkeypatch.setattr(lloyd, "_device_type", lambda rows, device=device: device)
        assert lloyd.choose(rows, 3) == backend
        half = "torch" if backend == "numba" else backend
        assert lloyd.choose(rows.half(), 3) == half
    assert lloyd.choose(torch.empty(2, 3, 2048, device="meta"), 3) == "torch"
    assert lloyd.choose(torch.empty(2, 3, 8, device="meta"), 17) == "torch"


@pytest.fixture
def nothing_tried() -> Iterator[None]:
    """Backends are tried anew."""
    lloyd.launches.cache_clear()
    yield
    lloyd.launches.cache_clear()


def test_a_backend_that_fails_is_left_out_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, nothing_tried: None
) -> None:
    def broken(backend: str) -> None:
        raise OSError("no C compiler")

    monkeypatch.setattr(lloyd, "installed", lambda name: True)
    monkeypatch.setattr(lloyd, "load", broken)
    with pytest.warns(UserWarning, match=r"does without numba, .* fails on cpu: no C compiler") as caught:
        found = [lloyd.choose(torch.zeros(1, 4, 2), 2) for _ in range(3)]
    assert found == ["torch"] * 3
    assert len(caught) == 1


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_backends_that_work_are_found_to(backend: str) -> None:
    if not lloyd.installed(backend):
        pytest.skip(f"needs {backend}")
    assert lloyd.launches(backend, torch.device("cpu"), torch.float32)


def test_a_broken_backend_is_done_without(monkeypatch: pytest.MonkeyPatch, nothing_tried: None) -> None:
    def fail(backend: str) -> None:
        raise OSError(f"{backend}: no libsvml")

    monkeypatch.setattr(optional.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(lloyd, "load", fail)
    with pytest.warns(UserWarning, match="does without numba, which is installed but fails: numba: no libsvml"):
        assert lloyd.choose(torch.zeros(1, 2, 3), 2) == "torch"


def test_an_old_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", "2.3.1")
    with pytest.raises(ImportError, match=r"triton 3\.0 or newer is needed, found 2\.3\.1"):
        lloyd.load("triton")


def test_numba_without_a_place_for_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = pytest.importorskip("brpg_lib.kernels.compiled")

    def njit(**options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(compiled.numba, "njit", njit)
    assert compiled.compiled(print) is print
