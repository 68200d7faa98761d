"""What CUDA kernels are compiled to, for GPUs that need not be here: registers, spills, shared memory, instructions.

A k-means pass cannot be faster than memory. Whether it can be as fast is a matter of instructions: those of its loop,
over as many as a GPU issues while it reads the rows of one round of the loop.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from brpg_lib.benchmarks.tables import Table

CAPABILITIES = (75, 80, 89, 90)
WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}
BANDWIDTH, SCHEDULERS, CLOCK, ISSUED = 3.0e12, 132 * 4, 1.755e9, 0.7
"""Of an H100: bytes per second, what issues one instruction of a warp per cycle, Hz, and how often it really does."""


@dataclass(frozen=True)
class Case:
    """A kernel at the sizes it is used with.

    Attributes:
        rows: Storage type of the rows, as Triton names it.
        dim: Channels.
        clusters: Per group.
        indexed: Whether a list tells which rows count.
        weighted: Whether rows have weights.
        capability: Of the GPU, as in ``sm_90``.
    """

    rows: str
    dim: int
    clusters: int
    indexed: bool
    weighted: bool
    capability: int

    @property
    def name(self) -> str:
        """For a table."""
        extras = " indexed" * self.indexed + " weighted" * self.weighted
        return f"sm_{self.capability} {self.rows} D={self.dim} K={self.clusters}{extras}"


@dataclass(frozen=True)
class Compiled:
    """What became of a case.

    Attributes:
        kernel: Its name.
        registers: Per thread.
        spills: Bytes per thread that did not fit the registers.
        shared: Bytes per program.
        instructions: Of the loop, for each warp and round.
        rounds_bytes: Of rows that a program reads in a round.
        warps: Per program.
    """

    kernel: str
    registers: int
    spills: int
    shared: int
    instructions: int
    rounds_bytes: int
    warps: int

    @property
    def floors(self) -> float:
        """Estimated time of the instructions on an H100, in times that it takes to read the rows from memory."""
        issuing = self.instructions * self.warps / (SCHEDULERS * CLOCK * ISSUED)
        return issuing / (self.rounds_bytes / BANDWIDTH)


def cases() -> Iterator[Case]:
    """All that are used: every number of clusters, storage types, and what a stage needs."""
    from brpg_lib.kernels.lloyd import triton_many

    for capability in CAPABILITIES:
        for clusters in (1, 2, 3, 4, 5, 16):
            if clusters > 4 and capability not in (80, 90):
                assert triton_many.NEEDED_CAPABILITY == (8, 0)  # sm_89 lacks the shared memory
                continue
            yield Case("fp32", 256, clusters, False, False, capability)
        yield Case("bf16", 256, 2, False, False, capability)
        yield Case("fp32", 256, 3, True, False, capability)
    yield Case("fp16", 256, 2, False, False, 90)
    yield Case("fp32", 64, 2, False, False, 90)
    yield Case("fp32", 1024, 4, False, False, 90)
    yield Case("fp32", 256, 4, False, True, 90)
    yield Case("bf16", 256, 16, False, True, 90)
    yield Case("fp32", 100, 16, True, False, 90)


def compile_case(case: Case) -> Compiled:
    """Compile a k-means pass."""
    from brpg_lib.kernels.lloyd import triton_lloyd

    kernel, sizes = triton_lloyd.kernel_for(case.dim, case.clusters)
    constants: dict[str, Any] = {"DIM": case.dim, "CLUSTERS": case.clusters, "CHUNK": triton_lloyd.CHUNK} | sizes
    constants |= {"INDEXED": case.indexed, "WEIGHTED": case.weighted}
    types = {"num_rows": "*i64", "index": "*i64", "allowed": "*u8", "active": "*u8", "rows": f"*{case.rows}"}
    types |= dict.fromkeys(("shift", "centers", "weights", "sums", "counts", "total"), "*fp32")
    strides = ("group_stride", "row_stride") if case.dim % 16 == 0 else ("group_stride",)
    return compiled(kernel, types, constants, strides, case.capability, sizes["HEIGHT"] * case.dim * WIDTHS[case.rows])


def settling(capability: int) -> Iterator[tuple[str, Compiled]]:
    """The kernels of a clustering beside its passes: for PASCAL VOC, and on two GPUs for the largest prototypes."""
    from brpg_lib.kernels.kmeans import triton_descent, triton_seeding

    real, number, flag = "*fp32", "*i64", "*u8"
    types = dict.fromkeys(("centers", "sums", "counts", "saved", "number", "totals", "inertia", "rate", "gain"), real)
    types |= {"rows": real, "num_rows": number, "keys": number, "found": real, "between": "*fp64", "limits": real}
    types |= {"exists": flag, "active": flag, "needy": flag, "moving": "*i32", "index": number, "shift": real}
    yield "numbers", compiled(triton_seeding._numbers, types, {"BLOCK": 256}, (), capability)
    for dim, clusters in ((256, 4), (1024, 16)) if capability in (CAPABILITIES[0], CAPABILITIES[-1]) else ((256, 4),):
        name = f"D={dim} K={clusters}"
        sizes = {"DIM": dim} | triton_descent.tile(dim)
        yield f"seed {name}", compiled(triton_seeding._seed, types, triton_seeding.tile(256, dim), (), capability)
        yield f"means {name}", compiled(triton_descent._means, types, sizes, (), capability)
        settled = {"MAX_RATE": 0.9, "DECAY": 0.5, "CHUNKS": triton_descent.CHUNKS, "SETS": 8, "SLOTS": clusters}
        yield (
            f"settle {name}",
            compiled(triton_descent._settle, types, {"FIRST": False, "RACE": True} | settled, (), capability),
        )
        moved = {"INDEXED": True, "LOOKED_AT": 1024, "SLOTS": clusters} | sizes
        yield f"relocate {name}", compiled(triton_descent._relocate, types | {"rows": "*bf16"}, moved, (), capability)


def learning(capability: int) -> Iterator[tuple[str, Compiled]]:
    """The kernels of the collect and the learn step: at the sizes of PASCAL VOC, and on two GPUs at the largest."""
    from brpg_lib.kernels.fused import collecting, comparing, prototypes, reading, scores

    real, number = "*fp32", "*i64"
    types = {"labels": number, "confidence": real, "threshold": real, "now": number, "found": real, "seed": "i64"}
    yield "scores", compiled(scores._scores, types, {"PER_CLASS": False, "BLOCK": scores.BLOCK}, (), capability)
    types |= {"candidates": "*u8", "number": number, "cost": real}
    yield "race", compiled(scores._race, types, {"COSTLY": True, "BLOCK": scores.BLOCK}, (), capability)
    types = {"maps": real, "logits": real, "thresholds": real, "look": "*u8", "groups": number, "classes": number}
    types |= {"confidence": real, "lost": "*i32", "refused": "*i32", "row_scale": "fp32", "column_scale": "fp32"}
    types |= {"floor": "fp32", "slot": number, "sure": real, "order": number, "bounds": number, "cursor": number}
    types |= {"features": "*fp16", "rows": number}
    largest = capability in (CAPABILITIES[0], CAPABILITIES[-1])
    for classes in (21, 500) if largest else (21,):
        for seen in (True, False):
            given = {"LABELED": seen, "SHOWN": not seen, "NARROW": True, "MAX_NORM": 1e15}
            name = f"judge C={classes} {'labeled' if seen else 'weak'}"
            yield name, compiled(collecting._judge, types, collecting.tile(classes) | given, (), capability)
    yield "slots", compiled(collecting._slots, types, {"BLOCK": collecting.PIXELS}, (), capability)
    yield "advance", compiled(collecting._advance, types, {"BLOCK": 64}, (), capability)
    for dim in (256, 1024) if largest else (256,):
        yield f"write D={dim}", compiled(collecting._write, types, reading.tile(dim), (), capability)
    types = {"maps": real, "labels": number, "pixels": number, "scores": real, "features": real, "inverse": real}
    types |= {"classes": number, "dropped": "*i32", "gradient": real, "row_scale": "fp32", "column_scale": "fp32"}
    for dim in (256, 1024) if largest else (256,):
        for grid in (True, False):
            sizes = {"GRID": grid, "SCORED": not grid, "CORNERS": True} | reading.tile(dim)
            name = f"D={dim} {'grid' if grid else 'drawn'}"
            limits = {"MIN_NORM": 1e-8, "MAX_NORM": 1e15}
            yield f"read {name}", compiled(reading._read, types, sizes | limits, (), capability)
            yield f"spread {name}", compiled(reading._spread, types, sizes, (), capability)
    types = {"cosine": real, "inverse": real, "classes": number, "dropped": "*i32", "exists": "*u8", "member": real}
    types |= dict.fromkeys(("parts", "gradient", "toward", "along"), real)
    types |= {"sharpness": "fp32", "misclassified_weight": "fp32"}
    for classes, slots in ((21, 6), (81, 6), (500, 6)) if largest else ((21, 6), (81, 6)):
        for kernel in (comparing._compare, comparing._differentiate):
            found = compiled(kernel, types, comparing.tile(classes, slots), (), capability)
            yield f"{kernel.fn.__name__.strip('_')} C={classes}", found
    types = {"prototypes": real, "mask": "*u8", "idle": number, "pull": real, "hits": real, "parts": real}
    types |= {"momentum": "fp32", "collapsed": "fp32"}
    for slots, dim in ((6, 256), (16, 1024)) if largest else ((6, 256),):
        for kernel in (prototypes._move, prototypes._health):
            found = compiled(kernel, types, prototypes.tile(dim, slots), (), capability)
            yield f"{kernel.fn.__name__.strip('_')} D={dim}", found


def compiled(
    kernel: Any,
    types: Mapping[str, str],
    sizes: Mapping[str, Any],
    aligned: Sequence[str],
    capability: int,
    rounds_bytes: int = 0,
) -> Compiled:
    """Compile with Triton's own compiler and assembler, and read what they say.

    Args:
        kernel: A jitted function.
        types: Of its arguments, as Triton names them; ``i32`` if not among these.
        sizes: Its constants, and the options of a launch.
        aligned: Arguments that are divisible by 16, beside pointers.
        capability: Of the GPU.
        rounds_bytes: Of rows that a program reads in a round of its loop.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {"num_warps": 4} | {name: sizes[name] for name in ("num_warps", "num_stages") if name in sizes}
    constants = {name: value for name, value in sizes.items() if name not in options}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    places = [i for i, name in enumerate(names) if signature[name].startswith("*") or name in aligned]
    attributes = {(i,): [["tt.divisibility", 16]] for i in places}
    source = ASTSource(kernel, signature, constants, attributes)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    said, listing = _assembled(built.asm["ptx"], Path(triton.__file__).parent / "backends/nvidia/bin")
    return Compiled(
        kernel=kernel.fn.__name__,
        registers=int(re.findall(r"Used (\d+) registers", said)[0]),
        spills=sum(map(int, re.findall(r"(\d+) bytes spill", said))),
        shared=built.metadata.shared,
        instructions=_longest_loop(listing),
        rounds_bytes=rounds_bytes,
        warps=options["num_warps"],
    )


