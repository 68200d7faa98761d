"""What is in a directory of images and masks, what is wrong with it, and with which settings it can be trained on."""

from __future__ import annotations

import shlex
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.data.camvid import CLASS_NAMES as CAMVID_CLASSES
from brpg_lib.examples.training.data.encoding import UNKNOWN, Encoding, mask_values, palette
from brpg_lib.examples.training.data.findings import Findings, Given, Problem, Seen
from brpg_lib.examples.training.data.folder import class_names_in, crop_for, listed, partition, read_names
from brpg_lib.examples.training.data.inventory import affix_of, files_of, layouts_of, renaming
from brpg_lib.examples.training.data.judgement import (
    absent,
    fault_in_classes,
    fault_in_values,
    suggestion_for_colors,
    suggestion_for_values,
)
from brpg_lib.examples.training.data.layouts import LAYOUTS
from brpg_lib.examples.training.data.lists import lines_of
from brpg_lib.examples.training.data.lists import partition as partition_lists
from brpg_lib.examples.training.data.masks import (
    READERS,
    Decode,
    Tally,
    UnreadableError,
    in_threads,
    opened,
    read_mask,
)

PETS_CLASSES = ("pet", "background")
PETS_VALUES = ("1=0", "2=1", "3=ignore")
PRESETS = {
    "folder": "folder/small",
    "camvid": "few_labels/camvid",
    "voc": "voc/classic_92",
    "voc_blended": "voc/blended_662",
    "cityscapes": "cityscapes/labeled_186",
    "coco": "coco/one_in_128",
}
MOST_COLORS = 4096
"""Colors of one mask that are remembered; a photograph has many more."""
PLAIN_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr")
"""Pillow's names for images of 8 bits per channel or less."""
ORIENTATION = 274
"""Number of the EXIF field that tells how a camera was held."""


def examined(
    root: Path, given: Given, readers: int = READERS, progress: Callable[[int, int], object] = lambda done, of: None
) -> Findings:
    """Look into everything in a directory.

    Args:
        root: The directory.
        given: What the user says about it.
        readers: Threads that read files.
        progress: Told how many of how many images are done.

    Raises:
        ValueError: What the user says cannot be.
    """
    found = Findings(root)
    layouts = layouts_of(root)
    if given.layout is not None and given.layout not in layouts:
        raise ValueError(f"--data: expected the layout of {given.layout}, found {', '.join(layouts) or 'no known one'}")
    if not layouts:
        _no_layout(found)
        return found
    found.layout = given.layout or layouts[0]
    if found.layout != "folder" and (given.num_classes or given.encoding):
        raise ValueError(f"--num-classes, --mask-values, --palette: known for {found.layout}; --data folder is another")
    found.files = files_of(root, found.layout)
    decode, names = _known(found, given)
    found.encoding, found.class_names = decode, names
    _read(found, decode, readers, progress)
    _judge_files(found)
    if not found.files.images or not found.pairs:
        if not any(problem.kind in ("layout", "names") for problem in found.problems):
            found.problems.append(Problem("layout", "no image has a mask of its name and size that can be read"))
        return found
    _judge_values(found, given)
    parts = _judge_lists(found, given)
    _judge_classes(found, parts)
    _plan(found, given, parts)
    return found


def _no_layout(found: Findings) -> None:
    commands = renaming(found.root)
    known = ", ".join(layout.title for layout in LAYOUTS.values())
    found.problems.append(
        Problem(
            "layout",
            "expected images/NAME.jpg (or .png) and labels/NAME.png, or the layout of "
            f"{known}, CamVid or Oxford-IIIT Pet; found {', '.join(_shown(found.root)) or 'nothing'}",
        )
    )
    if commands:
        found.commands = [*commands, shlex.join(["brpg", "check-data", str(found.root)])]


def _shown(root: Path, most: int = 8) -> list[str]:
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    return names[:most] + [f"and {len(names) - most} more"] * (len(names) > most)


