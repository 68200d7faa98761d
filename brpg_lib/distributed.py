"""For trainings of several processes: what a user of heads may need beside them."""

from __future__ import annotations

from brpg_lib.ranks.agreement import require_same_everywhere
from brpg_lib.ranks.collectives import all_reduce_sum, gather_rows, rank, world_size

__all__ = ["all_reduce_sum", "gather_rows", "rank", "require_same_everywhere", "world_size"]
