"""What can be said of a store's masks before anything is trained with them.

By themselves: how many there are, what they cover, and whether their borders lie on edges of the image. Beside
masks of the same images that are known to be better, or are another's: how well each finds its partner, and how far
borders are apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from samdeblur.evaluation.masks.matching import borders, mask_iou, match
from samdeblur.storage import AtomMap, MaskStore

REACH = 5  # pixels around a border that it is compared with, and the most that a border is said to be off
BLUR = 0.5  # sigma, pixels, of the Gaussian before the gradient
LAW = (0.70, 0.99)  # `expected_share`: fitted by benchmarks/study/which.py to what 25 kinds of masks brought


@dataclass(frozen=True)
class Quality:
    """Of one image, or the mean over images that have it; NaN where there is nothing to say.

    Attributes:
        masks: how many. covered: share of the pixels under one or more. overlap: masks over a covered pixel.
        on_edges: share of the places within REACH pixels of a border where the image changes less than at the border,
            mean over borders: 0.5 for borders that lie anywhere, near 1 for those on the edges of the image.
        iou: of each mask of the reference with the mask that meets it best, mean.
        recall: share of the reference's masks with a partner at IoU 0.5, one to one. precision: of these masks.
        border_error: pixels from a border of the reference to the nearest of these, at most REACH, mean.
        border_surplus: the other way round, from a border of these to the nearest of the reference.
    """

    masks: float = math.nan
    covered: float = math.nan
    overlap: float = math.nan
    on_edges: float = math.nan
    iou: float = math.nan
    recall: float = math.nan
    precision: float = math.nan
    border_error: float = math.nan
    border_surplus: float = math.nan


def quality_of(masks: AtomMap, image: NDArray[np.uint8] | None, reference: AtomMap | None = None) -> Quality:
    """Of one image.

    Args:
        image: (H, W, 3) RGB, the sharp one where there is one; None leaves out what is measured in it.
        reference: other masks of the same image; None leaves out the comparison.
    """
    covered = int((masks.atoms > 0).sum())
    found = {
        "masks": float(masks.n_masks),
        "covered": covered / masks.atoms.size,
        "overlap": float(masks.mask_areas().sum()) / covered if covered else math.nan,
    }
    own = borders(masks.atoms)
    if image is not None and own.any():
        found["on_edges"] = float(edge_rank(image)[own].mean())
    if reference is not None:
        iou = mask_iou(masks, reference)
        pairs = match(iou)
        theirs = borders(reference.atoms)
        found |= {
            "iou": float(iou.max(axis=0, initial=0).mean()) if reference.n_masks else math.nan,
            "recall": pairs.at_50 / pairs.true if pairs.true else math.nan,
            "precision": pairs.at_50 / pairs.found if pairs.found else math.nan,
            "border_error": border_distance(theirs, own),
            "border_surplus": border_distance(own, theirs),
        }
    return Quality(**found)


def expected_share(masks: Quality) -> float:
    """Of the gain that true masks bring a network with MAP, the share that these may bring; NaN without a reference.

    exp(-e (a + b s)), with e the border_error, s the border_surplus: borders that are missing cost, those that are
    misplaced are both, and those that nobody else sees cost nothing where none is missing. docs/which-masks.md says
    how well it predicts.
    """
    missing, misplaced = LAW
    return math.exp(-masks.border_error * (missing + misplaced * masks.border_surplus))


def edge_rank(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W) share of the places within REACH where the largest gradient of any channel is smaller than here.

    A place is the corner between a pixel, its right and its lower neighbour, as in `borders`.
    """
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), BLUR)
    across, down = np.zeros_like(smooth), np.zeros_like(smooth)
    across[:, :-1], down[:-1] = np.diff(smooth, axis=1), np.diff(smooth, axis=0)
    strength = np.hypot(across, down).max(axis=2)
    height, width = strength.shape
    padded = np.pad(strength, REACH, mode="symmetric")
    steps = range(-REACH, REACH + 1)
    near = [(y, x) for y in steps for x in steps if 0 < y * y + x * x <= REACH * REACH]
    rank = np.zeros_like(strength)
    for y, x in near:
        there = padded[REACH + y : REACH + y + height, REACH + x : REACH + x + width]
        rank += there < strength
        rank += 0.5 * (there == strength)
    return rank / len(near)


def border_distance(of: NDArray[np.bool_], to: NDArray[np.bool_]) -> float:
    """Pixels from each border pixel of one map to the nearest of another, at most REACH, mean; NaN without any."""
    if not of.any():
        return math.nan
    if not to.any():
        return float(REACH)
    distance = cv2.distanceTransform((~to).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float(np.minimum(distance, REACH)[of].mean())


def store_quality(
    store: MaskStore,
    keys: Sequence[str],
    reference: MaskStore | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, Quality]:
    """Of images of a store, by their keys; with those of the same keys in a reference, where it has them.

    Raises:
        StoreDamaged, Unreachable: what cannot be read.
        ValueError: an image that has another size in the reference.
    """
    there = set(reference.ready_keys) if reference else set()
    found = {}
    for key in keys:
        other = reference.atoms(key) if reference and key in there else None
        masks = store.atoms(key)
        if other is not None and other.shape != masks.shape:
            raise ValueError(f"{key}: {masks.shape} in {store.path}, {other.shape} in the reference")
        found[key] = quality_of(masks, store.image("sharp", key) if store.header.images else None, other)
        progress(1)
    return found


def mean(images: Sequence[Quality]) -> Quality:
    """Over the images that have each figure."""
    rows = np.array([[getattr(image, field.name) for field in fields(Quality)] for image in images], float)
    counted = (~np.isnan(rows)).sum(axis=0)
    sums = np.where(np.isnan(rows), 0, rows).sum(axis=0)
    values = [float(total / count) if count else math.nan for total, count in zip(sums, counted, strict=True)]
    return Quality(*values)
