"""What several commands understand on their command line."""

from __future__ import annotations

import argparse
import json
from typing import Any


def setting(text: str) -> tuple[str, Any]:
    """``NAME=VALUE``: a number, true, false, null or a list as JSON writes it, or else a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        if value[:1] in '[{"':
            raise argparse.ArgumentTypeError(f"{name}: {value!r} is not JSON") from None
        return name, value
