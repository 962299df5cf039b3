"""What a store holds, in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from samdeblur.storage.format.layout import DONE, STATE_NAMES
from samdeblur.storage.store import MaskStore

EDGES = (0, 1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 4097)  # of the histogram of masks per image


def describe(store: MaskStore) -> dict[str, Any]:
    """Counts, sizes, recipe and histogram, as plain values for JSON. Reads the index alone."""
    header, counts = store.header, store.counts[store.states == DONE]
    sizes, images = np.unique(store.shapes[store.states == DONE], axis=0, return_counts=True)
    order = np.argsort(-images, kind="stable")
    histogram = np.histogram(counts[:, 0], EDGES)[0] if len(counts) else np.zeros(len(EDGES) - 1, int)
    return {
        "location": str(store.path),
        "format": 1,
        "dataset": header.dataset,
        "split": header.split,
        "digest": header.digest,
        "with_images": header.images,
        "embeddings": [list(shape) for shape in header.embeddings],
        "block_size": header.block_size,
        "extent": list(header.extent),
        "images": {name: int((store.states == state).sum()) for state, name in enumerate(STATE_NAMES)},
        "sizes": {f"{sizes[i, 1]}x{sizes[i, 0]}": int(images[i]) for i in order},
        "per_image": {
            name: {"mean": float(column.mean()), "most": int(column.max())} if len(column) else None
            for name, column in zip(("masks", "atoms", "pairs"), counts.T, strict=True)
        },
        "masks_per_image": {
            f"{low}-{high - 1}" if high - low > 1 else f"{low}": int(n)
            for low, high, n in zip(EDGES[:-1], EDGES[1:], histogram, strict=True)
        },
        "bytes": stored_bytes(store),
        "fingerprint": header.fingerprint,
        "recipe": dict(header.recipe),
    }


def stored_bytes(store: MaskStore) -> dict[str, int] | None:
    """Bytes on the disk of the index, of each array, and in all; of a share only in all; None behind a server."""
    if store.path.remote:
        return None
    path = store.path.path
    if path.is_file():
        return {"all": path.stat().st_size}
    found: dict[str, int] = {}
    for name in ("index", *store.header.data_arrays()):
        found[name] = sum(file.stat().st_size for file in (path / name).rglob("*") if file.is_file())
    return found | {"all": sum(found.values()) + (path / "zarr.json").stat().st_size}
