"""All that is around a training step."""

from __future__ import annotations

from .around import Around, Surroundings
from .checkpoints import find_checkpoints
from .counts import find_count
from .holes import hole
from .logs import find_logging
from .scores import find_scores
from .settings import find_settings


def find_surroundings(around: Around) -> Surroundings:
    """All of it.

    Raises:
        Lacking: The head cannot do without a part that is missing.
    """
    found = Surroundings(around.place, around.after, around.calls)
    found.names |= {"loss": around.descent.loss, "optimizer": hole("optimizer")}
    with around.findings.bearing():
        found.names["optimizer"] = around.optimizer()
    found.names["net"] = around.bare_network()
    found.names |= find_count(around)
    found.names |= find_settings(around)
    find_scores(around, found)
    find_checkpoints(around, found)
    find_logging(around, found)
    return found
