"""A contact sheet of a store: one HTML page, readable offline, that shows every mask and its record under the cursor.

Everything a store says (names, reasons, recipe) is escaped: a share from somebody else is safe to look at.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samdeblur.storage.atoms import AtomMap
from samdeblur.storage.decode import BadImage, read_image
from samdeblur.storage.files import write_durably
from samdeblur.storage.format.layout import DONE, PENDING, QUARANTINED, RECORD_COLUMNS, StoreError
from samdeblur.storage.listing import image_files
from samdeblur.storage.names import Names, select
from samdeblur.storage.plurals import counted
from samdeblur.storage.store import MaskStore, StoreDamaged

FOLDERS = ("blur", "blurred", "input", "lq", "sharp", "target", "gt")
JPEG_QUALITY = 85
DIGITS = 4  # of a record that is not an integer

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Card:
    """One image of the page.

    Attributes:
        size: width, height of the image.
        shown: width, height of the image and the label plane; 0, 0 when quarantined.
        reason: why the image is quarantined; empty when it is not.
        image: JPEG as a data address; empty for flat colour.
        labels: PNG as a data address, the atom of each pixel: low byte in red, high byte in green.
        masks: `atoms`, for each atom 0..K the masks that cover it, the smallest first; `records`, for each mask the
            columns RECORD_COLUMNS, None where there is no value.
    """

    key: str
    size: Size
    shown: Size = (0, 0)
    reason: str = ""
    image: str = ""
    labels: str = ""
    masks: dict[str, list[list[Any]]] | None = None


def write_view(
    store: MaskStore,
    target: Path,
    keys: Sequence[str],
    images: Path | None = None,
    width: int = 480,
    progress: Callable[[int], None] = lambda images: None,
) -> None:
    """Write the page; it appears whole or not at all. One image is decoded at a time, the page is held in memory.

    Args:
        keys: images to show, in this order; the pending ones among them are left out. See `contact_keys`.
        images: a folder with images KEY.png and the like, in it or in its subfolders FOLDERS; used when the store
            holds no images. Masks without an image of their size are shown on flat colour, and counted.
        width: pixels of an embedded image and its labels at most; an image is never enlarged.
        progress: called with 1 for each of `keys`.

    Raises:
        UnknownImage: a key the store does not have.
        StoreDamaged: what the store holds of an image cannot be read.
    """
    folder_images = _ImageFolder(images) if images is not None else None
    cards, missing = [], Counter[str]()
    for key in keys:
        state = store.states[store.position(key)]
        if state == QUARANTINED:
            height, image_width = store.shape(key)
            cards.append(Card(key, (image_width, height), reason=store.error(key)))
        elif state == DONE:
            image = _find_image(store, key, folder_images)
            cards.append(_card(store, key, width, image if isinstance(image, Image.Image) else None))
            if isinstance(image, str):
                missing[image] += 1
        progress(1)

    header = store.header
    here = files("samdeblur.storage.sharing")
    source, paint = (here.joinpath(name).read_text(encoding="utf-8") for name in ("view.html.j2", "paint.js"))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    page = environment.from_string(source).render(
        title=f"{header.dataset} {header.split}: masks",
        facts=_facts(store, cards, missing),
        paint=paint,
        recipe=json.dumps(header.recipe, indent=2, ensure_ascii=False),
        columns=RECORD_COLUMNS,
        cards=cards,
        column=max((card.shown[0] for card in cards), default=0),
    )
    write_durably(target, page.encode())


def contact_keys(store: MaskStore, pattern: str | None, count: int) -> list[str]:
    """At most `count` names that match a glob and are not pending, evenly spread over the store, in its order.

    Args:
        pattern: a name, or a glob as `select` reads it; None for every name.

    Raises:
        StoreError: there are none.
    """
    found = [key for key, state in zip(store.keys, store.states, strict=True) if state != PENDING]
    if pattern is not None:
        found = select(found, pattern)
    if not found:
        which = "" if pattern is None else f" whose name matches {pattern!r} (the first image is {store.keys[0]!r})"
        raise StoreError(f"{store.path}: no image that is prepared{which}")
    places = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    return [found[place] for place in places]


def _facts(store: MaskStore, cards: Sequence[Card], missing: Counter[str]) -> Iterator[str]:
    """Lines under the title."""
    header, total = store.header, len(store)
    states = np.bincount(store.states, minlength=3)
    masks = store.counts[store.states == DONE, 0].sum()
    yield f"dataset {header.dataset}, split {header.split}, fingerprint {header.fingerprint[:12]}"
    yield (
        f"{counted(total, 'image')}: {states[DONE]} done, {states[QUARANTINED]} quarantined, "
        f"{states[PENDING]} pending; "
        f"{counted(masks, 'mask')}; {counted(len(cards), 'image')} on this page"
    )
    if missing:
        reasons = ", ".join(f"{number} {reason}" for reason, number in missing.items())
        yield f"images shown as flat colour: {reasons}"


def _card(store: MaskStore, key: str, width: int, image: Image.Image | None) -> Card:
    atoms, records = store.atoms(key), store.records(key)
    size = atoms.shape[1], atoms.shape[0]
    if not all(size):
        raise StoreDamaged(f"{store.path}: {key}: marked as done, but has no pixels")
    shown = min(width, size[0]), max(1, round(size[1] * min(1, width / size[0])))
    rows, columns = ((np.arange(n) + 0.5) * full / n for n, full in zip(shown[::-1], atoms.shape, strict=True))
    plane = atoms.atoms[np.ix_(rows.astype(int), columns.astype(int))]  # the pixel at the centre of each cell
    labels = Image.fromarray(np.dstack([plane & 255, plane >> 8, np.zeros_like(plane)]).astype(np.uint8))
    return Card(
        key,
        size,
        shown,
        image=_embed(image.resize(shown, Image.Resampling.LANCZOS), "JPEG", quality=JPEG_QUALITY) if image else "",
        labels=_embed(labels, "PNG", optimize=True),
        masks={"atoms": masks_by_atom(atoms), "records": rounded_rows(np.stack([*records.values()], axis=1))},
    )


def masks_by_atom(atoms: AtomMap) -> list[list[int]]:
    """K + 1 lists, the masks on each atom: the smallest first, and of equal ones the last, as in `paint_masks`."""
    rows, masks = atoms.pairs.astype(np.int64).T
    order = np.lexsort((-masks, atoms.mask_areas()[masks], rows))
    starts = np.searchsorted(rows[order], np.arange(1, atoms.n_atoms + 1))
    return [group.tolist() for group in np.split(masks[order], starts)]


def rounded_rows(table: NDArray[np.float64]) -> list[list[int | float | None]]:
    """Rows for display: integers, DIGITS significant digits, None for what is not a finite number."""

    def rounded(value: float) -> int | float | None:
        if not np.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.{DIGITS}g}")

    return [[rounded(value) for value in row] for row in table.tolist()]


class _ImageFolder:
    """The images in a folder, found by the names of images. Raises ListingError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = image_files(folder)
        self._names = Names(self._files)

    def places(self, key: str) -> Iterator[Path]:
        """Files that may be of an image: KEY, FOLDERS/KEY, or as in GoPro with the subfolder last but one."""
        name = PurePosixPath(key)
        within = [sub / name for sub in map(PurePosixPath, FOLDERS)]
        beside = [name.parent / sub / name.name for sub in FOLDERS]
        for place in (name, *within, *beside):
            if (found := self._names.find(str(place))) is not None:
                yield self._files[found]


def _find_image(store: MaskStore, key: str, folder_images: _ImageFolder | None) -> Image.Image | str:
    """The RGB image under the masks of an image, or why there is none."""
    if store.header.images:
        return Image.fromarray(store.image("blurred", key))
    if folder_images is None:
        return "because the store holds masks alone and no folder of images was named"
    problem = f"not found in {folder_images.folder}"
    for path in folder_images.places(key):
        try:
            image = read_image(path)
        except BadImage:
            problem = f"unreadable in {folder_images.folder}"
            continue
        if image.shape[:2] == store.shape(key):
            return Image.fromarray(image)
        problem = f"of another size in {folder_images.folder}"
    return problem


def _embed(image: Image.Image, kind: str, **options: Any) -> str:
    """An image as a data address."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
