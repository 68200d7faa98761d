"""Patches a checkout of UniMatch or UniMatch V2 and trains it for a minute on made-up data, on a GPU or without one.

git clone https://github.com/LiheYoung/UniMatch
python -m brpg_lib.examples.unimatch_patch UniMatch
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
    parser.add_argument("--script", help="unimatch.py, unimatch_v2.py or fixmatch.py (default: not fixmatch.py)")
    parser.add_argument("--processes", type=int, default=1, help="ranks (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/unimatch-patch"), help="workspace (%(default)s)")
    arguments = parser.parse_args(argv)
    framework = "unimatch-v2" if (arguments.checkout / "unimatch_v2.py").is_file() else "unimatch"
    return patch_and_train(
        framework, arguments.checkout, arguments.out, script=arguments.script, processes=arguments.processes
    )


if __name__ == "__main__":
    sys.exit(main())
