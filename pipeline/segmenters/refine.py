"""Borders of masks moved to edges of the image that are near: docs/masks.md says what comes of it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import watershed

from samdeblur.storage import AtomMap
from samdeblur.storage.atoms import Piece

SMOOTH = 0.7  # sigma, pixels, of the Gaussian before the gradient
INSIDE, OUTSIDE = 1, 2


def refine(found: AtomMap, image: NDArray[np.uint8], reach: int) -> AtomMap:
    """The masks of an image, as many and in their order, with borders at most `reach` pixels from where they were.

    Of each mask, the pixels farther than `reach` from its outside stay in it, and those farther than `reach` from it
    stay out of it. Those between are flooded from both sides, the smallest gradient first (a watershed), so that the
    border comes to lie on the strongest edge of that band. A mask that has no pixel so deep, or leaves none so far, is
    not changed.

    Args:
        image: (H, W, 3) uint8, whose edges count.
        reach: 1 to bounds.MAX_REACH.
    """
    strength = edge_strength(image)
    tables, boxes = found.mask_table().T, found.mask_boxes().tolist()
    pieces = [_piece(found.atoms, *mask, strength, reach) for mask in zip(tables, boxes, strict=True)]
    return AtomMap.from_pieces(found.n_masks, pieces.__getitem__, found.shape)


def edge_strength(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W) largest gradient of any channel (Sobel) of an (H, W, 3) image, smoothed a little."""
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), SMOOTH)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    found: NDArray[np.float32] = np.hypot(across, down).max(axis=2)
    return found


def _piece(
    plane: NDArray[np.uint16], atoms: NDArray[np.bool_], box: Sequence[int], strength: NDArray[np.float32], reach: int
) -> Piece:
    """A refined mask, which is given by the atoms it covers (K + 1,) and its box x, y, width, height."""
    x, y, width, height = box
    top, left = max(0, y - reach - 1), max(0, x - reach - 1)
    window = slice(top, y + height + reach + 1), slice(left, x + width + reach + 1)
    mask = atoms[plane[window]]
    sides = np.where(_depth(mask) > reach, INSIDE, np.where(_depth(~mask) > reach, OUTSIDE, 0))
    if (sides == INSIDE).any() and (sides == OUTSIDE).any():
        mask = watershed(strength[window], sides) == INSIDE
    return top, left, mask


def _depth(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(H, W) pixels to the nearest that is not in a mask; 0 there."""
    found: NDArray[np.float32] = cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return found
