"""Makes one site of pages that lie all over the repository, where their links work on a code host as well.

Pages link each other by relative paths, the README by absolute addresses (a package index shows it too). Here both
become links within the site where it has the page, and addresses in the repository elsewhere. Equations in ``math``
blocks become MathML, which browsers show without a script.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "README.md": "index.md",
    "adapters/README.md": "adapters.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Pages that are no files of ``docs/``, by their path in the repository."""
PICTURES = (".png", ".svg", ".jpg")
REPOSITORY = re.search(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]  # type: ignore[index]
RAW = REPOSITORY.replace("https://github.com/", "https://raw.githubusercontent.com/") + "/main/"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """Tell the theme and the extensions what is not in ``mkdocs.yml``."""
    config.extra["social"] = [{"icon": "fontawesome/brands/github", "link": REPOSITORY, "name": "Repository"}]
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [{"name": "math", "class": "math", "format": math}]}
    return config


def math(source: str, *_: Any, **__: Any) -> str:
    """LaTeX to MathML."""
    return f'<div class="math">{convert(source.strip(), display="block")}</div>'


def on_files(files: Files, config: Any) -> Files:
    """Add the pages beside the code, and the pictures that any page shows."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for path in sorted({path for file in files.documentation_pages() for path in _pictures(file)}):
        if files.get_file_from_path(_place(path)) is None:
            files.append(File.generated(config, _place(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to where their targets are in the site, or in the repository."""
    source = _source(page.file)

    def pointed(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        path, hash_, anchor = target.partition("#")
        found = _in_repository(path, source)
        if found is None:
            return link[0]
        place = _place(found)
        if place is None:
            where = f"{REPOSITORY}/{'tree' if (ROOT / found).is_dir() else 'blob'}/main/{found}"
        else:
            where = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        return f"{picture}[{LINK.sub(pointed, text)}]({where}{hash_}{anchor})"

    parts = FENCE.split(markdown)
    return "".join(part if FENCE.fullmatch(part) else LINK.sub(pointed, part) for part in parts)


def _source(file: File) -> str:
    """Path of a page in the repository."""
    return Path(file.abs_src_path or "").resolve().relative_to(ROOT).as_posix()


def _in_repository(target: str, source: str) -> str | None:
    """Path in the repository that a link on the page ``source`` leads to, or None if it leads elsewhere."""
    for start in (f"{REPOSITORY}/blob/main/", f"{REPOSITORY}/tree/main/", RAW):
        if target.startswith(start):
            return target.removeprefix(start).rstrip("/")
    if not target or re.match(r"[a-z]+:", target):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _place(path: str) -> str | None:
    """Path in the site of a file of the repository, or None if it is not there."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"pictures/{path.replace('/', '-')}" if path.endswith(PICTURES) else None


def _pictures(file: File) -> set[str]:
    """Pictures that a page shows, by their path in the repository."""
    text = Path(file.abs_src_path or "").read_text()
    found = {_in_repository(target, _source(file)) for _, _, target in LINK.findall(text) if target.endswith(PICTURES)}
    inner = re.findall(r"!\[[^\]]*\]\(([^()\s]+)\)", text)
    return {path for path in found | {_in_repository(target, _source(file)) for target in inner} if path}
