"""Dense scenes of nested masks, as Segment Anything gives them: parts in objects in groups, each with its own border.

python -m benchmarks.common.dense_masks [dense.png]    # counts of one, and an image of it
"""

from __future__ import annotations

import sys

import cv2
import numpy as np
from numpy.typing import NDArray

LEVELS = ((110, 190), (35, 75), (8, 20))  # fewest and most parts, objects, groups
ROUGHNESS = 2.0  # pixels by which a border wanders, apart from its neighbours'


def dense_masks(seed: int, height: int = 720, width: int = 1280) -> list[NDArray[np.bool_]]:
    """100 to 300 overlapping masks of one scene, (H, W) bool each, in no order of size.

    Parts are cells around random centres, objects unions of parts, groups unions of objects. Each mask is the region's
    signed distance plus a noise of its own, so that borders that should coincide differ by a pixel or two.
    """
    rng = np.random.default_rng(seed)
    shape = (height, width)
    rows, columns = np.indices(shape, dtype=np.float32)
    rows += 25 * noise(rng, shape, 60) + 4 * noise(rng, shape, 8)
    columns += 25 * noise(rng, shape, 60) + 4 * noise(rng, shape, 8)
    centres = rng.uniform(0, shape, (int(rng.integers(*LEVELS[0])), 2))
    cells = nearest(rows, columns, centres)
    wander = ROUGHNESS * (noise(rng, shape, 12) + 0.2 * noise(rng, shape, 4))
    masks = []
    for fewest, most in LEVELS:
        regions = np.arange(len(centres))
        if (fewest, most) != LEVELS[0]:
            parents = rng.uniform(0, shape, (int(rng.integers(fewest, most)), 2))
            regions = np.argmin(((centres[:, None] - parents) ** 2).sum(axis=2), axis=1)
        for region in np.unique(regions):
            inside = (regions == region)[cells]
            shifted = np.roll(wander, (int(rng.integers(height)), int(rng.integers(width))), (0, 1))
            mask = signed_distance(inside) + shifted > 0
            if mask.sum() >= 100:
                masks.append(mask)
    return [masks[i] for i in rng.permutation(len(masks))]


def noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> NDArray[np.float32]:
    """Smooth noise of mean 0 and deviation 1 that changes over about `scale` pixels."""
    field = cv2.GaussianBlur(rng.standard_normal(shape, np.float32), (0, 0), scale, borderType=cv2.BORDER_REFLECT)
    return (field - field.mean()) / field.std()


def nearest(rows: NDArray[np.float32], columns: NDArray[np.float32], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """The centre nearest to each pixel."""
    best, cells = np.full(rows.shape, np.inf, np.float32), np.zeros(rows.shape, np.int64)
    for number, (row, column) in enumerate(centres):
        distance = (rows - np.float32(row)) ** 2 + (columns - np.float32(column)) ** 2
        closer = distance < best
        best[closer], cells[closer] = distance[closer], number
    return cells


def signed_distance(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Pixels to the border, positive inside."""
    region = inside.astype(np.uint8)
    within = cv2.distanceTransform(region, cv2.DIST_L2, 5)
    return np.where(inside, within - 0.5, 0.5 - cv2.distanceTransform(1 - region, cv2.DIST_L2, 5))


if __name__ == "__main__":
    from samdeblur.storage import AtomMap
    from samdeblur.storage.sharing.paint import paint_masks

    scene = dense_masks(0)
    atoms = AtomMap.from_masks(scene)
    print(f"{len(scene)} masks, {atoms.n_atoms} atoms, {len(atoms.pairs)} pairs")
    if len(sys.argv) > 1:
        grey = np.full((*atoms.shape, 3), 128, np.uint8)
        cv2.imwrite(sys.argv[1], paint_masks(grey, atoms)[..., ::-1])


def fake_records(rng: np.random.Generator, masks: list[NDArray[np.bool_]]) -> dict[str, NDArray[np.float64]]:
    """Scores as Segment Anything gives them: float32 values, as float64; points on its 32x32 grid."""
    n, (height, width) = len(masks), masks[0].shape
    records = {
        name: rng.uniform(0.88, 1.0, n).astype(np.float32).astype(float)
        for name in ("predicted_iou", "stability_score")
    }
    records |= {
        f"point_{axis}": (rng.integers(0, 32, n) + 0.5) / 32 * side for axis, side in (("x", width), ("y", height))
    }
    return records | {
        f"crop_box_{n_}": np.full(n, float(v)) for n_, v in zip("xywh", (0, 0, width, height), strict=True)
    }
