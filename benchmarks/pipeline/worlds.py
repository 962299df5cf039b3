"""How fast procedural worlds are rendered, and read back from a store. Prints a table and writes JSON.

python -m benchmarks.pipeline.worlds
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common.figures import RESULTS
from samdeblur.pipeline import PrepSettings, open_source, prepare
from samdeblur.pipeline.sources.worlds import MODEL
from samdeblur.storage import open_store

SCENES = 24


def main() -> None:
    """Scenes per second and core: rendered, rendered without motion, and 256 px crops of them from a store."""
    cv2.setNumThreads(1)
    still = replace(MODEL, camera_path=(0, 0), moving=0)
    rows = {}
    for name, model in (("384 px", MODEL), ("256 px", replace(MODEL, size=(256, 256))), ("384 px, no motion", still)):
        rows[f"rendered, {name}"] = _rate(lambda number, model=model: model.render((9, number)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "worlds.zarr"
        prepare(open_source(f"worlds:{SCENES}", "val"), path, PrepSettings(true_masks=True, device="cpu"), workers=1)
        store = open_store(path)
        rng = np.random.default_rng(0)

        def crop(number: int) -> None:
            key = store.keys[number]
            top, left = (int(side) for side in rng.integers(0, 129, 2))
            window = (top, left, 256, 256)
            store.image("blurred", key, window), store.image("sharp", key, window), store.atoms(key, window)

        rows["from a store, 256 px crops with masks"] = _rate(crop)
    for name, rate in rows.items():
        print(f"{name:40} {rate:8.1f} scenes/s and core")
    out = RESULTS / "worlds.json"
    out.write_text(json.dumps({"scenes per second and core": rows, "machine": platform.machine()}, indent=1) + "\n")


def _rate(work) -> float:
    work(0)
    seconds = []
    for number in range(SCENES):
        start = time.perf_counter()
        work(number)
        seconds.append(time.perf_counter() - start)
    return round(1 / statistics.median(seconds), 1)


if __name__ == "__main__":
    main()
