"""Masks as an image."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage.atoms import AtomMap


def paint_masks(image: NDArray[np.uint8], atoms: AtomMap, strength: float = 0.55) -> NDArray[np.uint8]:
    """An (H, W, 3) uint8 image with the masks over it; pixels no mask covers keep their colour, darkened.

    Where masks overlap the smallest shows, and atoms are outlined.
    """
    colours = np.zeros((atoms.n_atoms + 1, 3), np.float32)
    if len(atoms.pairs):
        areas = atoms.mask_areas()[atoms.pairs[:, 1]]
        order = np.argsort(-areas, kind="stable")  # the last write wins: the smallest mask
        smallest = np.zeros(atoms.n_atoms + 1, np.int64)
        smallest[atoms.pairs[order, 0]] = atoms.pairs[order, 1]
        palette = np.array([_hue(number) for number in atoms.mask_ids], np.float32)
        colours[1:] = palette[smallest[1:]]
    plane = atoms.atoms
    painted = image * (1 - strength) + colours[plane] * (255 * strength)
    edges = np.zeros(plane.shape, bool)
    edges[:, 1:] |= plane[:, 1:] != plane[:, :-1]
    edges[1:] |= plane[1:] != plane[:-1]
    painted[edges] *= 0.35
    return painted.astype(np.uint8)


def _hue(number: int) -> tuple[float, float, float]:
    """A colour per mask number; the golden ratio keeps neighbours apart."""
    return colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.55 + 0.4 * (number * 0.317 % 1), 1.0)
