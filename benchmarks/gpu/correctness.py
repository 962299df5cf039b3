"""Whether a device computes what it should. Each check returns figures, and "right" or what is wrong."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator

from benchmarks.gpu import scenes
from benchmarks.gpu.scenes import Size
from samdeblur.evaluation.metrics.psnr_ssim import compare
from samdeblur.models import AtomBatch, load_sam, local_pooling, mask_average_pool
from samdeblur.models.priors.released import REGIONS, pool_regions
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator
from samdeblur.storage import AtomMap
from samdeblur.train import TrainConfig, train
from samdeblur.train.stopping import Stopped

Row = dict[str, Any]


def _judged(limits: dict[str, float], **figures: float) -> Row:
    """Figures, and whether each is within its limit."""
    wrong = [
        f"{name} {figures[name]:.2g} above {limit:.0e}" for name, limit in limits.items() if not figures[name] <= limit
    ]
    return {**figures, "verdict": "; ".join(wrong) or "right"}


def pooling(device: torch.device, size: Size) -> Row:
    """Means over masks and over a flat sky, gradients, half precision, the released unit."""
    planes = scenes.masks(size)
    batch = AtomBatch.collate([AtomMap.from_masks(planes)])
    there = batch.to(device)
    rng = np.random.default_rng(0)
    features = rng.normal(0.5, 0.3, (2, size.height, size.width))
    expected = scenes.dense(planes, features.astype(np.float32).astype(np.float64))
    source = torch.from_numpy(features).float()[None].to(device).requires_grad_()
    pooled = mask_average_pool(source, there)
    weights = torch.from_numpy(rng.normal(size=pooled.shape)).float()
    pooled.backward(weights.to(device))
    host = torch.from_numpy(features).float()[None].requires_grad_()
    mask_average_pool(host, batch).backward(weights)
    half = mask_average_pool(source.detach().bfloat16(), there).float()
    sky = torch.full((1, 2, size.height, size.width), 0.7311, device=device)
    flat = mask_average_pool(sky, AtomBatch.background(1, size.height, size.width).to(device))
    regions = torch.from_numpy(rng.integers(1, REGIONS, (1, size.height, size.width)))
    kept = torch.ones(1, REGIONS, dtype=torch.bool)
    released = [pool_regions(source.detach().to(d), regions.to(d), kept.to(d)).cpu() for d in (device, "cpu")]
    scale = np.abs(expected).max()
    return _judged(
        {"error": 1e-6, "gradient": 1e-5, "bfloat16": 2e-2, "flat sky": 1e-6, "released": 1e-6},
        **{
            "error": float(np.abs(pooled[0].detach().cpu().double().numpy() - expected).max() / scale),
            "gradient": _apart(source.grad, host.grad),
            "bfloat16": float(np.abs(half[0].cpu().double().numpy() - expected).max() / scale),
            "flat sky": float((flat / sky - 1).abs().max()),
            "released": _apart(*released),
        },
    )


def _apart(one: Any, other: Any) -> float:
    """The largest difference, as a share of the largest value."""
    one, other = (tensor.detach().cpu().double() for tensor in (one, other))
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))


def local_means(device: torch.device, size: Size) -> Row:
    """A network with local means against the host in float64; and repeatable, where that is asked for."""
    network = local_pooling(scenes.network(size, "none").eval(), size.crop)
    side = (min(size.height, 2 * size.crop), min(size.width, 3 * size.crop))
    image = torch.rand(1, 3, *side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.double()(image.double())
        there = network.float().to(device)
        found = there(image.to(device))
        torch.use_deterministic_algorithms(True, warn_only=False)
        try:
            again = there(image.to(device))
        finally:
            torch.use_deterministic_algorithms(False)
    return _judged(
        {"error": 1e-4, "deterministic": 1e-4}, error=_apart(found, expected), deterministic=_apart(again, expected)
    )


def metrics(device: torch.device, size: Size) -> Row:
    """PSNR and SSIM on the device and on the host."""
    images = [torch.from_numpy(scenes.noisy_patches(size, seed)).permute(2, 0, 1)[None] for seed in range(3)]
    here, there = compare(*images), compare(*(one.to(device) for one in images))
    apart = {
        name: max(_apart(mine[name], theirs[name]) for mine, theirs in zip(there, here, strict=True))
        for name in here[0]
    }
    return _judged(dict.fromkeys(apart, 1e-11), **apart)


def exact_masks(device: torch.device, size: Size) -> Row:
    """Masks and records of the bundled model against those of segment-anything on the same device."""
    sam = load_sam("bundled").to(device)
    settings = BUNDLED_SETTINGS | {"points_per_side": 24 if size.name == "full" else 3}
    image = scenes.noisy_patches(size)
    theirs = SamAutomaticMaskGenerator(sam, **settings).generate(image)
    atoms, records = MaskGenerator(sam, **settings).generate(image)
    others, again = MaskGenerator(sam, **settings).generate(image)
    mine = atoms.to_masks()
    scores = zip(theirs, records["predicted_iou"], strict=False)
    differing = sum(not np.array_equal(mask, one["segmentation"]) for mask, one in zip(mine, theirs, strict=False))
    return _judged(
        {"other masks": 0, "missing": 0, "other scores": 0, "not repeated": 0},
        **{
            "masks": atoms.n_masks,
            "other masks": differing,
            "missing": abs(len(theirs) - atoms.n_masks),
            "other scores": sum(float(one["predicted_iou"]) != score for one, score in scores),
            "not repeated": float(others != atoms or not np.array_equal(again["area"], records["area"])),
        },
    )


def _config(size: Size, device: torch.device, **changes: Any) -> TrainConfig:
    usual = {
        "method": "map-dropout", "width": min(size.network, 16), "enc_blk_nums": (1,), "dec_blk_nums": (1,),
        "steps": 4, "batch_size": 4, "crop_size": min(size.crop, 96), "val_every": 4, "log_every": 1, "val_images": 1,
        "learning_rate": 1e-3, "device": device.type, "loader_workers": 0,
    }  # fmt: skip
    return TrainConfig(**(usual | changes))


def precisions(device: torch.device, size: Size) -> Row:
    """Losses of a short run in each precision against those in float64 on the host."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = scenes.store(size, Path(folder))

        def losses(name: str, config: TrainConfig) -> np.ndarray:
            history = train(config, store, Path(folder) / name)
            return np.array([row["loss"] for row in history if "loss" in row])

        expected = losses("host", _config(size, torch.device("cpu"), precision="float64"))
        for precision in ("float32", "tf32", "bfloat16", "float64"):
            found[precision] = float(
                np.abs(losses(precision, _config(size, device, precision=precision)) - expected).max()
            )
        layout = _config(size, device, precision="bfloat16", channels_last=True, ema=0.9, accumulate=2)
        found["bfloat16 channels_last ema"] = float(np.abs(losses("layout", layout) - expected).max())
        half = losses("float16", _config(size, device, precision="float16"))
        found["float16"] = float(np.abs(half - expected)[0])  # its first steps overflow and are left out
    limits = {"float32": 1e-2, "tf32": 0.2, "bfloat16": 0.5, "float64": 1e-5, "bfloat16 channels_last ema": 0.5}
    return _judged(limits | {"float16": 0.1}, **found)  # dB


