"""Where pairs of blurred and sharp images come from: folders in known layouts, and the embedded sample.

A layout is a function that lists a folder and returns a `FolderSource`; add one to `LAYOUTS` to teach the package a
dataset. Pairs are matched by name, never by position.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from samdeblur.storage import AtomMap
from samdeblur.storage.files import sha256_file
from samdeblur.storage.layout import pixel_digest
from samdeblur.storage.pictures import LOSSY_SUFFIXES, SUFFIXES

BLURRED_FOLDERS = ("blur", "blurred", "input", "lq")
SHARP_FOLDERS = ("sharp", "target", "gt")


class SourceError(ValueError):
    """A folder that holds no pairs, or whose pairs do not match."""


class BadImage(ValueError):
    """An image that cannot be used; the rest of its dataset can."""


@dataclass(frozen=True)
class ImagePair:
    """A blurred image and its sharp counterpart, (H, W, 3) uint8 RGB each, and the digest of the blurred source.

    `masks` are the true ones, of sources that know them.
    """

    blurred: NDArray[np.uint8]
    sharp: NDArray[np.uint8]
    digest: bytes
    masks: AtomMap | None = None


class Source(Protocol):
    """A dataset split that can be listed and read. Sent to workers, so small: `subset` narrows it to one block."""

    @property
    def dataset(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def keys(self) -> Sequence[str]:
        """Names of the images, sorted, unique."""
        ...

    @property
    def digest(self) -> str:
        """What `ImagePair.digest` is the SHA-256 of: "pixels", or "file" for sources decoders disagree on."""
        ...

    def shape(self, key: str) -> tuple[int, int]:
        """Height and width of the blurred image, without decoding it. Raises BadImage."""
        ...

    def read(self, key: str) -> ImagePair:
        """Decode a pair. Raises BadImage."""
        ...

    def subset(self, keys: Iterable[str]) -> Source: ...


@dataclass(frozen=True)
class FolderSource:
    """Pairs of image files. `files` maps a key to the paths of the blurred and the sharp file."""

    dataset: str
    split: str
    files: Mapping[str, tuple[Path, Path]]
    digest: str

    @property
    def keys(self) -> Sequence[str]:
        return list(self.files)

    def shape(self, key: str) -> tuple[int, int]:
        path = self.files[key][0]
        try:
            with Image.open(path) as image:
                return image.height, image.width
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise BadImage(f"{path}: {_reason(error)}") from error

    def read(self, key: str) -> ImagePair:
        blurred_path, sharp_path = self.files[key]
        blurred, sharp = read_image(blurred_path), read_image(sharp_path)
        if blurred.shape != sharp.shape:
            sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (blurred, sharp))
            raise BadImage(f"{blurred_path}: blurred and sharp differ in size, {sizes}")
        digest = pixel_digest(blurred) if self.digest == "pixels" else sha256_file(blurred_path)
        return ImagePair(blurred, sharp, digest)

    def subset(self, keys: Iterable[str]) -> FolderSource:
        return replace(self, files={key: self.files[key] for key in keys})


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an 8-bit grey or RGB file to (H, W, 3) uint8 RGB. Raises BadImage."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("RGB", "L"):
                raise BadImage(f"{path}: pixel format {image.mode}; convert it to 8-bit RGB")
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise BadImage(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).rstrip(".")


def open_source(
    location: str, split: str, layout: str = "auto", dataset: str | None = None, skip_unpaired: bool = False
) -> Source:
    """The source at a folder, or one of this package for the locations `sample` and `worlds[:COUNT[:SIZE]]`.

    Args:
        location: a folder, or the name of a source of this package.
        split: names the split; the native layouts have a folder of this name.
        layout: a key of LAYOUTS, "sample", "worlds", or "auto".
        dataset: name written into the store; by default that of the layout or the folder.
        skip_unpaired: leave out images without a counterpart instead of refusing the folder.

    Raises:
        FileNotFoundError: no such folder.
        SourceError: no images, unpaired names, unknown layout or split.
    """
    if location == "sample" and layout in ("auto", "sample"):
        from samdeblur.pipeline.sample import SampleSource  # the sample imports this module

        return SampleSource.of(split)
    if location.split(":")[0] == "worlds" and layout in ("auto", "worlds"):
        from samdeblur.pipeline.worlds import WorldSource

        return WorldSource.of(location, split)
    root = Path(location)
    if not root.is_dir():
        raise FileNotFoundError(f"{location}: no such folder")
    if layout == "auto":
        layout = next((name for name, entry in LAYOUTS.items() if entry.detect(root, split)), "")
        if not layout:
            raise SourceError(
                f"{location}: no known layout; expected two folders with the same names "
                f"({'|'.join(BLURRED_FOLDERS)} and {'|'.join(SHARP_FOLDERS)}), in it or in {split}/, or GoPro's "
                f"{split}/GOPR.../blur and sharp"
            )
    elif layout not in LAYOUTS:
        raise SourceError(f"unknown layout {layout!r}, choose from {', '.join(['auto', 'sample', 'worlds', *LAYOUTS])}")
    entry = LAYOUTS[layout]
    files = entry.list(root, split, skip_unpaired)
    if not files:
        raise SourceError(f"{location}: no images ({', '.join(sorted(SUFFIXES))}) in the {layout} layout")
    lossy = any(blurred.suffix.lower() in LOSSY_SUFFIXES for blurred, _ in files.values())
    name = dataset or entry.dataset or root.resolve().name
    return FolderSource(name, split, files, "file" if lossy else "pixels")


Files = dict[str, tuple[Path, Path]]


@dataclass(frozen=True)
class Layout:
    """How a dataset lies on disk. `dataset` is its name, None to take the folder's."""

    detect: Callable[[Path, str], bool]
    list: Callable[[Path, str, bool], Files]
    dataset: str | None = None


