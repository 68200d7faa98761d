"""Lists of labeled, unlabeled and test images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from brpg_lib.examples.training.data.checks.findings import Findings, Given, Problem, few
from brpg_lib.examples.training.data.folder import listed, partition, read_names
from brpg_lib.examples.training.data.layouts import LAYOUTS
from brpg_lib.examples.training.data.lists import lines_of
from brpg_lib.examples.training.data.lists import partition as partition_lists


def judge_lists(found: Findings, given: Given) -> dict[str, list[str]]:
    """Names of the images that would be labeled, unlabeled and for testing; empty if nobody can tell."""
    try:
        given_lists = _lists(found, given)
    except ValueError as error:
        found.problems.append(Problem("lists", str(error)))
        return {}
    pairs, good = set(found.pairs), set(found.good)
    for name, entries in given_lists.items():
        found.lists[name] = len(entries)
        needs_mask = not name.endswith("unlabeled")
        wrong = []
        for entry in entries:
            if entry not in found.files.images:
                wrong.append(f"{entry}: no such image")
            elif needs_mask and entry not in found.files.masks:
                wrong.append(f"{entry}: no mask")
            elif entry not in (pairs if needs_mask else good):
                wrong.append(f"{entry}: not usable, see above")
        if wrong:
            text = f"{len(wrong)} of {len(entries)} entries of {name}.txt cannot be used: take them out"
            found.problems.append(Problem("lists", text, tuple(wrong)))
        twice = [entry for entry, number in Counter(entries).items() if number > 1]
        if twice:
            found.notices.append(f"{len(twice)} entries of {name}.txt are there twice: {few(twice)}")
    _judge_overlap(found, given_lists)
    if found.layout == "folder":
        try:
            lists = partition(found.root, found.good, found.pairs, given.seed)
        except ValueError as error:
            if not any(problem.kind == "lists" for problem in found.problems):
                found.problems.append(Problem("lists", str(error)))
            return {}
        found.notices += lists.notes
        return {"labeled": lists.labeled, "unlabeled": lists.unlabeled, "test": lists.val}
    if found.layout == "camvid" or not {"labeled", "unlabeled", "val"} <= given_lists.keys():
        return {}
    return {"labeled": given_lists["labeled"], "unlabeled": given_lists["unlabeled"], "test": given_lists["val"]}


def _judge_overlap(found: Findings, lists: dict[str, list[str]]) -> None:
    for name, entries in lists.items():
        for other in lists:
            both = sorted({*entries} & {*lists[other]})
            if not both or name == other:
                continue
            if other == "val":
                text = f"{len(both)} images are in {name}.txt and in val.txt: a score would mean nothing"
                found.problems.append(Problem("lists", text, tuple(both)))
            elif other == name.replace("labeled", "unlabeled") and name != other and "unlabeled" not in name:
                found.notices.append(f"{len(both)} images are in {name}.txt and in {other}.txt: {few(both)}")


def _lists(found: Findings, given: Given) -> dict[str, list[str]]:
    """Entries of the lists, by the name of the list."""
    if found.layout == "folder":
        return listed(found.root)
    if found.layout == "camvid":
        return {path.stem: read_names(path) for path in sorted((found.root / "splits").glob("*.txt"))}
    if found.layout not in LAYOUTS or given.split is None:
        return {}
    layout = LAYOUTS[found.layout]
    lists = Path(given.split).expanduser()
    labeled, unlabeled = partition_lists(lists)
    usual = [found.root / layout.val] if layout.val else []
    beside = [path for path in (lists / "val.txt", lists.parent / "val.txt", *usual) if path.is_file()]
    if not beside:
        raise ValueError(f"{lists}: no val.txt in it or beside it, and {layout.title} comes without one")
    by_path = {path.resolve(): name for name, path in found.files.images.items()}

    def entries(path: Path) -> list[str]:
        images = [(line.split()[0], layout.pair(found.root, line, True).image.resolve()) for line in lines_of(path)]
        return [by_path.get(image, line) for line, image in images]

    return {"labeled": entries(labeled), "unlabeled": entries(unlabeled), "val": entries(beside[0])}
