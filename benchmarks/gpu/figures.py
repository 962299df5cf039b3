"""How fast a device is: each measurement returns figures of one thing done in several ways."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from segment_anything import SamAutomaticMaskGenerator

from benchmarks.gpu import scenes
from benchmarks.gpu.scenes import Size
from samdeblur.evaluation.evaluate import measure, score_images
from samdeblur.evaluation.restore import Restored
from samdeblur.evaluation.sets import Sample
from samdeblur.models import AtomBatch, deblur, mask_average_pool
from samdeblur.models.inference.precision import computing, kernels
from samdeblur.pipeline.segmenters import mask_generator
from samdeblur.pipeline.segmenters.mask_generator import MaskGenerator
from samdeblur.pipeline.segmenters.speed import Speed
from samdeblur.storage import AtomMap
from samdeblur.train.data.crops import CropDataset, Cutting, Share
from samdeblur.train.data.loader import crop_loader
from samdeblur.train.loop import loader_workers
from samdeblur.train.running import compiled

Row = dict[str, Any]


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Median of some calls after one that is not counted, the device being waited for."""

    def once() -> float:
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(repeats))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


FAST = {
    "bfloat16": Speed("bfloat16"),
    "bfloat16 sdpa": Speed("bfloat16", sdpa=True),
    "bfloat16 sdpa compile, 1024 points": Speed("bfloat16", compile=True, sdpa=True),
}


def generation(device: torch.device, size: Size, model: str) -> Row:
    """Seconds per image of the reference, of the same masks here, and of faster modes with how many masks they share.

    Without the atoms, which are made on a CPU while the next image is computed. Weights are random, thresholds such
    that the work is that of a trained model.
    """
    image, repeats = scenes.noisy_patches(size), 2 if size.name == "full" else 1
    sam = scenes.sam(model, device)
    settings = scenes.settings_for(sam, image, size)
    kept: list[Any] = []

    def count(number: int, piece: Callable[[int], Any], shape: tuple[int, int]) -> int:
        kept[:] = [piece(i) for i in range(number)]
        return number

    row: Row = {}
    plain = mask_generator.AtomMap
    mask_generator.AtomMap = type("Counted", (), {"from_pieces": staticmethod(count)})  # type: ignore[misc,assignment]
    try:
        reference = SamAutomaticMaskGenerator(sam, **settings)
        row["reference, s"] = seconds(lambda: reference.generate(image), device, 1)
        exact = MaskGenerator(sam, **settings)
        row["exact, s"] = seconds(lambda: exact.generate(image), device, repeats)
        row["masks"] = len(kept)
        boxes = _boxes(kept)
        for name, speed in FAST.items():
            batch = {"points_per_batch": min(1024, size.points**2)} if "points" in name else {}
            fast = MaskGenerator(scenes.sam(model, device), speed, **settings | batch)
            row[f"{name}, s"] = seconds(partial(fast.generate, image), device, repeats)
            row[f"{name}, masks"] = len(kept)
            row[f"{name}, same boxes"] = round(len(boxes & _boxes(kept)) / max(1, len(boxes)), 3)
    finally:
        mask_generator.AtomMap = plain  # type: ignore[misc]
    return row