def _known(found: Findings, given: Given) -> tuple[Decode | None, tuple[str, ...]]:
    """What is known of the values, and of the classes' names, before any file is read."""
    if found.layout in LAYOUTS:
        return LAYOUTS[found.layout].decode, LAYOUTS[found.layout].class_names
    if found.layout == "camvid":
        return None, CAMVID_CLASSES
    if found.layout == "pets":
        return Encoding.of_values(PETS_VALUES), PETS_CLASSES
    encoding = given.encoding
    names = (encoding.names if encoding else ()) or tuple(class_names_in(found.root))
    count = given.num_classes or (encoding.num_classes if encoding else 0) or len(names)
    if names and len(names) != count:
        raise ValueError(f"{found.root / 'classes.txt'}: expected {count} names, found {len(names)}")
    return encoding, names or _numbered(count)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


def _read(found: Findings, decode: Decode | None, readers: int, progress: Callable[[int, int], object]) -> None:
    """Reads all files, in threads."""
    names = list(dict.fromkeys([*found.files.images, *found.files.masks]))
    count = len(found.class_names) or None

    def look(name: str) -> Seen:
        return look_at(name, found.files.images.get(name), found.files.masks.get(name), decode, count)

    for done, seen in enumerate(in_threads(look, names, readers), 1):
        found.seen[seen.name] = seen
        if seen.mask is not None:
            found.values.add(found.files.masks[seen.name], seen.mask)
        progress(done, len(names))


def look_at(
    name: str, image_path: Path | None, mask_path: Path | None, decode: Decode | None, count: int | None
) -> Seen:
    """Reads an image and its label image completely."""
    size, mode, turned, mask, faults = None, "", False, None, []
    if image_path is not None:
        try:
            image = opened(image_path)
            size, mode = image.size, image.mode
            turned = image.getexif().get(ORIENTATION, 1) != 1
        except UnreadableError as error:
            faults.append(str(error))
    if mask_path is not None:
        try:
            mask = read_mask(mask_path, decode, count)
            if len(mask.pixels) > MOST_COLORS:
                mask = mask._replace(pixels=dict(Counter(mask.pixels).most_common(MOST_COLORS)))
        except UnreadableError as error:
            faults.append(str(error))
    return Seen(name, size, mode, turned, mask, tuple(faults))


def _judge_files(found: Findings) -> None:
    """Files that are damaged, missing, alone, or of another size."""
    files, problems = found.files, found.problems
    if not files.images:
        problems.append(Problem("layout", "no images; those in directories of their own are not looked for"))
    if not files.masks:
        kinds = sorted({path.suffix for path in files.others})
        held = f"; found {len(files.others)} files of {', '.join(kinds)}, expected .png" if kinds else ""
        problems.append(Problem("layout", f"no masks, one PNG with the name of each labeled image{held}"))
    faults = [fault for seen in found.seen.values() for fault in seen.faults]
    if faults:
        problems.append(Problem("unreadable", f"{_files(len(faults))} cannot be read", tuple(faults)))
        bad = [_file_of(found, fault) for fault in faults]
        found.commands += _away(found.root, bad)
    if files.same_name:
        same = tuple(str(path) for path in files.same_name)
        problems.append(
            Problem("names", f"{_files(len(same))} have the name of another image, and are never used", same)
        )
    affix = affix_of(files)
    if affix is not None:
        before, after = affix
        problems.append(
            Problem("names", f"masks are named {before}IMAGE{after}.png; expected IMAGE.png, the name of their image")
        )
        folder = next(iter(files.masks.values())).parent
        rename = f'for f in {before}*{after}.png; do g="${{f#{before}}}"; mv "$f" "${{g%{after}.png}}.png"; done'
        found.commands += [f"(cd {shlex.quote(str(folder))} && {rename})"]
    elif files.masks:
        lone = [str(path) for name, path in files.masks.items() if name not in files.images]
        if lone:
            found.notices.append(f"masks without an image, never used: {len(lone)} ({few(lone)})")
        bare = [str(path) for name, path in files.images.items() if name not in files.masks]
        if bare:
            found.notices.append(f"images without a mask, good as unlabeled ones: {len(bare)} ({few(bare)})")
    _judge_sizes(found)


