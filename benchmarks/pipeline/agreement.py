"""How far masks of faster arithmetic agree with the exact ones.

python -m benchmarks.pipeline.agreement [--checkpoint sam_vit_b.pth] [--device cuda]

Share of the exact masks that have a counterpart of IoU 0.9 or more, the mean of the best IoU, and how many masks there
are, over photographs of scikit-image and procedural scenes. Prints a table, writes benchmarks/results/agreement.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import cv2
import numpy as np
import skimage.data
import torch

from benchmarks.common.figures import RESULTS
from samdeblur.models import load_sam
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator
from samdeblur.pipeline.segmenters.speed import Speed
from samdeblur.pipeline.sources.worlds import WorldSource
from samdeblur.storage.writing.compare import best_iou

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
MODES = {
    "exact": Speed(),
    "4 images together": Speed(batch=4),
    "sdpa": Speed(sdpa=True),
    "bfloat16": Speed("bfloat16"),
    "bfloat16, sdpa": Speed("bfloat16", sdpa=True),
    "float16, sdpa": Speed("float16", sdpa=True),
    "bfloat16, sdpa, compile": Speed("bfloat16", compile=True, sdpa=True),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, help="Only these, after the exact one; others stay as measured."
    )
    options = parser.parse_args()
    images = [
        cv2.resize(getattr(skimage.data, name)()[..., :3], (480, 320), interpolation=cv2.INTER_AREA)
        for name in PHOTOGRAPHS
    ]
    source = WorldSource.of("worlds:4:384", "val")
    images += [source.read(key).blurred for key in source.keys]
    settings = BUNDLED_SETTINGS if options.checkpoint == "bundled" else {}
    modes = MODES if options.device == "cuda" else {name: mode for name, mode in MODES.items() if not mode.compile}
    out = RESULTS / ("agreement.json" if options.device == "cpu" else "agreement_cuda.json")
    if options.modes:
        modes = {name: MODES[name] for name in ("exact", *options.modes)}
    exact, rows = [], {}
    for name, speed in modes.items():
        generator = MaskGenerator(load_sam(options.checkpoint).to(options.device), speed, **settings)
        generator.generate(images[0])
        start = time.perf_counter()
        found = []
        for first in range(0, len(images), speed.batch):
            group = images[first : first + speed.batch]
            wholes = generator.embed(group) if speed.batch > 1 else [None] * len(group)
            found += [generator.generate(image, whole)[0] for image, whole in zip(group, wholes, strict=True)]
        seconds = (time.perf_counter() - start) / len(images)
        exact = exact or found
        best = np.concatenate([best_iou(mine, theirs) for mine, theirs in zip(exact, found, strict=True)])
        rows[name] = {
            "matched at IoU 0.9": round(float((best >= 0.9).mean()), 4),
            "mean IoU": round(float(best.mean()), 4),
            "masks": sum(atoms.n_masks for atoms in found),
            "over exact seconds": round(seconds / rows["exact"]["seconds"], 2) if rows else 1.0,
            "seconds": round(seconds, 3),
        }
        print(f"{name:22}" + "".join(f"{key} {value:<10}" for key, value in rows[name].items()), flush=True)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    if options.modes and out.exists():
        rows = json.loads(out.read_text())["modes"] | rows
    out.write_text(json.dumps({"device": device, "checkpoint": options.checkpoint, "modes": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
