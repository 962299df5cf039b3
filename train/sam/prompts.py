"""Prompts and their target masks, drawn from a store of true masks.

Shapes: S side of the image in pixels, s = S / 2 of the low-resolution masks, M masks, K atoms, N prompts, T targets.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from samdeblur.storage import MaskStore
from samdeblur.train.data.crops import orient

TOKEN = 8  # pixels per token of the encoder
PIXEL = TOKEN // 4  # pixels per pixel of a low-resolution mask
TARGETS = 4  # masks around a point that are trained at most
BLURRED_SHARE = 0.25
BOX_SHARE = 0.1
MASK_SHARE = 0.85  # of the prompts are of a mask, each mask as often; the others of a place, each place as often
BESIDE = 0.35  # what a mask around a point counts beside the one that the prompt is of
SMALLEST = 0.001  # share of the image a target covers at least


class PromptedImage(NamedTuple):
    """An image and prompts of it.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        atoms: (s, s) atom at a random pixel of each low-resolution pixel.
        table: (K, M) which masks an atom lies in.
        points: (N, 2) x y in pixels. boxes: (N, 4) x0 y0 x1 y1. is_box: (N,) which of the two the prompt is.
        targets: (N, T) masks a prompt may mean, small ones first; -1 for none. At least one.
        weights: (N, T) what each of them counts; small masks lie in large ones, so they would count too little.
    """

    image: NDArray[np.uint8]
    atoms: NDArray[np.int64]
    table: NDArray[np.bool_]
    points: NDArray[np.float32]
    boxes: NDArray[np.float32]
    is_box: NDArray[np.bool_]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]


def draw(store: MaskStore, tokens: int, prompts: int, seed: tuple[int, ...]) -> PromptedImage:
    """A random window of a random image of a store, `tokens` wide, with prompts. Same seed, same result."""
    rng = np.random.default_rng(seed)
    size, ready = TOKEN * tokens, store.ready_keys
    while True:
        key = ready[rng.integers(len(ready))]
        shape = store.shape(key)
        low, high = 2 * min(size, *shape) // 3, min(3 * size // 2, *shape)
        side = int(rng.integers(low, high + 1))
        window = (int(rng.integers(shape[0] - side + 1)), int(rng.integers(shape[1] - side + 1)), side, side)
        found = store.atoms(key, window)
        table = found.mask_table()
        turn = int(rng.integers(8))
        atoms = cv2.resize(orient(found.atoms, turn), (size, size), interpolation=cv2.INTER_NEAREST)
        areas = np.bincount(atoms.ravel(), minlength=len(table)) @ table
        usable = areas >= SMALLEST * size * size
        if usable.any():
            break
    kind = "blurred" if rng.random() < BLURRED_SHARE else "sharp"
    image = np.ascontiguousarray(orient(store.image(kind, key, window), turn))
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
    rows, columns = np.indices((size // PIXEL, size // PIXEL)) * PIXEL + rng.integers(
        0, PIXEL, (2, size // PIXEL, size // PIXEL)
    )
    drawn = _prompts(rng, atoms, table, np.where(usable, areas, 0), prompts)
    return PromptedImage(_photograph(rng, image), atoms[rows, columns].astype(np.int64), table, *drawn)


def _prompts(
    rng: np.random.Generator, atoms: NDArray[np.uint16], table: NDArray[np.bool_], areas: NDArray[np.int64], count: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64], NDArray[np.float32]]:
    """Points and boxes, which is meant, (N, T) masks they may mean and what these count; masks of area 0 are none."""
    size = len(atoms)
    points, boxes = np.zeros((count, 2), np.float32), np.zeros((count, 4), np.float32)
    is_box, targets = rng.random(count) < BOX_SHARE, np.full((count, TARGETS), -1)
    asked = np.full(count, -1)
    usable = np.flatnonzero(areas)
    for prompt in range(count):
        row, column = (int(place) for place in rng.integers(0, size, 2))
        around = np.flatnonzero(table[atoms[row, column]] & (areas > 0))
        if is_box[prompt] or rng.random() < MASK_SHARE or not len(around):
            mask = asked[prompt] = int(rng.choice(usable))
            inside = np.flatnonzero(table[:, mask][atoms])
            row, column = divmod(int(rng.choice(inside)), size)
            around = np.flatnonzero(table[atoms[row, column]] & (areas > 0))
        points[prompt] = column, row
        if is_box[prompt]:
            rows, columns = np.divmod(inside, size)
            corners = np.array([columns.min(), rows.min(), columns.max(), rows.max()], np.float32)
            sides = np.tile(corners[2:] - corners[:2], 2)
            boxes[prompt] = np.clip(corners + np.clip(rng.normal(0, 0.1, 4) * sides, -20, 20), 0, size - 1)
            targets[prompt, 0] = mask
        else:
            if len(around) > TARGETS:  # the one that is asked for, the smallest and the largest stay
                chain = around[np.argsort(areas[around], kind="stable")]
                first = (chain == asked[prompt]) | np.isin(chain, chain[[0, -1]])
                around = np.concatenate([chain[first], rng.permutation(chain[~first])])[:TARGETS]
            targets[prompt, : len(around)] = around[np.argsort(areas[around], kind="stable")]
    weights = np.where(targets == asked[:, None], 1, BESIDE).astype(np.float32)
    return points, boxes, is_box, targets, weights


def _photograph(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image as another camera might show it: tones, colours, softness, noise, compression."""
    picture = image.astype(np.float32) / 255
    picture = picture ** np.float32(np.exp(rng.normal(0, 0.25)))
    if rng.random() < 0.15:
        picture = np.repeat(picture @ np.array([[0.3], [0.59], [0.11]], np.float32), 3, axis=2)
    elif rng.random() < 0.5:
        picture = picture[..., rng.permutation(3)]
    if rng.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.5))
    tint = 1 + rng.normal(0, 0.04, 3).astype(np.float32)
    picture = (picture * tint - 0.5) * np.float32(rng.uniform(0.6, 1.2)) + np.float32(0.5 + rng.normal(0, 0.06))
    if rng.random() < 0.4:
        picture = picture + rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0, 0.04))
    result = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.2:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 95))]
        result = np.asarray(cv2.imdecode(cv2.imencode(".jpg", result, quality)[1], cv2.IMREAD_COLOR), np.uint8)
    return result