def _judge_sizes(found: Findings) -> None:
    wrong, deep = [], []
    for seen in found.seen.values():
        if seen.size is None:
            continue
        if seen.mode not in PLAIN_MODES:
            deep.append(f"{found.files.images[seen.name]}: mode {seen.mode}")
        if seen.mask is not None and seen.mask.size != seen.size:
            why = ", the image is turned by its EXIF orientation" if seen.turned else ""
            (width, height), (w, h) = seen.size, seen.mask.size
            wrong.append(f"{found.files.masks[seen.name]}: {w}x{h}, its image {width}x{height}{why}")
    if wrong:
        found.problems.append(Problem("size", f"{_files(len(wrong))} have another size than their image", tuple(wrong)))
        found.commands += _away(found.root, [Path(text.split(": ")[0]) for text in wrong])
    turned = [str(found.files.images[seen.name]) for seen in found.seen.values() if seen.turned]
    if turned:
        found.notices.append(
            f"images that viewers turn by their EXIF orientation: {len(turned)} ({few(turned)}); they are read as they "
            "are stored, and a mask that was drawn on the turned image does not fit"
        )
    if deep:
        text = f"{_files(len(deep))} have more than 8 bits per channel, which would be cut off: save them with 8"
        found.problems.append(Problem("mode", text, tuple(deep)))


def _judge_values(found: Findings, given: Given) -> None:
    """What the values of the label images are, and which settings they need."""
    values, count = found.values, len(found.class_names) or None
    if found.layout == "folder" and (found.encoding is None or values.colored):
        if values.colored:
            found.suggestion = suggestion_for_colors(values.colors)
            also = "" if len(values.colored) == values.masks else ", the others values"
            text = f"{len(values.colored)} of {values.masks} masks hold colors{also}"
            if found.suggestion is not None:
                text += f": {found.suggestion.text}"
            if found.suggestion is None:
                text += f", {len(values.colors)} of them or more: too many for classes; save masks as PNG, not resized"
            found.problems.append(Problem("values", text))
        else:
            found.suggestion = suggestion_for_values(values.pixels, count)
            fits = count is not None and len(values.shown(count)) >= 2 and not values.class_pixels[UNKNOWN]
            if found.suggestion is None and not fits:  # another number of classes than was said
                found.suggestion = suggestion_for_values(values.pixels)
            if found.suggestion is None and count is None:
                text = (
                    f"the values {_some(sorted(values.pixels))} do not look like classes; --mask-values can name them"
                )
                found.problems.append(Problem("values", text))
            elif found.suggestion is not None and found.suggestion.mask_values is not None:
                found.problems.append(Problem("values", f"{found.suggestion.why}: {found.suggestion.text}"))
        _take(found)
    told = any(problem.kind == "values" for problem in found.problems)
    if found.class_names and found.suggestion is None and not told:
        fault = fault_in_values(values, len(found.class_names), found.encoding, _hint(found))
        if fault is not None:
            found.problems.append(Problem("values", fault))
    if found.suggestion is not None and found.suggestion.shades:
        found.notices.append(
            "many values lie between the main ones, as JPEG or resizing leaves them: these pixels become ignored"
        )


def _take(found: Findings) -> None:
    """Goes on as if what is suggested had been given."""
    suggestion = found.suggestion
    if suggestion is None:
        return
    if suggestion.palette is not None:
        found.encoding = Encoding.of_palette(palette(suggestion.palette))
    elif suggestion.mask_values is not None:
        found.encoding = Encoding.of_values(mask_values(suggestion.mask_values))
    if len(found.class_names) != suggestion.num_classes:
        if found.class_names:
            said, shown = len(found.class_names), suggestion.num_classes
            text = f"{said} classes were said (--num-classes, classes.txt), and the masks look like {shown}"
            found.problems.append(Problem("classes", text))
        found.class_names = _numbered(suggestion.num_classes)


def _hint(found: Findings) -> str:
    if found.layout in LAYOUTS:
        return LAYOUTS[found.layout].hint or "they must hold class indices"
    return "they must hold class indices"


