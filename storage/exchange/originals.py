"""The images that imported masks were made of: their sizes are compared, and their digests go into the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from samdeblur.storage.decode import BadImage, image_shape, read_image
from samdeblur.storage.exchange.annotations import Listing
from samdeblur.storage.exchange.rle import ExchangeError
from samdeblur.storage.files import sha256_file
from samdeblur.storage.format.layout import pixel_digest
from samdeblur.storage.listing import ListingError, image_files
from samdeblur.storage.names import Names
from samdeblur.storage.suffixes import LOSSY_SUFFIXES


def with_originals(listing: Listing, folder: Path) -> Listing:
    """The listing with digests of images that are named like its keys, with a suffix or as they are.

    They also say how large an image is where the source does not. Digests are of pixels, or of files when one of the
    images is of a form that decoders disagree on. An image without a file, of another size, or of another digest
    than the listing claims, cannot be used.

    Raises:
        ExchangeError: no file of any image in this folder, or two of one name.
    """
    try:
        files = image_files(folder)
    except ListingError as error:
        raise ExchangeError(str(error)) from error
    names = Names(files)
    found = [files.get(names.find(key) or "") for key in listing.keys]
    if not any(found):
        raise ExchangeError(f"{folder}: none of {len(found)} images is there, such as {listing.keys[0]}.png")
    shapes, problems = list(listing.shapes), dict(listing.problems)
    for position in listing.sizeless:
        path = found[position]
        try:
            shapes[position] = (0, 0) if path is None else image_shape(path)
        except BadImage as error:
            problems[position] = str(error)
    sizeless = {position: why for position, why in listing.sizeless.items() if shapes[position] == (0, 0)}
    kind = "file" if any(path and path.suffix.lower() in LOSSY_SUFFIXES for path in found) else "pixels"

    def digest(position: int) -> bytes:
        path = found[position]
        if path is None:
            raise ExchangeError(f"{folder}: no image of this name")
        taken = _digest(path, kind, shapes[position])
        if listing.digest_kind == kind and listing.digest(position) != taken:
            raise ExchangeError(f"{path}: not the image that the masks were made of")
        return taken

    return replace(listing, shapes=shapes, problems=problems, sizeless=sizeless, digest_kind=kind, digest=digest)


def image_names(keys: Sequence[str], folder: Path | None, suffix: str) -> Callable[[str], str]:
    """What the files of images are called: as in a folder, or else with a suffix.

    Raises:
        ExchangeError: the folder has none of them, or two of one name.
    """
    try:
        files = image_files(folder) if folder else {}
    except ListingError as error:
        raise ExchangeError(str(error)) from error
    names = Names(files)
    there = {key: files[found] for key in keys if (found := names.find(key))}
    if folder and not there:
        raise ExchangeError(f"{folder}: none of {len(keys)} images is there, such as {keys[0]}.png")

    def name(key: str) -> str:
        if folder and key in there:
            return there[key].relative_to(folder).as_posix()
        return key if key.lower().endswith(suffix.lower()) else f"{key}{suffix}"

    return name


def _digest(path: Path, kind: str, shape: tuple[int, int]) -> bytes:
    """Raises ExchangeError for a file that is no image of (H, W) pixels."""
    try:
        found = image_shape(path)
        if found != shape:
            size, masks = f"{found[1]}x{found[0]}", f"{shape[1]}x{shape[0]}"
            raise ExchangeError(f"{path}: the image is {size}, its masks are {masks}")
        image = read_image(path)
        return sha256_file(path) if kind == "file" else pixel_digest(image)
    except BadImage as error:
        raise ExchangeError(str(error)) from error