def resume(device: torch.device, size: Size) -> Row:
    """A run that was stopped on this device, and one that was begun on the host, in float16, and goes on here."""
    with tempfile.TemporaryDirectory() as folder:
        store = scenes.store(size, Path(folder))

        def stopped(name: str, config: TrainConfig, then: TrainConfig) -> np.ndarray:
            def stop(row: dict[str, float]) -> None:
                if row["step"] == 2:
                    signal.raise_signal(signal.SIGTERM)

            with suppress(Stopped):
                train(config, store, Path(folder) / name, progress=stop)
            return np.array([row["loss"] for row in train(then, store, Path(folder) / name) if "loss" in row])

        def whole(name: str, config: TrainConfig) -> np.ndarray:
            return np.array([row["loss"] for row in train(config, store, Path(folder) / name) if "loss" in row])

        plain = _config(size, device)
        half = replace(plain, precision="float16")
        same = stopped("same", plain, plain) - whole("whole", plain)
        moved = stopped("moved", replace(half, device="cpu"), half) - whole("half", half)
        return _judged(
            {"same device": 1e-3, "from a CPU, float16": 0.2},
            **{"same device": float(np.abs(same).max()), "from a CPU, float16": float(np.abs(moved).max())},
        )


CHECKS: dict[str, Callable[[torch.device, Size], Row]] = {
    "pooling": pooling,
    "local means (TLC)": local_means,
    "metrics": metrics,
    "exact masks": exact_masks,
    "training, precisions": precisions,
    "resume": resume,
}
