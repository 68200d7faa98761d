"""How fast all queues are clustered, how near that is to reading them once, and how good the clusters are."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from brpg_lib.benchmarks import command, features
from brpg_lib.benchmarks import tables as show
from brpg_lib.benchmarks.command import Options, Progress, Result
from brpg_lib.benchmarks.contenders import CONTENDERS, Contender
from brpg_lib.benchmarks.measure import Clock, Run, Timing, one_line, race
from brpg_lib.benchmarks.tables import Table
from brpg_lib.kernels import lloyd
from brpg_lib.kernels.kmeans import kmeans

OURS = "brpg-lib, "
CLUSTERS = (2, 3, 4, 8, 16)
"""Centers of the single iterations."""
SAME = 1.0005
"""An inertia up to this many times another's prints as 1.000 times."""


def measure(options: Options, progress: Progress) -> Result:
    """Time clusterings and single iterations; check the clusters."""
    progress("making features")
    rows, clusters = features.queue(options.preset, options.device)
    fits, floors = own(rows, clusters) | others(rows, clusters), read_once(rows)
    warm_ups = None
    if options.device.type == "cpu":  # where a whole clustering takes seconds
        few = rows[[0, -1]], clusters[[0, -1]]
        warm_ups = floors | own(*few) | others(*few)
    timings = race(floors | fits, options.device, options.repeats, progress, warm_ups)
    floor = min(timings[name].median() for name in floors)
    progress("exact inertia")
    inertia = {
        name: [features.exact_inertia(group, found) for group, found in zip(rows, timing.result, strict=True)]
        for name, timing in timings.items()
        if name in fits and timing.failure is None
    }
    best = next(name for name in inertia if name.startswith(OURS))  # backends are listed fastest first
    num_bytes = rows.nbytes
    return {
        "queue": {"groups": len(rows), "rows": rows.shape[1], "dim": rows.shape[2], "bytes": num_bytes},
        "floor": {"seconds": floor, "gb_per_second": num_bytes / floor / 1e9}
        | {name: timings[name].summary() for name in floors},
        "contenders": {name: row(timings[name], rows, floor, inertia.get(name), inertia[best]) for name in fits},
        "missing": missing(options.device),
        "reference": best,
        "iteration": single_iterations(rows, options, progress),
    }


def read_once(rows: Tensor) -> dict[str, Run]:
    """Ways to read all rows once: no clustering can be faster than one that looks at each of them."""
    ways: dict[str, Run] = {"floor: torch.sum": lambda clock: rows.sum()}
    if backends(rows.device).get("numba", "not for this device") is None:
        from brpg_lib.benchmarks.reading import numba_sum

        ways["floor: numba sum"] = lambda clock: numba_sum(rows)
    return ways


def backends(device: torch.device) -> dict[str, str | None]:
    """Backends that may serve a device, each with the reason why it cannot, if so."""
    reasons: dict[str, str | None] = {}
    for backend in lloyd.BACKENDS:
        if backend == {"cpu": "triton", "cuda": "numba"}[device.type]:
            continue  # for the other kind of device
        try:
            lloyd.load(backend)
            reasons[backend] = None
        except ImportError as error:
            reasons[backend] = one_line(error)
    return reasons


def own(rows: Tensor, clusters: Tensor) -> dict[str, Run]:
    """Our backends, clustering ``rows (G, n, D)``."""
    num_rows = torch.full((len(rows),), rows.shape[1], device=rows.device)
    keys = torch.arange(len(rows), device=rows.device)
    available = [backend for backend, reason in backends(rows.device).items() if reason is None]
    return {OURS + backend: partial(ours, rows, num_rows, clusters, keys, backend) for backend in available}


def others(rows: Tensor, clusters: Tensor) -> dict[str, Run]:
    """Other libraries that are installed, clustering the same rows."""
    gpu, wanted = rows.device.type == "cuda", clusters.tolist()
    host = rows.cpu()
    return {
        other.name: partial(theirs, other, host if other.on_host else rows, wanted, gpu)
        for other in CONTENDERS
        if other.installed
    }


def missing(device: torch.device) -> dict[str, str]:
    """What does not run because something is not installed, with the name to install."""
    own_missing = {OURS + backend: backend for backend, reason in backends(device).items() if reason is not None}
    return own_missing | {other.name: other.package for other in CONTENDERS if not other.installed}


def theirs(other: Contender, rows: Tensor, clusters: list[int], gpu: bool, clock: Clock) -> list[Tensor]:
    """Centroids of each group, by another library."""
    return other.fit(rows, clusters, gpu)


def ours(rows: Tensor, num_rows: Tensor, clusters: Tensor, keys: Tensor, backend: str, clock: Clock) -> list[Tensor]:
    """Centroids of each group, by one call for all."""
    found = kmeans(rows, num_rows, clusters, keys, backend=backend).centroids
    return [group[:count] for group, count in zip(found, clusters.tolist(), strict=True)]


