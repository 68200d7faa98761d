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
from collections.abc import Iterator, Sequence
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
    """Compile with Triton's own compiler and assembler, and read what they say."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from brpg_lib.kernels.lloyd import triton_lloyd

    kernel, sizes = triton_lloyd.kernel_for(case.dim, case.clusters)
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages") if name in sizes}
    constants: dict[str, Any] = {"DIM": case.dim, "CLUSTERS": case.clusters, "CHUNK": triton_lloyd.CHUNK} | sizes
    constants |= {"INDEXED": case.indexed, "WEIGHTED": case.weighted}
    pointers = {"num_rows": "*i64", "index": "*i64", "allowed": "*u8", "active": "*u8", "rows": f"*{case.rows}"}
    floats = ("shift", "centers", "weights", "sums", "counts", "total")
    types = pointers | dict.fromkeys(floats, "*fp32") | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    # As at a launch: pointers, and strides of such rows, are divisible by 16.
    aligned = [i for i, name in enumerate(kernel.arg_names) if name in {*pointers, *floats, "group_stride"}]
    if case.dim % 16 == 0:
        aligned.append(kernel.arg_names.index("row_stride"))
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    built = triton.compile(source, target=GPUTarget("cuda", case.capability, 32), options=options)
    said, listing = _assembled(built.asm["ptx"], Path(triton.__file__).parent / "backends/nvidia/bin")
    return Compiled(
        kernel=kernel.fn.__name__,
        registers=int(re.findall(r"Used (\d+) registers", said)[0]),
        spills=sum(map(int, re.findall(r"(\d+) bytes spill", said))),
        shared=built.metadata.shared,
        instructions=_longest_loop(listing),
        rounds_bytes=sizes["HEIGHT"] * case.dim * WIDTHS[case.rows],
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
        "Compiled kernels",
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
        found = {case: compile_case(case) for case in cases()}
    except ImportError as error:
        print(f"kernels: {error}; pip install triton", file=sys.stderr)
        return 2
    Console(width=140).print(table(found).rich())
    if arguments.json is not None:
        rows = [asdict(case) | asdict(kernel) | {"floors": kernel.floors} for case, kernel in found.items()]
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
