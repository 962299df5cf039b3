"""True masks made worse, in one way at a time and by a known amount: names such as `true-moved-1.5`.

Every function takes the masks of an image, (M, H, W) bool, none empty, a random generator and an amount; gives others.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from samdeblur.storage import AtomMap

Masks = NDArray[np.bool_]


def degraded(masks: AtomMap, kind: str, seed: int) -> AtomMap:
    """The masks of a kind, from the true ones; masks of which nothing is left are left out."""
    what, _, amount = kind.removeprefix("true-").rpartition("-")
    rng, true = np.random.default_rng(seed), masks.to_masks()
    found = displaced(true, rng, 3.0) if kind == "true-displaced" else WAYS[what](true, rng, amount)
    return AtomMap.from_masks(found[found.any(axis=(1, 2))], masks.shape)


def displaced(masks: Masks, rng: np.random.Generator, pixels: float) -> Masks:
    """Every mask moved by so many pixels, rounded, in a direction of its own; what leaves the image is lost."""
    angles = rng.uniform(0, 2 * np.pi, len(masks))
    return _shifted(masks, np.round(pixels * np.stack([np.sin(angles), np.cos(angles)], axis=1)).astype(int))


def moved(masks: Masks, rng: np.random.Generator, amount: str) -> Masks:
    """As `displaced`, but rounded up or down at random, so that the mean is the amount below a pixel too.

    "any" draws the amount of each mask between 0 and 3 pixels.
    """
    angles = rng.uniform(0, 2 * np.pi, len(masks))
    far = rng.uniform(0, 3, len(masks)) if amount == "any" else np.full(len(masks), float(amount))
    exact = far[:, None] * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return _shifted(masks, np.floor(exact + rng.random(exact.shape)).astype(int))


def _shifted(masks: Masks, shifts: NDArray[np.int_]) -> Masks:
    """Masks moved down and right by (M, 2) pixels."""
    _, height, width = masks.shape
    result = np.zeros_like(masks)
    for mask, (down, right), target in zip(masks, shifts.tolist(), result, strict=True):
        to = np.s_[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
        of = np.s_[max(0, -down) : height + min(0, -down), max(0, -right) : width + min(0, -right)]
        target[to] = mask[of]
    return result


def eroded(masks: Masks, rng: np.random.Generator, amount: str) -> Masks:
    return _each(masks, lambda mask: cv2.erode(mask, _disc(int(amount)), borderValue=1))


def dilated(masks: Masks, rng: np.random.Generator, amount: str) -> Masks:
    return _each(masks, lambda mask: cv2.dilate(mask, _disc(int(amount))))


def smoothed(masks: Masks, rng: np.random.Generator, amount: str) -> Masks:
    """Where a Gaussian blur of so many pixels (its standard deviation) leaves at least a half."""
    sigma, edge = float(amount), cv2.BORDER_REPLICATE
    return _each(masks, lambda mask: cv2.GaussianBlur(255 * mask, (0, 0), sigma, borderType=edge) > 127)


def drawn(masks: Masks, rng: np.random.Generator, amount: str) -> Masks:
    """Drawn at half or a quarter of the resolution: cells of which at least a half is covered, whole."""
    step = {"half": 2, "quarter": 4}[amount]

    def draw(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
        height, width = mask.shape
        small = cv2.resize(mask * np.float32(1), (-(-width // step), -(-height // step)), interpolation=cv2.INTER_AREA)
        return np.kron(small >= 0.5, np.ones((step, step), bool))[:height, :width]

    return _each(masks, draw)


def without(masks: Masks, rng: np.random.Generator, amount: str) -> Masks:
    """A share of the masks left out."""
    return masks[rng.random(len(masks)) >= float(amount)]


def joined(masks: Masks, rng: np.random.Generator, amount: str) -> Masks:
    """So many masks in one: one taken at random, and those that have their middles nearest to its own."""
    middles = np.array([np.argwhere(mask).mean(axis=0) for mask in masks]).reshape(-1, 2)
    left, groups = rng.permutation(len(masks)), []
    while len(left):
        far = np.linalg.norm(middles[left] - middles[left[0]], axis=1)
        order = np.argsort(far, kind="stable")
        near, left = left[order[: int(amount)]], left[np.sort(order[int(amount) :])]
        groups.append(masks[near].any(axis=0))
    return np.array(groups, bool).reshape(-1, *masks.shape[1:])


def cut(masks: Masks, rng: np.random.Generator, amount: str) -> Masks:
    """Each mask in so many parts of equal area, by parallel lines in a direction of its own."""
    count, parts = int(amount), []
    rows, columns = np.indices(masks.shape[1:])
    for mask in masks:
        down, right = rng.normal(size=2)
        along = down * rows + right * columns
        ends = np.quantile(along[mask], np.arange(1, count) / count)
        which = np.searchsorted(ends, along)
        parts += [mask & (which == part) for part in range(count)]
    return np.array(parts, bool).reshape(-1, *masks.shape[1:])


WAYS: dict[str, Callable[[Masks, np.random.Generator, str], Masks]] = {
    way.__name__: way for way in (moved, eroded, dilated, smoothed, drawn, without, joined, cut)
}


def _each(masks: Masks, way: Callable[[NDArray[np.uint8]], NDArray[np.generic]]) -> Masks:
    result = np.zeros_like(masks)
    for mask, target in zip(masks, result, strict=True):
        target[:] = way(mask.astype(np.uint8)) != 0
    return result


def _disc(radius: int) -> NDArray[np.uint8]:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)).astype(np.uint8)