def row(
    timing: Timing, rows: Tensor, floor: float, inertia: list[float] | None, reference: list[float]
) -> dict[str, Any]:
    """What is reported of one contender."""
    found = timing.summary()
    if inertia is None:
        return found
    ratios = [mine / theirs for mine, theirs in zip(reference, inertia, strict=True)]
    return found | {
        "features_per_second": rows.shape[0] * rows.shape[1] / found["seconds"],
        "gb_per_second": rows.nbytes / found["seconds"] / 1e9,
        "times_floor": found["seconds"] / floor,
        "inertia": sum(inertia),
        "inertia_over_ours": statistics.mean(1 / r for r in ratios),
        "worst_ours_over_theirs": max(ratios),
        "groups_ours_larger": sum(r > SAME for r in ratios),
    }


def single_iterations(rows: Tensor, options: Options, progress: Progress) -> dict[str, Any]:
    """One pass over all rows with each backend, for several numbers of centers, beside reading them once."""
    shift = torch.stack([group[:1000].mean(0) for group in rows])
    num_rows = torch.full((len(rows),), rows.shape[1], device=rows.device)
    runs = dict(read_once(rows))
    floors = list(runs)
    active = torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device)

    def once(backend: str, clusters: int) -> Run:
        create = lloyd.load(backend)
        centers = (rows[:, :clusters] - shift[:, None])[:, None].contiguous()
        allowed = torch.ones(len(rows), clusters, dtype=torch.bool, device=rows.device)

        def run(clock: Clock) -> None:
            # A new object each time, as later passes of one may read less.
            step = create(rows, num_rows, shift, None)
            clock.start()
            step(centers, allowed, active)

        return run

    names: dict[tuple[str, int], str] = {}
    for backend, reason in backends(rows.device).items():
        for clusters in CLUSTERS if reason is None else ():
            names[backend, clusters] = f"one iteration, {backend}, K={clusters}"
            runs[names[backend, clusters]] = once(backend, clusters)
    timings = race(runs, options.device, options.repeats, progress, memory=False)
    floor = min(timings[name].median() for name in floors)
    found: dict[str, Any] = {"floor": floor}
    for (backend, clusters), name in names.items():
        entry = timings[name].summary()
        if "seconds" in entry:
            entry["gb_per_second"] = rows.nbytes / entry["seconds"] / 1e9
            entry["times_floor"] = entry["seconds"] / floor
        found.setdefault(backend, {})[str(clusters)] = entry
    return found


def tables(result: Result) -> list[Table]:
    """Clusterings, and single iterations."""
    queue, floor = result["queue"], result["floor"]
    reference = result["reference"]
    main_table = Table(
        f"Clustering of {queue['groups']} queues of {queue['rows']} x {queue['dim']} float32, "
        f"{show.bytes_(queue['bytes'])}",
        ("", "time", "x ours", "features/s", "GB/s", "x floor", "inertia / ours", "worst ours / it", "ours larger",
         "extra memory"),
    )  # fmt: skip
    main_table.rows.append(
        ["floor: reading once", show.seconds(floor["seconds"]), "", "", f"{floor['gb_per_second']:.1f}", "1.00x"]
        + [""] * 4
    )
    own = result["contenders"][reference]["seconds"]
    for name, entry in result["contenders"].items():
        if "failure" in entry:
            main_table.rows.append([name, "failed", *[""] * 8])
            main_table.notes.append(f"{name} failed: {entry['failure']}")
            continue
        main_table.rows.append([
            name, show.seconds(entry["seconds"]), show.ratio(entry["seconds"] / own),
            show.count(entry["features_per_second"]), f"{entry['gb_per_second']:.2f}", show.ratio(entry["times_floor"]),
            f"{entry['inertia_over_ours']:.4f}", f"{entry['worst_ours_over_theirs']:.4f}",
            f"{entry['groups_ours_larger']} of {queue['groups']}", show.bytes_(entry["extra_bytes"]),
        ])  # fmt: skip
    for name, package in result["missing"].items():
        main_table.rows.append([name, "missing", *[""] * 8])
        main_table.notes.append(f"{name} is not installed: pip install {package}")
    main_table.notes.append(f"'Ours' is {reference}; inertia is recomputed from the centroids in float64.")

    iteration = result["iteration"]
    second = Table("One Lloyd iteration over all rows", ("", *(f"K={k}" for k in CLUSTERS)))
    for backend in lloyd.BACKENDS:
        if backend in iteration:
            second.rows.append([OURS + backend, *(cell(iteration[backend][str(k)]) for k in CLUSTERS)])
            for k in CLUSTERS:
                if "failure" in iteration[backend][str(k)]:
                    second.notes.append(f"{backend}, K={k} failed: {iteration[backend][str(k)]['failure']}")
    second.notes.append(f"In brackets: times the floor of {show.seconds(iteration['floor'])}, reading all rows once.")
    return [main_table, second]


def cell(entry: dict[str, Any]) -> str:
    """Time, rate and distance from the floor."""
    if "failure" in entry:
        return "failed"
    return f"{show.seconds(entry['seconds'])}, {entry['gb_per_second']:.1f} GB/s ({show.ratio(entry['times_floor'])})"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    command.with_quiet_threads()
    sys.exit(main())
