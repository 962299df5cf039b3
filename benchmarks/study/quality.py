"""How good the masks are: how well each true one is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from plan import Size, Store

from samdeblur.evaluation.masks.matching import mask_iou
from samdeblur.storage import open_store


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
            best = np.concatenate(
                [mask_iou(store.atoms(key), truth.atoms(key)).max(axis=0, initial=0) for key in truth.ready_keys]
            )
            count = np.mean([store.atoms(key).n_masks for key in truth.ready_keys])
            found[masks] = (float(count), float(best.mean()), float((best > 0.75).mean()))
    return found