def _judge_lists(found: Findings, given: Given) -> dict[str, list[str]]:
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


def _judge_classes(found: Findings, parts: dict[str, list[str]]) -> None:
    """The classes of what would be trained and tested on, or of all masks."""
    if not found.class_names:
        return
    groups = {which: [n for n in parts[which] if n in found.seen] for which in ("labeled", "test")} if parts else {}
    found.tallies = {which: tally_of(found, names) for which, names in (groups or {"all": found.pairs}).items()}
    if "labeled" not in found.tallies:
        return
    labeled, test = found.tallies["labeled"], found.tallies["test"]
    if not (labeled.class_pixels[UNKNOWN] or test.class_pixels[UNKNOWN] or labeled.colored or test.colored):
        fault = fault_in_classes(found.root, labeled, test, found.class_names, found.encoding)
        if fault is not None:
            found.problems.append(Problem("classes", fault))
    found.notices += absent(labeled, test, found.class_names, labeled.masks, test.masks)


def tally_of(found: Findings, names: Iterable[str]) -> Tally:
    """The label images of these names, counted by class."""
    counted = Tally()
    for name in names:
        mask = found.seen[name].mask
        if mask is None:
            continue
        path = found.files.masks[name]
        gray = not (isinstance(found.encoding, Encoding) and found.encoding.colors)
        values = (
            {value & 255: number for value, number in mask.pixels.items()} if mask.colored and gray else mask.pixels
        )
        known = np.array([list(values)], np.int64)
        decoded = known if found.encoding is None else found.encoding(known, path)
        classes: Counter[int] = Counter()
        for index, number in zip(decoded[0].tolist(), values.values(), strict=True):
            fits = index == IGNORE_INDEX or 0 <= index < len(found.class_names)
            classes[index if fits else UNKNOWN] += number
        counted.add(path, mask._replace(colored=False, pixels=values, classes=dict(classes)))
    return counted


def _plan(found: Findings, given: Given, parts: dict[str, list[str]]) -> None:
    """What would be trained, and what to type."""
    assert found.layout is not None
    root = str(found.root)
    if found.layout == "pets":
        found.commands.append(shlex.join(["brpg", "demo", "--data", "pets", "--root", root]))
        return
    options = found.suggestion.options if found.suggestion else given.options
    if not options and found.layout == "folder" and not class_names_in(found.root):
        return
    if options and options[0] == "--num-classes" and class_names_in(found.root):
        options = []
    command = ["brpg", "train", PRESETS[found.layout], "--root", root, *options]
    if found.layout in LAYOUTS:
        command += ["--splits", "SPLITS"] if given.split is None else ["--set", f"split={given.split}"]
    if given.seed and found.layout == "folder":
        command += ["--set", f"seed={given.seed}"]
    found.commands.append(shlex.join(command))
    found.training = {"preset": PRESETS[found.layout], **{which: len(names) for which, names in parts.items()}}
    sizes = [min(seen.size) for seen in found.seen.values() if seen.size is not None]
    if found.layout == "folder":
        crop, short_side = crop_for(round(statistics.median(sizes)))
        found.training |= {"num_classes": len(found.class_names), "crop": crop, "short_side": short_side}


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"


def few(items: Sequence[str], most: int = 3) -> str:
    """The first of many, in words."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _some(values: Sequence[int]) -> str:
    return few([str(value) for value in values], 6)


def _file_of(found: Findings, fault: str) -> Path:
    """Which file a reading error is about."""
    paths = [*found.files.images.values(), *found.files.masks.values()]
    return next(path for path in paths if fault.startswith(f"{path}: "))


def _away(root: Path, paths: Sequence[Path]) -> list[str]:
    """Commands that put files where nobody looks for images."""
    said = []
    for folder in dict.fromkeys(path.parent for path in paths):
        aside = root / "set_aside" / folder.name
        moved = [str(path) for path in paths if path.parent == folder]
        said.append(f"mkdir -p {shlex.quote(str(aside))} && {shlex.join(['mv', *moved, str(aside)])}")
    return said
