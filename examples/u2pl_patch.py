"""Patches a checkout of U2PL and trains it for a minute on made-up data, on a GPU or without one.

git clone https://github.com/Haochen-Wang409/U2PL
python -m brpg_lib.examples.u2pl_patch U2PL
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from brpg_lib.examples.checkouts import patch_and_train


def main(argv: Sequence[str] | None = None) -> int:
    """Patch and train. Returns the exit status of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="the clone; it is not changed")
    parser.add_argument("--processes", type=int, default=1, help="ranks (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/u2pl-patch"), help="workspace (default: %(default)s)")
    arguments = parser.parse_args(argv)
    return patch_and_train("u2pl", arguments.checkout, arguments.out, processes=arguments.processes)


if __name__ == "__main__":
    sys.exit(main())
