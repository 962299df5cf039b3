"""How datasets lie on disk: which splits a folder holds, and which files of a split belong together.

A layout finds the splits of a folder and lists one as key -> (blurred, sharp). Files are matched by name or by the
dataset's own list, never by position. To teach the package another dataset, write these two functions and add them to
`LAYOUTS`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from samdeblur.pipeline.sources.base import SourceError
from samdeblur.pipeline.sources.listing import NAMED, Pairs, images_in, match_by_name
from samdeblur.storage.listing import folders_in, is_image
from samdeblur.storage.names import nfc

SPLITS = ("train", "val", "test")  # what folders of splits are commonly called
ANY = "*"  # in place of the name of a split: whatever it is called
BLURRED_FOLDERS = ("blur", "blurred", "input", "lq")
SHARP_FOLDERS = ("sharp", "target", "gt")


@dataclass(frozen=True)
class Layout:
    """How a dataset lies on disk.

    Attributes:
        expected: what a folder should hold, with {split} for the name of the split.
        splits: folder -> name of each split in it -> where that split lies.
        list: (where a split lies, its name) -> its pairs. Raises SourceError for what is wrong with all of it.
        dataset: its name; None to take that of the folder.
        published: pairs in each split as its authors count them.
    """

    expected: str
    splits: Callable[[Path], Mapping[str, Path]]
    list: Callable[[Path, str], Pairs]
    dataset: str | None = None
    published: Mapping[str, int] = field(default_factory=dict)


def detect_layout(root: Path, split: str) -> str:
    """The first layout that has this split, or else any, so that its refusal can name those. Raises SourceError."""
    found = {name: layout.splits(root) for name, layout in LAYOUTS.items()}
    for name, splits in found.items():
        if split in splits or ANY in splits:
            return name
    for name, splits in found.items():
        if splits:
            return name
    trees = "; ".join(f"{name}: {layout.expected.format(split=split)}" for name, layout in LAYOUTS.items())
    raise SourceError(
        f"{root}: no known layout; two folders named blur and sharp, with the same file names in both, are enough "
        f"(links will do), or name the folder that holds one of {trees}"
    )


def has_layout(root: Path) -> bool:
    """Whether a folder holds a dataset in any of the layouts."""
    return any(layout.splits(root) for layout in LAYOUTS.values())


def list_split(root: Path, split: str, layout: Layout) -> Pairs:
    """The pairs of a split, by key. Raises SourceError for a split that is not there."""
    split = nfc(split)
    expected = layout.expected.format(split=split)
    splits = layout.splits(root)
    place = splits.get(split) or splits.get(ANY)
    if place is not None:
        return layout.list(place, split)
    if splits:
        there = " or ".join(f"--split {shlex.quote(name)}" for name in sorted(splits)[:NAMED])
        raise SourceError(f"{root}: no split {split!r} there ({expected}); name one that is, {there}")
    raise SourceError(f"{root}: no {expected}; name the folder that holds them, or choose another --layout")


def _folders(root: Path) -> list[Path]:
    """The folders in a folder that may hold a dataset or a split; lost+found of a disk cannot be looked into."""
    sides = {*BLURRED_FOLDERS, *SHARP_FOLDERS}
    inner = (folder for folder in folders_in(root) if folder.name.lower() not in sides)
    return [folder for folder in inner if os.access(folder, os.R_OK | os.X_OK)]


def _split_folders(root: Path) -> dict[str, Path]:
    """Folders that may be a split, by name: those in the root, and the root when it is named like one."""
    itself = {root.name: root} if root.name in SPLITS else {}
    return itself | {nfc(folder.name): folder for folder in _folders(root)}


# Two folders with the same names.


def _pair_folders(folder: Path) -> tuple[Path, Path] | None:
    """The folder of blurred images and that of sharp ones; their case does not matter."""
    inner = {path.name.lower(): path for path in reversed(folders_in(folder))}
    blurred = next((inner[name] for name in BLURRED_FOLDERS if name in inner), None)
    sharp = next((inner[name] for name in SHARP_FOLDERS if name in inner), None)
    return (blurred, sharp) if blurred and sharp else None


def _pairs_splits(root: Path) -> dict[str, Path]:
    """The root itself serves any split, unless folders in it are named like splits."""
    splits = {nfc(folder.name): folder for folder in _folders(root) if _pair_folders(folder)}
    return splits | ({ANY: root} if _pair_folders(root) and not splits.keys() & {*SPLITS} else {})


def _list_pairs(folder: Path, split: str) -> Pairs:
    folders = _pair_folders(folder)
    return match_by_name(images_in(folders[0]), images_in(folders[1])) if folders else {}


# GoPro: train/GOPR0372_07_00/{blur,sharp}/000047.png.


def _gopro_splits(root: Path) -> dict[str, Path]:
    def is_sequence(folder: Path) -> bool:
        return (folder / "sharp").is_dir() and (folder.name.startswith("GOPR") or (folder / "blur").is_dir())

    def holds_sequences(folder: Path) -> bool:
        return any(is_sequence(inner) for inner in _folders(folder))

    return {name: folder for name, folder in _split_folders(root).items() if holds_sequences(folder)}


def _list_gopro(folder: Path, split: str) -> Pairs:
    blurred: dict[str, Path] = {}
    sharp: dict[str, Path] = {}
    for sequence in folders_in(folder):
        for side, images in (("blur", blurred), ("sharp", sharp)):
            if (sequence / side).is_dir():
                images |= {f"{nfc(sequence.name)}/{key}": path for key, path in images_in(sequence / side).items()}
    return match_by_name(blurred, sharp)


# RealBlur-J: RealBlur-J_ECC_.../scene001/{gt/gt_1.png,blur/blur_1.png}, and a list of pairs for each split.


def _realblur_scenes(root: Path, holds: Callable[[Path], bool]) -> Path | None:
    """The folder of the scenes: this one, one in it, or one in a folder in it, by its name or by what it holds."""

    def is_it(folder: Path) -> bool:
        return folder.name.startswith("RealBlur-J_ECC") or any(holds(scene) for scene in _folders(folder))

    inner = _folders(root)
    nested = (found for folder in inner for found in _folders(folder) if found.name.startswith("RealBlur-J_ECC"))
    return next((folder for folder in (root, *inner) if is_it(folder)), None) or next(nested, None)


def _may_be_scene(folder: Path) -> bool:
    return folder.name.startswith("scene") and (folder / "gt").is_dir()


def _is_scene(folder: Path) -> bool:
    """A scene of RealBlur-J and no other: blur/blur_N beside gt/gt_N."""

    def holds(side: str) -> bool:
        inner = folder / side
        return inner.is_dir() and any(re.match(rf"{side}_\d+\.", name) for name in os.listdir(inner) if is_image(name))

    return folder.name.startswith("scene") and holds("gt") and holds("blur")


def _realblur_list(root: Path, scenes: Path | None, split: str) -> Path | None:
    places = (root, scenes.parent, scenes) if scenes else (root,)
    files = (place / f"RealBlur_J_{split}_list.txt" for place in places)
    return next((file for file in files if file.is_file()), None)


def _realblur_splits(root: Path) -> dict[str, Path]:
    splits = {"train": root, "test": root}
    scenes, near = _realblur_scenes(root, _is_scene), _realblur_scenes(root, _may_be_scene)
    return splits if scenes or any(_realblur_list(root, near, split) for split in splits) else {}


def _list_realblur(root: Path, split: str) -> Pairs:
    scenes = _realblur_scenes(root, _is_scene) or _realblur_scenes(root, _may_be_scene)
    if scenes is None:
        raise SourceError(f"{root}: no folder RealBlur-J_ECC_... of images there; put it beside the lists")
    table = _realblur_list(root, scenes, split)
    if table is None:
        missing = f"RealBlur_J_{split}_list.txt"
        raise SourceError(f"{root}: {missing} is missing, which says what the split is; put it beside {scenes.name}")
    images = images_in(scenes)
    pairs: Pairs = {}
    for number, line in enumerate(table.read_text("utf-8-sig", errors="replace").splitlines(), 1):
        if line.strip():
            scene, index = _realblur_line(nfc(line), f"{table}: line {number}")
            blurred, sharp = f"{scene}/blur/blur_{index}", f"{scene}/gt/gt_{index}"
            pairs[f"{scene}/blur_{index}"] = (images.get(blurred), images.get(sharp))
    return dict(sorted(pairs.items()))


def _realblur_line(line: str, where: str) -> tuple[str, str]:
    """Scene and number of a pair; both files must say the same ones. Folders before the scene do not matter."""
    pattern = r"(?:\S*/)?([^/\s]+)/gt/gt_(\w+)\.\w+\s+(?:\S*/)?([^/\s]+)/blur/blur_(\w+)\.\w+"
    found = re.fullmatch(pattern, line.replace("\\", "/").strip())
    if found is None or found.group(1, 2) != found.group(3, 4):
        raise SourceError(
            f"{where} names no pair, such as scene001/gt/gt_1.png scene001/blur/blur_1.png, but "
            f"{line.strip()[:160]!r}; correct the line or remove it"
        )
    return found[1], found[2]


# REDS: val/{val_sharp,val_blur,val_blur_jpeg}/000/00000000.png, also without the folder val.


def _reds_side(root: Path, split: str, kind: str) -> Path | None:
    places = (root / split / f"{split}_{kind}", root / f"{split}_{kind}")
    return next((place for place in places if place.is_dir()), None)


def _reds_layout(dataset: str, blurred: str, sibling: str = "") -> Layout:
    """The layout of one kind of blurred images. A split without any is taken for it, unless it has the sibling."""

    def is_split(root: Path, name: str) -> bool:
        without = _reds_side(root, name, "sharp") and not (sibling and _reds_side(root, name, sibling))
        return bool(_reds_side(root, name, blurred) or without)

    def splits(root: Path) -> dict[str, Path]:
        names = {name.removesuffix("_sharp").removesuffix(f"_{blurred}") for name in _split_folders(root)}
        return {name: root for name in names if is_split(root, name)}

    def list_pairs(root: Path, split: str) -> Pairs:
        sides = {kind: _reds_side(root, split, kind) for kind in (blurred, "sharp")}
        for kind, folder in sides.items():
            if folder is None:
                raise SourceError(f"{root}: no folder {split}_{kind} there; unpack that part of {dataset} too")
        return match_by_name(*(images_in(folder) for folder in sides.values() if folder))

    expected = f"folders {{split}}_sharp and {{split}}_{blurred}, here or in {{split}}/"
    return Layout(expected, splits, list_pairs, dataset, {"train": 24000, "val": 3000})


# ReLoBlur: train/s01/00/00_{sharp,blur}.png.


def _reloblur_splits(root: Path) -> dict[str, Path]:
    def holds_scenes(folder: Path) -> bool:
        """Judged by the first folder of images."""
        for take in (take for scene in _folders(folder) for take in _folders(scene)):
            if names := [os.path.splitext(name)[0] for name in os.listdir(take) if is_image(name)]:
                return any(name.endswith(("_blur", "_sharp")) for name in names)
        return False

    return {name: folder for name, folder in _split_folders(root).items() if holds_scenes(folder)}


def _list_reloblur(folder: Path, split: str) -> Pairs:
    images = images_in(folder)
    blurred, sharp = (
        {key.removesuffix(ending): path for key, path in images.items() if key.endswith(ending)}
        for ending in ("_blur", "_sharp")
    )
    return match_by_name(blurred, sharp)


LAYOUTS: dict[str, Layout] = {
    "gopro": Layout(
        "folders {split}/GOPR.../blur and sharp", _gopro_splits, _list_gopro, "GoPro", {"train": 2103, "test": 1111}
    ),
    "realblur-j": Layout(
        "RealBlur_J_{split}_list.txt beside the folder RealBlur-J_ECC_...",
        _realblur_splits,
        _list_realblur,
        "RealBlur-J",
        {"train": 3758, "test": 980},
    ),
    "reds": _reds_layout("REDS", "blur", sibling="blur_jpeg"),
    "reds-jpeg": _reds_layout("REDS-JPEG", "blur_jpeg"),
    "reloblur": Layout(
        "files {split}/s01/00/00_blur.png and 00_sharp.png",
        _reloblur_splits,
        _list_reloblur,
        "ReLoBlur",
        {"train": 2010, "test": 395},
    ),
    "pairs": Layout(
        f"folders {'|'.join(BLURRED_FOLDERS)} and {'|'.join(SHARP_FOLDERS)} with the same names, here or in {{split}}/",
        _pairs_splits,
        _list_pairs,
    ),
}