def _boxes(pieces: list[Any]) -> set[tuple[int, ...]]:
    return {(top, left, *pixels.shape, int(pixels.sum()) // 64) for top, left, pixels in pieces}


def training(device: torch.device, size: Size) -> Row:
    """Crops per second of NAFNet with the paper's prior, forward, backward and step, from batches on the device."""
    planes = scenes.masks(size)[:, : size.crop, : size.crop]
    batch = AtomBatch.collate([AtomMap.from_masks(planes)] * size.batch, range(size.batch)).to(device)
    image = torch.rand(size.batch, 3, size.crop, size.crop, device=device)
    row: Row = {}
    ways: dict[str, tuple[str, bool, bool]] = {
        "float32": ("float32", False, False),
        "tf32": ("tf32", False, False),
        "bfloat16": ("bfloat16", False, False),
        "bfloat16 channels_last": ("bfloat16", True, False),
        "bfloat16 channels_last compile": ("bfloat16", True, True),
    }
    for name, (precision, channels_last, compile_it) in ways.items():
        layout = torch.channels_last if channels_last else torch.contiguous_format
        network = scenes.network(size).to(device).to(memory_format=layout).train()  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=device.type == "cuda")
        stepped = compiled(network) if compile_it else network  # type: ignore[arg-type]
        images = image.contiguous(memory_format=layout)

        step = partial(_step, stepped, optimizer, images, batch, precision)
        with kernels(device, precision):
            step()  # compilation, the choice of kernels
            row[f"{name}, crops/s"] = round(size.batch / seconds(step, device, 5), 1)
    return row


def _step(network: Any, optimizer: torch.optim.Optimizer, image: Any, batch: AtomBatch, precision: str) -> None:
    with computing(image.device, precision):
        output = network(image, batch)
    (output.float() - image).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def loader(device: torch.device, size: Size) -> Row:
    """Crops per second of the loader with its default workers, reading a store from a local disk."""
    from samdeblur.evaluation.ranks import Ranks
    from samdeblur.train import TrainConfig

    workers = loader_workers(TrainConfig(), Ranks(device))
    with tempfile.TemporaryDirectory() as folder:
        store = scenes.store(size, Path(folder))
        crops = CropDataset(store, store.keys, Cutting(size.crop), 0, with_atoms=True)
        batches = crop_loader(crops, Share(size.batch, 1, size.steps + 2), workers)
        next(batches)
        start = time.perf_counter()
        for _ in range(size.steps):
            next(batches).to(device)
        _wait(device)
        took = time.perf_counter() - start
    return {"workers": workers, "crops/s": round(size.steps * size.batch / took, 1)}


def pooling(device: torch.device, size: Size) -> Row:
    """Milliseconds of one 720p image, two channels, forward and backward, against the loop of the released code."""
    planes = scenes.masks(size)
    batch = AtomBatch.collate([AtomMap.from_masks(planes)]).to(device)
    there = [torch.from_numpy(plane).float().to(device) for plane in planes]
    features = torch.rand(1, 2, size.height, size.width, device=device, requires_grad=True)

    def released() -> None:
        pooled, covered = torch.zeros_like(features), torch.zeros_like(there[0])
        for mask in there:
            pooled = pooled + mask * ((features * mask).sum((2, 3), keepdim=True) / (mask.sum() + 1e-8))
            covered = torch.maximum(covered, mask)
        rest = 1 - covered
        (pooled + rest * ((features * rest).sum((2, 3), keepdim=True) / (rest.sum() + 1e-8))).sum().backward()

    ours = seconds(lambda: mask_average_pool(features, batch).sum().backward(), device, 5)
    loop = seconds(released, device, 2)
    return {
        "atoms, ms": round(1e3 * ours, 2),
        "loop over masks, ms": round(1e3 * loop, 2),
        "ratio": round(loop / ours, 1),
    }


def validation(device: torch.device, size: Size) -> Row:
    """Seconds per image of a validation: network and scores on the device, and scores on the host as they were."""
    network = scenes.network(size, "none").to(device).eval()
    with tempfile.TemporaryDirectory() as folder:
        store = scenes.store(size, Path(folder))

        def before() -> None:
            for key in store.keys:
                sample = Sample(store.image("blurred", key), store.image("sharp", key))
                measure(key, sample, Restored(deblur(network, sample.blurred)))

        now = seconds(lambda: list(score_images(network, store, store.keys)), device, 1)
        return {
            "on the device, s/image": round(now / size.images, 4),
            "scored on the host, s/image": round(seconds(before, device, 1) / size.images, 4),
        }


def figures(size: Size) -> dict[str, Callable[[torch.device, Size], Row]]:
    """The measurements, the most wanted first."""
    first, *others = [(f"generation, {model}", partial(generation, model=model)) for model in size.models]
    return dict(
        [
            ("pooling against the loop", pooling),
            ("validation", validation),
            ("training", training),
            first,
            ("loader", loader),
            *others,
        ]
    )
