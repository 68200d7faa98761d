"""Checkpoints written by earlier versions of the library load, and go on as they did then.

``python tests/test_records.py`` writes the record of the version at hand, in `records/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import head, run, state

from brpg_lib import PrototypeHead, checkpoint

RECORDS = sorted((Path(__file__).parent / "records").glob("checkpoint_*.pt"))
STEPS = {"collect": 3, "learn": 7}
END = 13


def made_then() -> PrototypeHead:
    return head(
        recluster_every=4, class_adaptive=(0.2, 0.95), adaptive_momentum=0.9, pseudo_label_share=0.4, queue_size=30
    )


@pytest.mark.parametrize("phase", STEPS)
@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_goes_on_as_then(record: Path, phase: str) -> None:
    then = torch.load(record, weights_only=True)
    module = made_then()
    module.load_state_dict(then[phase])
    assert module.iteration == STEPS[phase]
    run(module, END - STEPS[phase])
    end = made_then()
    end.load_state_dict(then["end"])
    now = state(module)
    for name, value in state(end).items():
        if not name.endswith("_extra_state"):
            torch.testing.assert_close(now[name], value, rtol=1e-5, atol=1e-5, msg=name)  # another processor may differ


def test_there_is_a_record() -> None:
    assert RECORDS


def write() -> None:
    record: dict[str, Any] = {}
    for name, steps in (STEPS | {"end": END}).items():
        record[name] = state(run(made_then(), steps))
    torch.save(record, Path(__file__).parent / "records" / f"checkpoint_{checkpoint.VERSION}.pt")


if __name__ == "__main__":
    write()
