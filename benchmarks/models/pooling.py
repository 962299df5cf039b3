"""Mask average pooling on atoms against dense masks: the released loop, a loop over masks, and einsum.

Usage: python -m benchmarks.models.pooling. One thread; times are medians of the processor time of calls that take
turns, so that other programs on the machine count little. Prints a table and writes benchmarks/results/pooling.json.
"""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.common.figures import RESULTS
from samdeblur.models import AtomBatch, MAPUnit, NAFNet, mask_average_pool, with_prior
from samdeblur.storage import AtomMap

REPEATS = 11
PEER_REPEATS = 9

Pool = Callable[[Tensor], Tensor]


def ellipses(rng: np.random.Generator, n: int, height: int, width: int) -> np.ndarray:
    """(n, H, W) bool: ellipses of power-law sizes thrown anywhere, small ones in and across large ones."""
    ys, xs = np.mgrid[:height, :width]
    masks = np.zeros((n, height, width), bool)
    for mask in masks:
        radius = min(height, width) * 0.5 * rng.power(0.6) + 3
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        mask[:] = ((ys - y) / rng.uniform(0.6, 1.4)) ** 2 + ((xs - x) / rng.uniform(0.6, 1.4)) ** 2 < radius**2
    return masks


def parts(rng: np.random.Generator, n: int, height: int, width: int) -> np.ndarray:
    """(n, H, W) bool: parts in objects in groups, as Segment Anything nests them; a tenth of the parts is no mask."""
    n_parts, n_objects = round(0.66 * n), round(0.24 * n)
    ys, xs = np.mgrid[:height, :width]
    centres = rng.uniform(0, 1, (n_parts, 2)) * (height, width)
    nearest, part = np.full((height, width), np.inf), np.zeros((height, width), int)
    for number, (y, x) in enumerate(centres):
        distance = (ys - y) ** 2 + (xs - x) ** 2
        closer = distance < nearest
        nearest[closer], part[closer] = distance[closer], number

    def grouped(count: int) -> np.ndarray:
        seeds = centres[rng.choice(n_parts, count, replace=False)]
        return np.argmin(((centres[:, None] - seeds) ** 2).sum(2), axis=1)

    objects, groups = grouped(n_objects), grouped(n - n_parts - n_objects)
    shown = rng.random(n_parts) > 0.1
    planes = [(part == number) & shown[number] for number in range(n_parts)]
    planes += [shown[part] & (objects[part] == number) for number in range(n_objects)]
    planes += [shown[part] & (groups[part] == number) for number in range(n - n_parts - n_objects)]
    return np.stack(planes)


def released_loop(features: Tensor, masks: list[Tensor]) -> Tensor:
    """For every sample, for every mask: its mean, added to its pixels; what no mask covers is found on the way."""
    samples = []
    for feature, stack in zip(features, masks, strict=True):
        pooled, covered = torch.zeros_like(feature), torch.zeros_like(stack[0])
        for mask in stack[:-1]:  # the last one is the background
            pooled = pooled + mask * ((feature * mask).sum((1, 2), keepdim=True) / (mask.sum() + 1e-8))
            covered = torch.maximum(covered, mask)
        rest = 1 - covered
        samples.append(pooled + rest * ((feature * rest).sum((1, 2), keepdim=True) / (rest.sum() + 1e-8)))
    return torch.stack(samples)


def batched_loop(features: Tensor, masks: list[Tensor]) -> Tensor:
    """One loop over the masks of all samples at once, padded to the same number, the background ready-made."""
    stacks = torch.stack(masks, 1).unsqueeze(2)
    pooled = torch.zeros_like(features)
    for mask in stacks:
        means = (features * mask).sum((2, 3), keepdim=True) / (mask.sum((2, 3), keepdim=True) + 1e-8)
        pooled = pooled + mask * means
    return pooled


def einsum(features: Tensor, masks: list[Tensor]) -> Tensor:
    """Two products with ready-made float masks, background included."""
    samples = []
    for feature, stack in zip(features, masks, strict=True):
        means = torch.einsum("shw,mhw->sm", feature, stack) / (stack.sum(dim=(1, 2)) + 1e-8)
        samples.append(torch.einsum("sm,mhw->shw", means, stack))
    return torch.stack(samples)