def _pair_folders(root: Path, split: str) -> tuple[Path, Path] | None:
    for base in (root / split, root):
        blurred = next((base / name for name in BLURRED_FOLDERS if (base / name).is_dir()), None)
        sharp = next((base / name for name in SHARP_FOLDERS if (base / name).is_dir()), None)
        if blurred and sharp:
            return blurred, sharp
    return None


def _list_pairs(root: Path, split: str, skip_unpaired: bool) -> Files:
    folders = _pair_folders(root, split)
    if folders is None:
        raise SourceError(f"{root}: no folders {'|'.join(BLURRED_FOLDERS)} and {'|'.join(SHARP_FOLDERS)}")
    return match_by_name(images_in(folders[0]), images_in(folders[1]), root, skip_unpaired)


def _is_gopro(root: Path, split: str) -> bool:
    return any((root / split).glob("*/sharp"))


def _list_gopro(root: Path, split: str, skip_unpaired: bool) -> Files:
    if not (root / split).is_dir():
        raise SourceError(f"{root}: no split {split!r} there")
    sides: list[dict[str, Path]] = [{}, {}]
    for sequence in sorted((root / split).iterdir()):
        for side, folder in zip(sides, ("blur", "sharp"), strict=True):
            side |= {f"{sequence.name}/{name}": path for name, path in images_in(sequence / folder).items()}
    return match_by_name(sides[0], sides[1], root / split, skip_unpaired)


LAYOUTS = {
    "gopro": Layout(_is_gopro, _list_gopro, "GoPro"),
    "pairs": Layout(lambda root, split: _pair_folders(root, split) is not None, _list_pairs),
}


def images_in(folder: Path) -> dict[str, Path]:
    """Image files below a folder by their relative name without suffix. Raises SourceError for ambiguous names."""
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                key = path.relative_to(folder).with_suffix("").as_posix()
                if key in found:
                    raise SourceError(f"{path}: and {found[key].name} have the same name; keep one of them")
                found[key] = path
    return found


def match_by_name(blurred: dict[str, Path], sharp: dict[str, Path], where: Path, skip_unpaired: bool) -> Files:
    """Pair two listings by key, sorted. Raises SourceError that lists the unpaired names, unless they are skipped."""
    unpaired = sorted(blurred.keys() ^ sharp.keys())
    if unpaired and not skip_unpaired:
        named = ", ".join(f"{key} (no {'sharp' if key in blurred else 'blurred'})" for key in unpaired[:8])
        more = f" and {len(unpaired) - 8} more" if len(unpaired) > 8 else ""
        raise SourceError(
            f"{where}: {len(unpaired)} images without a counterpart: {named}{more}; "
            "complete the folder or leave them out with --skip-unpaired"
        )
    return {key: (blurred[key], sharp[key]) for key in sorted(blurred.keys() & sharp.keys())}
