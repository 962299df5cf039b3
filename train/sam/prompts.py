"""Prompts and their target masks, drawn from a store of true masks.

Shapes: S side of the picture in pixels, s = S / 4 of the low-resolution masks, M masks, K atoms, N prompts, T targets.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from samdeblur.storage import MaskStore
from samdeblur.train.data.crops import orient

TOKEN = 16  # pixels per token of the encoder
TARGETS = 3  # masks around a point that are trained at most
BLURRED_SHARE = 0.25
BOX_SHARE = 0.2
SMALLEST = 0.001  # share of the picture a target covers at least


class PromptedImage(NamedTuple):
    """A picture and prompts of it.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        groups: (s / 2, s / 2) atom at each place of a grid of half a token.
        table: (K, M) which masks an atom lies in.
        points: (N, 2) x y in pixels. boxes: (N, 4) x0 y0 x1 y1. is_box: (N,) which of the two the prompt is.
        masks: (U, s, s) float32, share of each low-resolution pixel that a target covers.
        targets: (N, T) which of `masks` a prompt may mean, the one it was drawn from first; -1 for none.
    """

    image: NDArray[np.uint8]
    groups: NDArray[np.int64]
    table: NDArray[np.bool_]
    points: NDArray[np.float32]
    boxes: NDArray[np.float32]
    is_box: NDArray[np.bool_]
    masks: NDArray[np.float32]
    targets: NDArray[np.int64]


def draw(store: MaskStore, tokens: int, prompts: int, seed: tuple[int, ...]) -> PromptedImage:
    """A random window of a random picture of a store, `tokens` wide, with prompts. Same seed, same result."""
    rng = np.random.default_rng(seed)
    size = TOKEN * tokens
    while True:
        key = store.keys[rng.integers(len(store))]
        shape = store.shape(key)
        low, high = min(size, 2 * min(shape) // 3), min(2 * size, *shape)
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
    groups = atoms[4::8, 4::8].astype(np.int64)
    points, boxes, is_box, chosen = _prompts(rng, atoms, table, usable, prompts)
    used, targets = np.unique(chosen, return_inverse=True)
    targets = targets.reshape(chosen.shape) - (used[0] == -1 if len(used) else 0)
    masks = [
        cv2.resize(table[:, mask][atoms].astype(np.float32), (size // 4, size // 4), interpolation=cv2.INTER_AREA)
        for mask in used[used >= 0]
    ]
    stack = np.array(masks, np.float32).reshape(-1, size // 4, size // 4)
    return PromptedImage(_photograph(rng, image), groups, table, points, boxes, is_box, stack, targets)


def _prompts(
    rng: np.random.Generator,
    atoms: NDArray[np.uint16],
    table: NDArray[np.bool_],
    usable: NDArray[np.bool_],
    count: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
    """Points and boxes, which is meant, and (N, T) masks they may mean."""
    size = len(atoms)
    points, boxes = np.zeros((count, 2), np.float32), np.zeros((count, 4), np.float32)
    is_box, chosen = rng.random(count) < BOX_SHARE, np.full((count, TARGETS), -1)
    for prompt in range(count):
        for _ in range(20):  # a point of the picture or of a mask, with a target
            mask = int(rng.choice(np.flatnonzero(usable)))
            if is_box[prompt] or rng.random() < 0.5:
                inside = np.flatnonzero(table[:, mask][atoms])
                if not len(inside):
                    continue
                row, column = divmod(int(rng.choice(inside)), size)
            else:
                row, column = (int(place) for place in rng.integers(0, size, 2))
                mask = -1
            around = np.flatnonzero(table[atoms[row, column]] & usable)
            if len(around):
                break
        else:
            continue
        points[prompt] = column + 0.5, row + 0.5
        if is_box[prompt]:
            rows, columns = np.divmod(inside, size)
            corners = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
            sides = np.tile(corners[2:] - corners[:2], 2)
            boxes[prompt] = np.clip(corners + np.clip(rng.normal(0, 0.1, 4) * sides, -20, 20), 0, size)
            chosen[prompt, 0] = mask
        else:
            others = rng.permutation(around[around != mask])
            meant = np.concatenate([[mask], others])[:TARGETS] if mask >= 0 else others[:TARGETS]
            chosen[prompt, : len(meant)] = meant
    return points, boxes, is_box, chosen


def _photograph(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture as another camera might show it: tones, colours, softness, noise."""
    picture = image.astype(np.float32) / 255
    picture = picture ** np.float32(np.exp(rng.normal(0, 0.25)))
    if rng.random() < 0.15:
        picture = np.repeat(picture @ np.array([[0.3], [0.59], [0.11]], np.float32), 3, axis=2)
    elif rng.random() < 0.5:
        picture = picture[..., rng.permutation(3)]
    if rng.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.5))
    picture = (picture - 0.5) * np.float32(rng.uniform(0.6, 1.2)) + np.float32(0.5 + rng.normal(0, 0.06))
    if rng.random() < 0.4:
        picture = picture + rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0, 0.04))
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
