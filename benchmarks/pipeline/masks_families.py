"""Mask generation of each family of Segment Anything against its generator: seconds, memory, the same masks, one run.

python -m benchmarks.pipeline.masks_families [--family sam2 --checkpoint sam2.1_hiera_tiny.pt]

Without a checkpoint, since none could be had: the real classes with random weights, at 64 to 128 pixels, whose masks
are made to lie around their points (tests/sam_families.py). What is measured then is what generators do around the
network.
One thread on a CPU, whose time is taken; photographs of scikit-image at 1280x720, 32x32 points. Each measurement is a
process of its own, whose peak memory is read. Prints a table, writes benchmarks/results/masks_families.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.common.figures import RESULTS
from benchmarks.pipeline.masks import PHOTOGRAPHS, peak_memory, photograph
from samdeblur.pipeline import MaskGenerator
from samdeblur.pipeline.segmenters.families.original import OriginalSam
from samdeblur.pipeline.segmenters.families.recognise import open_model
from samdeblur.pipeline.segmenters.families.sam2 import Sam2
from samdeblur.pipeline.segmenters.speed import EXACT
from samdeblur.storage import AtomMap

sys.path.append(str(Path(__file__).parents[2] / "tests"))

SETTINGS: dict[str, dict[str, Any]] = {
    "default thresholds": {},  # of which random masks pass none
    "every candidate passes, 8x8 points": {  # more random masks than these are more atoms than fit
        "pred_iou_thresh": -1.0,
        "stability_score_thresh": -1.0,
        "points_per_side": 8,
    },
}
Generators = tuple[Any, Callable[[], MaskGenerator]]  # the reference, and what makes ours


def sam2(checkpoint: str | None, settings: dict[str, Any]) -> Generators:
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    from sam_families import localised_sam2, small_sam2

    if checkpoint is None:
        sam = localised_sam2(small_sam2())
    else:
        sam = open_model(Path(checkpoint), torch.device("cpu"), EXACT)._sam  # type: ignore[attr-defined]
    theirs = SAM2AutomaticMaskGenerator(sam, **settings)
    theirs.predictor._bb_feat_sizes = [(sam.image_size // stride,) * 2 for stride in (4, 8, 16)]
    return theirs, lambda: MaskGenerator(Sam2(sam), **settings)


def mobile_sam(checkpoint: str | None, settings: dict[str, Any]) -> Generators:
    import mobile_sam as package
    from sam_families import around_points, lenient, small_mobile_sam

    from samdeblur.models.networks.mobile_sam import build_mobile_sam

    if checkpoint is None:
        theirs, side = small_mobile_sam(side=128), 128
    else:
        theirs, side = package.sam_model_registry["vit_t"](checkpoint).eval(), 1024
    mine = build_mobile_sam(theirs.state_dict(), side)
    if checkpoint is None:
        for sam in (theirs, mine):
            around_points(sam.mask_decoder, theirs.prompt_encoder.point_embeddings[1].weight.detach())
    reference = lenient(package.SamAutomaticMaskGenerator(theirs, **settings))
    return reference, lambda: MaskGenerator(OriginalSam(mine), **settings)


def sam_hq(checkpoint: str | None, settings: dict[str, Any]) -> Generators:
    from sam_families import hq_model_of_transformers, padded_generator

    adapter = folder(checkpoint, hq_model_of_transformers)
    return padded_generator(adapter._model, **settings), lambda: MaskGenerator(adapter, **settings)


def sam3(checkpoint: str | None, settings: dict[str, Any]) -> Generators:
    from sam_families import sam3_model_of_transformers, stretched_generator

    adapter = folder(checkpoint, sam3_model_of_transformers)
    ours = MaskGenerator(adapter, **settings)
    return stretched_generator(adapter, ours), lambda: ours


def folder(checkpoint: str | None, small: Callable[[], Any]) -> Any:
    """The adapter of a folder of transformers, or of a small model with random weights."""
    import transformers
    from sam_families import around_points, point_type

    if checkpoint is not None:
        return open_model(Path(checkpoint), torch.device("cpu"), EXACT)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        small().save_pretrained(place)
        adapter: Any = open_model(Path(place), torch.device("cpu"), EXACT)
    around_points(adapter._model.mask_decoder, point_type(adapter._model))
    return adapter


FAMILIES = {"sam2": sam2, "mobile-sam": mobile_sam, "sam-hq": sam_hq, "sam3": sam3}


def measure(family: str, way: str, settings: str, checkpoint: str | None, photographs: Sequence[str]) -> dict[str, Any]:
    """In a process of its own: the median of the photographs."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    theirs, make = FAMILIES[family](checkpoint, SETTINGS[settings])
    ours = make()
    before, seconds, found = peak_memory("cpu"), [], []
    for name in photographs:
        image = photograph(name)
        start = time.process_time()
        if way == "ours":
            atoms = ours.generate(image)[0]
        else:
            with torch.no_grad():
                records = theirs.generate(image)
            atoms = AtomMap.from_masks([record["segmentation"] for record in records], image.shape[:2])
        seconds.append(time.process_time() - start)
        found.append(atoms.n_masks)
    return {
        "family": family,
        "way": way,
        "settings": settings,
        "seconds": round(statistics.median(seconds), 2),
        "masks": found,
        "memory_mb": round(peak_memory("cpu") - before),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", choices=FAMILIES, help="this one alone")
    parser.add_argument("--checkpoint", help="a file, or a folder of transformers, of that family")
    parser.add_argument("--photographs", type=int, default=len(PHOTOGRAPHS), help="how many of them")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SETTINGS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.checkpoint and not options.family:
        parser.error("--checkpoint needs --family")
    if options.one:
        print(json.dumps(measure(options.family, *options.one, options.checkpoint, PHOTOGRAPHS[: options.photographs])))
        return
    rows = []
    for family in [options.family] if options.family else FAMILIES:
        for settings in SETTINGS:
            for way in ("reference", "ours"):
                command = [sys.executable, "-m", "benchmarks.pipeline.masks_families", "--one", way, settings]
                command += ["--family", family, "--photographs", str(options.photographs)]
                command += ["--checkpoint", options.checkpoint] if options.checkpoint else []
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                rows.append(json.loads(out.splitlines()[-1]))
            before, after = rows[-2:]
            if before["masks"] != after["masks"]:
                raise SystemExit(f"{family}, {settings}: {before['masks']} masks and {after['masks']}")
            print(
                f"{family:<11} {settings:<36} {before['seconds']:>7.2f} s {after['seconds']:>7.2f} s "
                f"{before['seconds'] / after['seconds']:>6.1f}x  {before['memory_mb']:>6} MB "
                f"{after['memory_mb']:>6} MB  {after['masks']} masks",
                flush=True,
            )
    told = {
        "model": options.checkpoint or "real classes, 64 to 128 px, random weights",
        "machine": platform.machine(),
        "torch": torch.__version__,
        "photographs": options.photographs,
        "load": os.getloadavg()[0],
        "rows": rows,
    }
    (RESULTS / "masks_families.json").write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
