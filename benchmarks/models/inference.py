"""Whole images, local means (TLC) and tiles: time, memory, and how far the results differ.

python -m benchmarks.models.inference      # -> benchmarks/results/inference.json; some ten minutes on two cores
python -m benchmarks.models.inference --weights RUN --train-size 256 --image PATH

Each row is measured in a process of its own, on one thread. Time is processor time; memory is the highest resident size
during the call less that before it.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np
import torch
from skimage import data
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common.figures import RESULTS
from samdeblur.models import AtomBatch, MAPUnit, forward_in_tiles, load_network, local_pooling, with_prior
from samdeblur.models.inference.tlc import local_mean
from samdeblur.storage import AtomMap

HEIGHT, WIDTH = 720, 1280
ROWS: dict[str, tuple[int | None, int, bool]] = {  # tile, overlap, TLC
    "whole": (None, 0, False),
    "whole, TLC": (None, 0, True),
    "tiles 512/64": (512, 64, False),
    "tiles 512/64, TLC": (512, 64, True),
    "tiles 256/64": (256, 64, False),
    "tiles 256/64, TLC": (256, 64, True),
}


def example_image(path: str | None) -> np.ndarray:
    """(720, 1280, 3) uint8: a photograph of scikit-image brought to size, or one of yours."""
    pixels = data.astronaut() if path is None else cv2.imread(path)[..., ::-1]
    return cv2.resize(np.ascontiguousarray(pixels), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def masks() -> np.ndarray:
    """(60, H, W) bool: discs of many sizes."""
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    discs = [
        (ys - rng.uniform(0, HEIGHT)) ** 2 + (xs - rng.uniform(0, WIDTH)) ** 2 < (20 + 300 * rng.power(0.6)) ** 2
        for _ in range(60)
    ]
    return np.stack(discs)


def measure_row(name: str, weights: str, train_size: int, path: str | None, out: Path) -> dict[str, float]:
    """One way to deblur an image, with a MAP prior so that its share is counted; saves the result."""
    tile, overlap, tlc = ROWS[name]
    network = load_network(weights)
    if network.prior is None:
        network = with_prior(network.network, MAPUnit(), init="zero").eval()
    if tlc:
        network = local_pooling(network, train_size)
    image = torch.from_numpy(example_image(path)).permute(2, 0, 1)[None].float() / 255
    atoms = AtomBatch.collate([AtomMap.from_masks(masks())])
    with torch.inference_mode():
        network(image[..., :64, :64].contiguous(), AtomBatch.background(1, 64, 64))
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident size
        before, start = highest_rss(), time.process_time()
        result = network(image, atoms) if tile is None else forward_in_tiles(network, image, atoms, tile, overlap)
        seconds, memory = time.process_time() - start, highest_rss() - before
    np.save(out, result.numpy())
    return {"seconds": round(seconds, 1), "memory_mb": round(memory)}


def highest_rss() -> float:
    """Highest resident size of this process since it was last cleared, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def difference(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """PSNR of one result against the other, and the largest difference; of values in [0, 1]."""
    apart = one.astype(float).clip(0, 1) - other.astype(float).clip(0, 1)
    error = float(np.square(apart).mean())
    return {"psnr": round(-10 * np.log10(error), 1) if error else None, "largest": float(f"{np.abs(apart).max():.2g}")}


def integral_image(x: Tensor, kernel: int, dtype: torch.dtype) -> Tensor:
    """Window means from the sums of all rectangles that begin in the corner, padded back."""
    s = F.pad(x.to(dtype).cumsum(-1).cumsum_(-2), (1, 0, 1, 0))
    k = kernel
    means = (s[..., k:, k:] - s[..., :-k, k:] - s[..., k:, :-k] + s[..., :-k, :-k]) / k**2
    border = ((k - 1) // 2, k // 2, (k - 1) // 2, k // 2)
    return F.pad(means.to(x.dtype), border, mode="replicate")


def pooled(x: Tensor, kernel: int) -> Tensor:
    """avg_pool2d along the columns, then along the rows, padded back."""
    means = F.avg_pool2d(F.avg_pool2d(x, (kernel, 1), 1), (1, kernel), 1)
    border = ((kernel - 1) // 2, kernel // 2, (kernel - 1) // 2, kernel // 2)
    return F.pad(means, border, mode="replicate")


WAYS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "running sums, float64": lambda x, k: local_mean(x, (k, k)),
    "integral image, float32": lambda x, k: integral_image(x, k, torch.float32),
    "integral image, float64": lambda x, k: integral_image(x, k, torch.float64),
    "avg_pool2d, two passes": pooled,
}


def measure_means(way: str, channels: int, height: int, width: int, kernel: int) -> dict[str, float]:
    """One way to take local means of (1, C, H, W) features in [1, 2), laid out as NAFNet lays them out."""
    x = torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(0)) + 1
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        WAYS[way](x[..., : kernel + 1, : kernel + 1], kernel)
        Path("/proc/self/clear_refs").write_text("5")
        before, start = highest_rss(), time.process_time()
        found = WAYS[way](x, kernel)
        seconds, memory = time.process_time() - start, highest_rss() - before
        exact = local_mean(x.double(), (kernel, kernel))  # afterwards: memory that is free again would not count
    return {
        "milliseconds": round(1e3 * seconds),
        "memory_mb": round(memory),
        "largest_error": float(f"{(found - exact).abs().max():.1e}"),
    }


def in_own_process(*arguments: object) -> dict[str, float]:
    """This script with --child, on one thread; what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.models.inference", "--child", json.dumps(arguments)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


@click.command()
@click.option("--weights", default="bundled", show_default=True)
@click.option("--train-size", default=96, show_default=True, help="Side of the crops they were trained on.")
@click.option("--image", "path", type=click.Path(exists=True), help="An image of yours.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "inference.json")
@click.option("--child", hidden=True)
def main(weights: str, train_size: int, path: str | None, out: Path, child: str | None) -> None:
    """Measure inference on a whole image, with local means, and in tiles."""
    if child is not None:
        torch.set_num_threads(1)
        kind, *arguments = json.loads(child)
        measured = measure_means(*arguments) if kind == "means" else measure_row(*arguments[:4], out=Path(arguments[4]))
        click.echo(json.dumps(measured))
        return

    rows, results = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ROWS:
            file = Path(folder) / "result.npy"
            rows[name] = in_own_process("row", name, weights, train_size, path, str(file))
            results[name] = np.load(file)
            for other in ("whole", "whole, TLC"):
                if other in results and other != name:
                    rows[name][f"against {other}"] = difference(results[name], results[other])
            click.echo(f"{name}: {json.dumps(rows[name])}")

    means = {}
    for channels, height, width, kernel in ((16, 720, 1280, 384), (64, 180, 320, 96)):
        for way in WAYS:
            if way.startswith("avg_pool2d") and kernel > 100:
                continue  # minutes
            key = f"{way}: {channels} x {height} x {width}, window {kernel}"
            means[key] = in_own_process("means", way, channels, height, width, kernel)
            click.echo(f"{key}: {json.dumps(means[key])}")

    machine = f"{platform.machine()}, 1 thread, torch {torch.__version__}"
    document = {
        "machine": machine,
        "image": path or "astronaut",
        "size": f"{WIDTH}x{HEIGHT}",
        "weights": weights,
        "train_size": train_size,
        "rows": rows,
        "local_means": means,
    }
    out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
