"""How good the masks are: how well each true one is found."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from plan import Size, Store

from samdeblur.storage import AtomMap, open_store

Best = NDArray[np.float64]  # (true masks,) IoU with the mask that fits it best


def mask_quality(size: Size, out: Path) -> dict[str, tuple[float, float, float]]:
    """Kind of masks -> masks per image, mean best IoU of the true masks of the first family, share of them above 0.75.

    Nothing where there are no true masks to compare with.
    """
    stores = {masks: out / "stores" / Store(size.families[0], masks).place for masks in size.masks}
    if "true" not in stores or not stores["true"].exists():
        return {}
    truth = open_store(stores["true"])
    found = {}
    for masks, path in stores.items():
        if path.exists():
            store = open_store(path)
            best = np.concatenate([best_ious(truth.atoms(key), store.atoms(key)) for key in truth.ready_keys])
            count = np.mean([store.atoms(key).n_masks for key in truth.ready_keys])
            found[masks] = (float(count), float(best.mean()), float((best > 0.75).mean()))
    return found


def best_ious(truth: AtomMap, found: AtomMap) -> Best:
    """Of every true mask with the found one that fits it best; 0 where there is none."""
    one, other = (_flat(atoms) for atoms in (truth, found))
    shared = one @ other.T
    union = one.sum(axis=1)[:, None] + other.sum(axis=1) - shared
    return (shared / union).max(axis=1, initial=0.0).astype(float)


def _flat(atoms: AtomMap) -> NDArray[np.float32]:
    """Masks as rows, (M, H * W)."""
    return atoms.to_masks().reshape(atoms.n_masks, math.prod(atoms.shape)).astype(np.float32)
