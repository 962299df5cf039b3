"""Mask generation against SamAutomaticMaskGenerator: seconds, memory and where they go, the same masks in one run.

python -m benchmarks.pipeline.masks [--checkpoint sam_vit_b.pth] [--device cuda]

The bundled model unless a checkpoint is named, one thread on a CPU, photographs of scikit-image at 1280x720, 32x32
points. Each measurement is a process of its own, whose peak memory is read. Prints a table,
writes benchmarks/results/masks.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from segment_anything import SamAutomaticMaskGenerator, automatic_mask_generator

from benchmarks.common.figures import RESULTS
from samdeblur.models import load_sam
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator
from samdeblur.pipeline.segmenters import mask_generator as masks
from samdeblur.pipeline.segmenters import packed
from samdeblur.storage import AtomMap

PHOTOGRAPHS = ("coffee", "chelsea", "rocket")
SETTINGS: dict[str, dict[str, Any]] = {
    "default thresholds": {},
    "strict thresholds": {"pred_iou_thresh": 0.95, "stability_score_thresh": 0.97},
    "bundled thresholds": BUNDLED_SETTINGS | {"points_per_side": 32},
    "every candidate passes": {"pred_iou_thresh": -1.0, "stability_score_thresh": -1.0},
}


def photograph(name: str) -> np.ndarray:
    return cv2.resize(getattr(skimage.data, name)()[..., :3], (1280, 720), interpolation=cv2.INTER_CUBIC)


class Clock:
    """Seconds by part; parts inside parts count once, for the inner one."""

    def __init__(self, device: str) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = [0.0]
        self._device = device

    def __call__(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            start = self._now()
            self._inner.append(0.0)
            result = function(*arguments, **options)
            spent = self._now() - start
            self.seconds[part] += spent - self._inner.pop()
            self._inner[-1] += spent
            return result

        return timed

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def run_reference(sam: Any, settings: dict[str, Any], clock: Clock) -> Callable[[np.ndarray], int]:
    """The reference, then atoms of its masks, as a store needs them."""
    module = automatic_mask_generator
    for name, part in {
        "calculate_stability_score": "filters",
        "batched_mask_to_box": "filters",
        "is_box_near_crop_edge": "filters",
        "mask_to_rle_pytorch": "run lengths",
        "rle_to_mask": "run lengths",
        "area_from_rle": "run lengths",
        "batched_nms": "NMS",
    }.items():
        setattr(module, name, clock(part, getattr(module, name)))
    module.MaskData.cat = clock("run lengths", module.MaskData.cat)
    module.MaskData.filter = clock("filters", module.MaskData.filter)
    sam.postprocess_masks = clock("upsampling", sam.postprocess_masks)
    generator = SamAutomaticMaskGenerator(sam, **settings)
    process = generator._process_crop

    def process_crop(*arguments: Any) -> Any:  # it stumbles over a crop in which nothing is found
        data = process(*arguments)
        data["crop_boxes"] = data["crop_boxes"].reshape(-1, 4)
        return data

    generator._process_crop = process_crop
    encode = clock("atoms", AtomMap.from_masks)

    def work(image: np.ndarray) -> int:
        found = generator.generate(image)
        return encode([record["segmentation"] for record in found], image.shape[:2]).n_masks

    return work


def run_ours(sam: Any, settings: dict[str, Any], clock: Clock) -> Callable[[np.ndarray], int]:
    for name, part in {"count_above": "filters", "pack_above": "filters", "_nms": "NMS"}.items():
        setattr(masks, name, clock(part, getattr(masks, name)))
    packed.box_of = clock("filters", packed.box_of)  # type: ignore[assignment]
    sam.postprocess_masks = clock("upsampling", sam.postprocess_masks)
    AtomMap.from_pieces = clock("atoms", AtomMap.from_pieces)  # type: ignore[method-assign]
    generator = MaskGenerator(sam, **settings)
    return lambda image: generator.generate(image)[0].n_masks


WAYS = {"reference": run_reference, "ours": run_ours}


def measure(way: str, settings: str, checkpoint: str, device: str) -> dict[str, Any]:
    """In a process of its own: medians over the photographs."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sam = load_sam(checkpoint).to(device)
    clock = Clock(device)
    sam.image_encoder.forward = clock("encoder", sam.image_encoder.forward)
    sam.mask_decoder.forward = clock("decoder", sam.mask_decoder.forward)
    work = WAYS[way](sam, SETTINGS[settings], clock)
    sam.image_encoder(torch.zeros(1, 3, sam.image_encoder.img_size, sam.image_encoder.img_size, device=device))
    clock.seconds.clear()
    before, seconds, found = peak_memory(device), [], []
    for name in PHOTOGRAPHS:
        image = photograph(name)
        start = time.perf_counter()
        found.append(work(image))
        seconds.append(time.perf_counter() - start)
    parts = {part: round(spent / len(PHOTOGRAPHS), 2) for part, spent in clock.seconds.items()}
    return {
        "seconds": round(statistics.median(seconds), 2),
        "masks": found,
        "memory MB": round(peak_memory(device) - before),
        "parts": parts | {"other": round(statistics.mean(seconds) - sum(parts.values()), 2)},
    }


def peak_memory(device: str) -> float:
    """MB at most, of the process, or of the accelerator."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs=2, metavar=("WAY", "SETTINGS"))
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(*options.only, options.checkpoint, options.device)))
        return
    rows = {}
    common = ["--checkpoint", options.checkpoint, "--device", options.device]
    for settings in SETTINGS:
        row: dict[str, Any] = {}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.pipeline.masks", *common, "--only", way, settings]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            row[way] = json.loads(out.splitlines()[-1])
        assert row["ours"]["masks"] == row["reference"]["masks"]
        row["speed-up"] = round(row["reference"]["seconds"] / row["ours"]["seconds"], 1)
        rows[settings] = row
        print(f"\n{settings}: {row['speed-up']}x, masks {row['ours']['masks']}")
        for way in WAYS:
            found = row[way]
            parts = ", ".join(f"{part} {spent}" for part, spent in found["parts"].items())
            print(f"  {way:10} {found['seconds']:7} s/image, {found['memory MB']:6} MB: {parts}", flush=True)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU, one thread"
    name = "masks" if options.checkpoint == "bundled" and options.device == "cpu" else f"masks_{options.device}"
    out_file = RESULTS / f"{name}.json"
    out_file.write_text(json.dumps({"device": device, "checkpoint": options.checkpoint, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
