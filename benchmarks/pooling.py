"""Mask average pooling on atoms against dense masks: a loop over the masks, and einsum on ready-made float masks.

Usage: python benchmarks/pooling.py. Prints medians and ratios of one run, and writes benchmarks/results/pooling.json.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samdeblur.models import AtomBatch, mask_average_pool
from samdeblur.storage import AtomMap

REPEATS = 9


def nested_masks(rng: np.random.Generator, n: int, height: int, width: int) -> np.ndarray:
    """(n, H, W) bool: ellipses of power-law sizes, so that small ones lie in and across large ones."""
    ys, xs = np.mgrid[:height, :width]
    masks = np.zeros((n, height, width), bool)
    for mask in masks:
        radius = min(height, width) * 0.5 * rng.power(0.6) + 3
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        mask[:] = ((ys - y) / rng.uniform(0.6, 1.4)) ** 2 + ((xs - x) / rng.uniform(0.6, 1.4)) ** 2 < radius**2
    return masks


def dense_loop(features: Tensor, masks: list[Tensor]) -> Tensor:
    """Algorithm 1 as it reads: for every sample, for every mask, the mean, added to the pixels of the mask."""
    samples = []
    for feature, stack in zip(features, masks, strict=True):
        pooled = torch.zeros_like(feature)
        for mask in stack:
            mean = (feature * mask).sum(dim=(1, 2), keepdim=True) / (mask.sum() + 1e-8)
            pooled = pooled + mean * mask
        samples.append(pooled)
    return torch.stack(samples)


def dense_einsum(features: Tensor, masks: list[Tensor]) -> Tensor:
    """Two einsums per sample on ready-made float masks."""
    samples = []
    for feature, stack in zip(features, masks, strict=True):
        means = torch.einsum("shw,mhw->sm", feature, stack) / (stack.sum(dim=(1, 2)) + 1e-8)
        samples.append(torch.einsum("sm,mhw->shw", means, stack))
    return torch.stack(samples)


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def measure(batch: int, height: int, width: int, n_masks: int, channels: int, backward: bool) -> dict[str, object]:
    rng = np.random.default_rng(0)
    stacks = [nested_masks(rng, n_masks, height, width) for _ in range(batch)]
    atoms = AtomBatch.collate([AtomMap.from_masks(stack) for stack in stacks])
    background = [np.concatenate([stack, ~stack.any(axis=0, keepdims=True)]) for stack in stacks]
    dense = [torch.from_numpy(stack).float() for stack in background]
    features = torch.randn(batch, channels, height, width, requires_grad=backward)

    def run(pool: Callable[[Tensor], Tensor]) -> None:
        pooled = pool(features)
        if backward:
            pooled.square().sum().backward()

    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "atoms": lambda f: mask_average_pool(f, atoms),
        "einsum": lambda f: dense_einsum(f, dense),
        "loop": lambda f: dense_loop(f, dense),
    }
    with torch.no_grad():
        outputs = {name: pool(features) for name, pool in ways.items()}
    difference = max(float((outputs["atoms"] - outputs[name]).abs().max()) for name in ("einsum", "loop"))
    medians = {
        name: milliseconds(lambda p=pool: run(p), REPEATS if name == "atoms" else 3) for name, pool in ways.items()
    }
    return {
        "batch": batch,
        "size": f"{width}x{height}",
        "masks": n_masks,
        "channels": channels,
        "backward": backward,
        **{f"{name}_ms": round(value, 2) for name, value in medians.items()},
        "einsum_over_atoms": round(medians["einsum"] / medians["atoms"], 1),
        "loop_over_atoms": round(medians["loop"] / medians["atoms"], 1),
        "largest_difference": difference,
    }


def main() -> None:
    rows = [measure(8, 256, 256, 25, 2, True), measure(8, 256, 256, 60, 2, True), measure(1, 720, 1280, 240, 2, False)]
    for row in rows:
        print(json.dumps(row))
    machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
    result = Path(__file__).parent / "results" / "pooling.json"
    result.write_text(json.dumps({"machine": machine, "repeats": REPEATS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
