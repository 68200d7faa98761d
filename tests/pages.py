"""The pages of the documentation, and how to read them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("[!.]*/README.md"), *(ROOT / "docs").glob("*.md")})
"""Those that people read: beside the code, and in ``docs/``."""
REPOSITORY = re.findall(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
"""The one place where the address is defined."""
STARTS = (f"{REPOSITORY}/blob/main/", REPOSITORY.replace("//github.", "//raw.githubusercontent.") + "/main/")


def blocks(page: Path, language: str) -> list[str]:
    """Blocks of code on a page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def targets(page: Path) -> list[str]:
    """What the links and pictures of a page lead to, outside of blocks of code."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^()\s]+)\)", text)
