"""The sheet of images: where a prior gains most over no prior, and where it fails worst."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from plan import Cell, Size, Store, Variant, variants
from summary import BASELINE, Found, differences

from samdeblur.evaluation.restore import Restorer
from samdeblur.evaluation.results import Inference
from samdeblur.models import load_network
from samdeblur.storage import open_store
from samdeblur.storage.sharing.paint import paint_masks

Picture = NDArray[np.uint8]
SIDE = 200
COLUMNS = ("blurred", "masks", "without prior", "with prior", "changed, x8", "sharp")


def draw_gallery(size: Size, out: Path, found: Found, variant: Variant, path: Path, each: int = 4) -> None:
    """Rows of images: those with the largest gain in the mean over seeds, then those with the largest loss.

    At most one of each scene, and one of each set per half, so that a page shows more than one thing.
    """
    gains = []
    for family in size.families:
        if family in found[variant.name]:
            keys = sorted(open_store(out / "stores" / Store(family, variant.masks).place).ready_keys)
            over = differences(found[variant.name][family], found[BASELINE][family])["psnr"]
            gains += [(gain, family, key) for key, gain in zip(keys, over.mean(axis=0), strict=True)]
    gains.sort(reverse=True)
    rows = [_header()]
    for title, ordered in (("Largest gains", gains), ("Worst failures", gains[::-1])):
        rows.append(_line(f"{title} of {variant.name} over none, mean of {len(over)} seeds; images of seed 0"))
        rows += [_row(size, out, variant, *chosen) for chosen in _varied(ordered)[:each]]
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


def _varied(ordered: list[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    chosen: list[tuple[float, str, str]] = []
    for gain, family, key in ordered:
        if all(family != other and key != of_other for _, other, of_other in chosen):
            chosen.append((gain, family, key))
    return chosen


def _row(size: Size, out: Path, variant: Variant, gain: float, family: str, key: str) -> Picture:
    store = open_store(out / "stores" / Store(family, variant.masks).place)
    blurred, sharp, atoms = store.image("blurred", key), store.image("sharp", key), store.atoms(key)
    plain, ours = (
        Restorer(load_network(out / "runs" / Cell(v, 0).place / "last.safetensors"), Inference())(blurred, atoms).image
        for v in (variants(size)[0], variant)
    )
    changed = np.clip(128 + 8 * (ours.astype(int) - plain), 0, 255).astype(np.uint8)
    columns = (blurred, paint_masks(blurred, atoms), plain, ours, changed, sharp)
    return np.vstack([np.hstack([_square(image) for image in columns]), _line(f"{family} {key}: {gain:+.2f} dB")])


def _square(image: Picture) -> Picture:
    """The middle of an image."""
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    square = image[top : top + side, left : left + side]
    scaled = cv2.resize(square, (SIDE - 4, SIDE - 4), interpolation=cv2.INTER_CUBIC)
    return cv2.copyMakeBorder(scaled, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def _header() -> Picture:
    return np.hstack([_line(text, SIDE) for text in COLUMNS])


def _line(text: str, width: int = SIDE * len(COLUMNS)) -> Picture:
    line = np.full((26, width, 3), 255, np.uint8)
    return cv2.putText(line, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