def _assembled(ptx: str, tools: Path) -> tuple[str, str]:
    """What the assembler says of a program, and the machine code as text."""
    target = re.findall(r"\.target (sm_\w+)", ptx)[0]
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        said = _run(tools / "ptxas", f"-arch={target}", "-v", source, "-o", binary).stderr
        return said, _run(tools / "cuobjdump", "-sass", binary).stdout


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True)


def _longest_loop(listing: str) -> int:
    """Instructions from the target of a jump back to the jump: the longest such stretch."""
    lengths = [0]
    for address, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", listing):
        jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if jump is not None and int(jump[1], 16) < int(address, 16):
            lengths.append((int(address, 16) - int(jump[1], 16)) // 16 + 1)
    return max(lengths)


def table(found: dict[Case, Compiled]) -> Table:
    """All cases."""
    shown = Table(
        "Compiled k-means passes",
        ("case", "kernel", "registers", "spills", "shared memory", "instructions", "per 8 KB", "floors"),
        notes=[
            "Instructions: of the loop, per warp and round; per 8 KB: of rows that are read.",
            f"Floors: estimated time of the instructions on an H100 ({ISSUED:.0%} of cycles issue one), in reads of "
            f"the rows at {BANDWIDTH / 1e12:g} TB/s; below 1 memory decides.",
        ],
    )
    for case, kernel in found.items():
        per_8_kb = kernel.instructions * kernel.warps * 8192 / kernel.rounds_bytes
        numbers = (kernel.registers, kernel.spills, kernel.shared, kernel.instructions, round(per_8_kb))
        shown.rows.append([case.name, kernel.kernel, *map(str, numbers), f"{kernel.floors:.2f}"])
    return shown


def steps_table(found: Mapping[str, Compiled]) -> Table:
    """All kernels but the passes."""
    shown = Table(
        "Compiled kernels of the collect, the learn and the clustering step",
        ("case", "registers", "spills", "shared memory", "warps"),
    )
    for name, kernel in found.items():
        shown.rows.append([name, *map(str, (kernel.registers, kernel.spills, kernel.shared, kernel.warps))])
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, and print a table.

    Returns:
        Exit status: 0, or 2 where Triton is missing.
    """
    p = argparse.ArgumentParser(prog="kernels", description=__doc__)
    p.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers there")
    arguments = p.parse_args(argv)
    if os.environ.pop("TRITON_INTERPRET", None) is not None and "triton" in sys.modules:
        print("kernels: TRITON_INTERPRET is set, so that nothing is compiled", file=sys.stderr)
        return 2
    try:
        passes = {case: compile_case(case) for case in cases()}
        steps = {f"sm_{cc} {name}": kernel for cc in CAPABILITIES for name, kernel in (*settling(cc), *learning(cc))}
    except ImportError as error:
        print(f"kernels: {error}; pip install triton", file=sys.stderr)
        return 2
    console = Console(width=140)
    console.print(table(passes).rich())
    console.print(steps_table(steps).rich())
    if arguments.json is not None:
        rows = [asdict(case) | asdict(kernel) | {"floors": kernel.floors} for case, kernel in passes.items()]
        result = {"passes": rows, "steps": {name: asdict(kernel) for name, kernel in steps.items()}}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