def milliseconds(ways: dict[str, Callable[[], object]], repeats: dict[str, int]) -> dict[str, float]:
    """Median processor time of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, max(repeats.values())):  # the first turn warms up
        for name, way in ways.items():
            if turn < repeats[name]:
                start = time.process_time()
                way()
                times[name].append(time.process_time() - start)
    return {name: 1e3 * statistics.median(values[1:]) for name, values in times.items()}


def peak_mib(way: Callable[[], object]) -> float | None:
    """Most memory a call needs beyond what is resident before it; None where the kernel does not tell."""
    refs, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def field(name: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # or else what was freed before is there to be used again, unseen
        refs.write_text("5")
        before = field("VmRSS")
        way()
        return (field("VmHWM") - before) / 1024
    except OSError:
        return None


def measure(
    draw: Callable[..., np.ndarray], batch: int, height: int, width: int, n_masks: int, channels: int, backward: bool
) -> dict[str, object]:
    rng = np.random.default_rng(0)
    stacks = [draw(rng, n_masks, height, width) for _ in range(batch)]
    atoms = AtomBatch.collate([AtomMap.from_masks(stack) for stack in stacks])
    dense = [torch.from_numpy(np.concatenate([stack, ~stack.any(axis=0, keepdims=True)])).float() for stack in stacks]
    features = torch.randn(batch, channels, height, width)
    last = features.contiguous(memory_format=torch.channels_last)
    grad, grad_last = torch.ones_like(features), torch.ones_like(last)

    def call(pool: Pool, source: Tensor, upstream: Tensor) -> Callable[[], object]:
        if not backward:
            return lambda: pool(source)
        source = source.detach().requires_grad_()
        return lambda: torch.autograd.grad(pool(source), source, upstream)

    pools: dict[str, Pool] = {
        "atoms": lambda f: mask_average_pool(f, atoms),
        "released": lambda f: released_loop(f, dense),
        "batched": lambda f: batched_loop(f, dense),
        "einsum": lambda f: einsum(f, dense),
    }
    exact = einsum(features.double(), [stack.double() for stack in dense])
    difference = float((mask_average_pool(features, atoms) - exact).abs().max() / exact.abs().max())
    ways = {name: call(pool, features, grad) for name, pool in pools.items()}
    ways["atoms_channels_last"] = call(pools["atoms"], last, grad_last)
    peaks = {name: peak_mib(way) for name, way in ways.items()}
    scratch = torch.empty_like(features)
    passes = 2 if backward else 1
    ways["floor"] = lambda: [scratch.copy_(features) for _ in range(passes)]
    ways["floor_new_memory"] = lambda: [features.clone() for _ in range(passes)]
    repeats = {name: PEER_REPEATS if name in ("released", "batched", "einsum") else REPEATS for name in ways}
    took = milliseconds(ways, repeats)
    ours = min(took["atoms"], took["atoms_channels_last"])
    return {
        "masks_drawn": draw.__name__,
        "masks": n_masks,
        "batch": batch,
        "size": f"{width}x{height}",
        "channels": channels,
        "backward": backward,
        "masks_per_pixel": round(float(np.mean([stack.sum(0).mean() for stack in stacks])), 1),
        "pixels_per_run": round(batch * height * width / atoms.runs.numel(), 1),
        "ms": {name: round(value, 2) for name, value in took.items()},
        "over_atoms": {name: round(took[name] / took["atoms"], 1) for name in ("released", "batched", "einsum")},
        "over_atoms_channels_last": {
            name: round(took[name] / took["atoms_channels_last"], 1) for name in ("released", "batched", "einsum")
        },
        "times_the_floor": round(ours / took["floor"], 1),
        "times_the_floor_new_memory": round(ours / took["floor_new_memory"], 1),
        "peak_extra_mib": {name: None if peak is None else round(peak, 1) for name, peak in peaks.items()},
        "relative_difference_to_float64": difference,
    }


def network_step(batch: int, side: int, repeats: int) -> dict[str, object]:
    """A training step, forward and backward, of NAFNet of width 32 without a prior and with MAP."""
    rng, torch_state = np.random.default_rng(0), torch.random.get_rng_state()
    torch.manual_seed(0)
    atoms = AtomBatch.collate([AtomMap.from_masks(parts(rng, 25, side, side)) for _ in range(batch)])
    image = torch.rand(batch, side, side, 3).permute(0, 3, 1, 2)  # as the loader of crops gives it
    networks = {}
    for layout, memory_format in (("", torch.contiguous_format), ("_channels_last", torch.channels_last)):
        for name, prior in (("none", None), ("map", MAPUnit(dropout=0.5))):
            network = with_prior(NAFNet(), prior, init="default")
            networks[name + layout] = network.to(memory_format=memory_format)

    def step(name: str) -> None:
        loss = networks[name](image, atoms).square().mean()
        loss.backward()

    def prior_alone() -> None:
        unit = networks["map_channels_last"].prior
        unit(image, atoms).sum().backward()

    ways: dict[str, Callable[[], object]] = {name: lambda n=name: step(n) for name in networks}  # type: ignore[misc]
    ways["map_unit_alone"] = prior_alone
    took = milliseconds(ways, dict.fromkeys(ways, repeats))
    torch.random.set_rng_state(torch_state)
    alone = took["map_unit_alone"] / took["none_channels_last"]
    return {
        "batch": batch,
        "size": f"{side}x{side}",
        "repeats": repeats,
        "ms": {name: round(value, 1) for name, value in took.items()},
        "map_over_none": round(took["map"] / took["none"], 4),
        "map_over_none_channels_last": round(took["map_channels_last"] / took["none_channels_last"], 4),
        "map_unit_alone_percent": round(100 * alone, 2),
    }


def main() -> None:
    torch.set_num_threads(1)
    shapes = [
        *((draw, 8, 256, 256, n, 2, True) for draw in (parts, ellipses) for n in (10, 25, 60)),
        (parts, 8, 256, 256, 25, 32, True),
        *((draw, 1, 720, 1280, 240, 2, False) for draw in (parts, ellipses)),
    ]
    rows = []
    print(
        "| masks | batch, size, channels | atoms | channels last | released | batched | einsum | floor | new memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for shape in shapes:
        row = measure(*shape)
        rows.append(row)
        took = row["ms"]
        names = ("atoms", "atoms_channels_last", "released", "batched", "einsum", "floor", "floor_new_memory")
        cells = " | ".join(f"{took[name]:.1f}" for name in names)  # type: ignore[index]
        print(
            f"| {row['masks']} {row['masks_drawn']} | {row['batch']} x {row['size']} x {row['channels']} | {cells} |"
            f" released {row['over_atoms']['released']}x, einsum {row['over_atoms']['einsum']}x"  # type: ignore[index]
            f" peak {row['peak_extra_mib']}",
            flush=True,
        )
    network = network_step(2, 128, 7)
    print(json.dumps(network, indent=1))
    machine = f"{platform.machine()} CPU, 1 thread, torch {torch.__version__}, processor time"
    result = RESULTS / "pooling.json"
    content = {"machine": machine, "repeats": REPEATS, "peer_repeats": PEER_REPEATS, "rows": rows, "network": network}
    result.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
