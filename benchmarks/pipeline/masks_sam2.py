"""Mask generation of Segment Anything 2 against SAM2AutomaticMaskGenerator: seconds, memory, the same masks, one run.

python -m benchmarks.pipeline.masks_sam2 [--checkpoint sam2.1_hiera_tiny.pt]

Without a checkpoint, since none could be had: the real classes at 128 pixels with random weights, whose masks are made
to lie around their points (tests/sam_families.py). What is measured then is what generators do around the network.
One thread on a CPU, whose time is taken; photographs of scikit-image at 1280x720, 32x32 points. Each measurement is a
process of its own, whose peak memory is read. Prints a table, writes benchmarks/results/masks_sam2.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.common.figures import RESULTS
from benchmarks.pipeline.masks import PHOTOGRAPHS, peak_memory, photograph
from samdeblur.pipeline import MaskGenerator
from samdeblur.pipeline.segmenters.families.recognise import open_model
from samdeblur.pipeline.segmenters.families.sam2 import Sam2
from samdeblur.pipeline.segmenters.speed import EXACT
from samdeblur.storage import AtomMap

SETTINGS: dict[str, dict[str, Any]] = {
    "default thresholds": {},  # of which random masks pass none
    "every candidate passes, 8x8 points": {  # more random masks than these are more atoms than fit
        "pred_iou_thresh": -1.0,
        "stability_score_thresh": -1.0,
        "points_per_side": 8,
    },
}


def model(checkpoint: str | None) -> Any:
    if checkpoint is not None:
        return open_model(Path(checkpoint), torch.device("cpu"), EXACT)._sam  # type: ignore[attr-defined]
    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    from sam_families import localised_sam2, small_sam2

    return localised_sam2(small_sam2())


def measure(way: str, settings: str, checkpoint: str | None, photographs: Sequence[str]) -> dict[str, Any]:
    """In a process of its own: the median of the photographs."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    sam = model(checkpoint)
    if way == "ours":
        ours = MaskGenerator(Sam2(sam), **SETTINGS[settings])
    else:
        from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

        theirs = SAM2AutomaticMaskGenerator(sam, **SETTINGS[settings])
        theirs.predictor._bb_feat_sizes = [(sam.image_size // stride,) * 2 for stride in (4, 8, 16)]
    before, seconds, found = peak_memory("cpu"), [], []
    for name in photographs:
        image = photograph(name)
        start = time.process_time()
        if way == "ours":
            atoms = ours.generate(image)[0]
        else:
            records = theirs.generate(image)
            atoms = AtomMap.from_masks([record["segmentation"] for record in records], image.shape[:2])
        seconds.append(time.process_time() - start)
        found.append(atoms.n_masks)
    return {
        "way": way,
        "settings": settings,
        "seconds": round(statistics.median(seconds), 2),
        "masks": found,
        "memory_mb": round(peak_memory("cpu") - before),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint")
    parser.add_argument("--photographs", type=int, default=len(PHOTOGRAPHS), help="how many of them")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SETTINGS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.checkpoint, PHOTOGRAPHS[: options.photographs])))
        return
    rows = []
    for settings in SETTINGS:
        for way in ("reference", "ours"):
            command = [sys.executable, "-m", "benchmarks.pipeline.masks_sam2", "--one", way, settings]
            command += ["--photographs", str(options.photographs)]
            command += ["--checkpoint", options.checkpoint] if options.checkpoint else []
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append(json.loads(out.splitlines()[-1]))
        before, after = rows[-2:]
        if before["masks"] != after["masks"]:
            raise SystemExit(f"{settings}: {before['masks']} masks and {after['masks']}")
        print(
            f"{settings:<36} {before['seconds']:>7.2f} s {after['seconds']:>7.2f} s "
            f"{before['seconds'] / after['seconds']:>6.1f}x  {before['memory_mb']:>6} MB {after['memory_mb']:>6} MB  "
            f"{after['masks']} masks"
        )
    told = {
        "model": options.checkpoint or "SAM 2 classes, 128 px, random weights",
        "machine": platform.machine(),
        "torch": torch.__version__,
        "photographs": options.photographs,
        "load": os.getloadavg()[0],
        "rows": rows,
    }
    (RESULTS / "masks_sam2.json").write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
