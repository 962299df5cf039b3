"""What makes masks of blurred images better: pre-deblurring, masks of both images, flips, borders moved to edges.

python -m benchmarks.pipeline.better_masks [--worlds 12]

Blurred worlds of 256 pixels, whose true masks are known; the bundled models, 16x16 points. Masks that are joined (of
the blurred and the pre-deblurred image, of an image and its mirror image) are taken by falling predicted IoU, and one
that meets an earlier one at more than 0.7 is dropped; masks of one image are measured with that, too. Prints the
figures of `samdeblur-prep quality`, writes benchmarks/results/better_masks.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from benchmarks.common.figures import RESULTS
from samdeblur.evaluation.masks.matching import mask_iou
from samdeblur.evaluation.masks.quality import mean, quality_of
from samdeblur.models import deblur, load_network, load_sam, local_pooling
from samdeblur.models.checkpoints.public import BUNDLED_NETWORK
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator
from samdeblur.pipeline.segmenters.refine import refine
from samdeblur.pipeline.sources.worlds import WorldSource
from samdeblur.storage import AtomMap

Found = tuple[AtomMap, dict[str, np.ndarray]]
World = dict[str, Any]  # images blurred, sharp, deblurred; truth; m_IMAGE, f_IMAGE: masks of it, of its mirror image


def worlds(count: int) -> Iterator[World]:
    generator = MaskGenerator(load_sam("bundled"), **{**BUNDLED_SETTINGS, "points_per_side": 16})
    network = load_network(BUNDLED_NETWORK)
    if network.local_means:
        network = local_pooling(network, network.train_size or 256)
    source = WorldSource.of(f"worlds:{count}:256", "test")
    for key in source.keys:
        pair = source.read(key)
        world: World = {"blurred": pair.blurred, "sharp": pair.sharp, "truth": pair.masks}
        world["deblurred"] = deblur(network, pair.blurred)
        for name in ("blurred", "deblurred"):
            world[f"m_{name}"] = generator.generate(world[name])
            world[f"f_{name}"] = generator.generate(np.ascontiguousarray(world[name][:, ::-1]))
        yield world


def joined(*parts: Found) -> AtomMap:
    masks = AtomMap.from_masks(np.concatenate([atoms.to_masks() for atoms, _ in parts]))
    scores = np.concatenate([records["predicted_iou"] for _, records in parts])
    iou, kept = mask_iou(masks, masks), []
    for number in np.argsort(-scores, kind="stable"):
        if not kept or iou[number, kept].max() <= 0.7:
            kept.append(number)
    return AtomMap.from_masks(masks.to_masks()[np.sort(kept)])


def mirrored(found: Found) -> Found:
    return AtomMap.from_masks(found[0].to_masks()[:, :, ::-1]), found[1]


def ways() -> dict[str, tuple[int, Callable[[World], AtomMap]]]:
    """Name -> how often masks are generated, and the masks."""
    found: dict[str, tuple[int, Callable[[World], AtomMap]]] = {}
    for image in ("blurred", "deblurred"):
        found[image] = 1, lambda world, image=image: world[f"m_{image}"][0]
        found[f"{image}, duplicates dropped"] = 1, lambda world, image=image: joined(world[f"m_{image}"])
        found[f"{image}, flips"] = (
            2,
            lambda world, image=image: joined(world[f"m_{image}"], mirrored(world[f"f_{image}"])),
        )
        for reach in (1, 2, 3, 4, 6):
            found[f"{image}, --refine {reach}"] = (
                1,
                lambda world, image=image, reach=reach: refine(world[f"m_{image}"][0], world[image], reach),
            )
    found["both"] = 2, lambda world: joined(world["m_deblurred"], world["m_blurred"])
    found["true, 2 px off"] = 0, lambda world: displaced(world)
    for image in ("blurred", "deblurred", "sharp"):
        found[f"true, 2 px off, --refine 3 on {image}"] = (
            0,
            lambda world, image=image: refine(displaced(world), world[image], 3),
        )
    return found


def displaced(world: World) -> AtomMap:
    return AtomMap.from_masks(np.roll(world["truth"].to_masks(), (2, 1), (1, 2)))


def figures(some: Sequence[World]) -> dict[str, dict[str, float]]:
    rows = {}
    for name, (times, way) in ways().items():
        start = time.process_time()
        masks = [way(world) for world in some]
        seconds = (time.process_time() - start) / len(some)
        found = mean([quality_of(m, world["sharp"], world["truth"]) for m, world in zip(masks, some, strict=True)])
        rows[name] = {"generations": times, "seconds_beside_them": round(seconds, 3)}
        rows[name] |= {what: round(value, 3) for what, value in asdict(found).items()}
        row = rows[name]
        print(
            f"| {name} | {row['masks']:.0f} | {row['on_edges']:.2f} | {row['iou']:.2f} | {row['recall']:.2f} | "
            f"{row['precision']:.2f} | {row['border_error']:.2f} | {row['border_surplus']:.2f} | {times} |",
            flush=True,
        )
    return rows


def write(some: Sequence[World]) -> None:
    told = {"worlds": len(some), "points": 16, "machine": platform.machine(), "torch": torch.__version__}
    told |= {"load": os.getloadavg()[0], "rows": figures(some)}
    (RESULTS / "better_masks.json").write_text(json.dumps(told, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worlds", type=int, default=12)
    torch.set_num_threads(1)
    write([*worlds(parser.parse_args().worlds)])


if __name__ == "__main__":
    main()
