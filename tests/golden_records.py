"""The golden records: inputs and outputs of the published implementation, as plain arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"


def names(kind: str) -> list[str]:
    """Names of the records of one kind: "learn", "collect" or "cluster"."""
    return sorted(path.stem for path in GOLDEN.glob(f"{kind}*.npz"))


LEARN = names("learn")
COLLECT = names("collect")
CLUSTER = names("cluster")


def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of one record; scalars are 0-d arrays."""
    with np.load(GOLDEN / f"{name}.npz") as record:
        return {key: record[key] for key in record.files}


def bank(record: dict[str, np.ndarray], suffix: str = "") -> tuple[np.ndarray, np.ndarray]:
    """A learn record's prototypes, before (suffix "") or after ("_after") its step.

    Returns:
        Prototypes (C, 2, K, D) with zeros where there is none, and their mask (C, 2, K).
    """
    prototypes = np.stack([record[f"prototypes_high{suffix}"], record[f"prototypes_low{suffix}"]], axis=1)
    counts = np.stack([record["num_high"], record["num_low"]], axis=1)
    mask = np.arange(prototypes.shape[2]) < counts[:, :, None]
    return np.where(mask[..., None], prototypes, 0).astype(np.float32), mask


def queue(record: dict[str, np.ndarray], group: int, class_id: int) -> np.ndarray:
    """One queue (n, D + 1) of a collect or cluster record, the confidence last; group 0 = high, 1 = low."""
    return record[f"queue_{('high', 'low')[group]}_{class_id}"]


def sorted_rows(rows: np.ndarray) -> np.ndarray:
    """The rows in lexicographic order, column 0 first: queues equal as sets become equal arrays."""
    return rows[np.lexsort(rows.T[::-1])]
