"""Evaluation, side by side with what others do, in one run.

python -m benchmarks.evaluation.evaluate      # -> benchmarks/results/evaluate.json; some eight minutes
python -m benchmarks.evaluation.evaluate --part metrics

`metrics`: PSNR and SSIM of photographs at 1280x720 on one thread, against scikit-image. It has no SSIM as NAFNet
computes it, so that one is compared with the formula in SciPy. The ways take turns; milliseconds are processor time of
one image.

`whole`: the bundled network on pairs of PNG files at 1280x720, with scores, report and journal, against a plain script
that reads, restores and scores the same files with scikit-image alone (PSNR, and SSIM in one convention).

`memory`: the network of the paper (width 32, random weights) with MAP on an image of 2152x1436, as a whole
and in tiles of 512: what the process takes beside weights and libraries. Each in a process of its own.

A part that is not run keeps what the file has of it.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # before numpy is there

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate1d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from benchmarks.common.figures import RESULTS
from samdeblur.evaluation.evaluate import Evaluation, evaluate
from samdeblur.evaluation.metrics.psnr_ssim import compare, psnr, ssim
from samdeblur.evaluation.ranks import Ranks
from samdeblur.evaluation.report.write import write_report
from samdeblur.evaluation.results import Conventions, Inference, Results
from samdeblur.evaluation.sets import LooseSet, Sample
from samdeblur.models import Deblurrer, MAPUnit, NAFNet, load_network, with_prior
from samdeblur.pipeline import open_source
from samdeblur.storage import AtomMap

ImageArray = NDArray[np.uint8]

HEIGHT, WIDTH = 720, 1280
TURNS = 11
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def photographs() -> list[tuple[ImageArray, ImageArray, ImageArray]]:
    """Sharp, shaken, and half-way between them, each (720, 1280, 3) uint8."""
    found = []
    for name in PHOTOGRAPHS:
        pixels = getattr(skimage.data, name)()[..., :3]
        sharp = cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        blurred = cv2.filter2D(sharp, -1, np.eye(15) / 15)
        found.append((sharp, blurred, cv2.addWeighted(sharp, 0.5, blurred, 0.5, 0)))
    return found


def skimage_ssim(image: ImageArray, reference: ImageArray) -> float:
    return structural_similarity(
        image,
        reference,
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


def scipy_volume_ssim(image: ImageArray, reference: ImageArray) -> float:
    """SSIM with a Gaussian over H, W and C, as NAFNet's evaluation has it, in float64."""
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))

    def smooth(volume: NDArray[np.float64]) -> NDArray[np.float64]:
        for axis in range(3):
            volume = correlate1d(volume, weights / weights.sum(), axis, mode="nearest")
        return volume

    x, y = image.astype(np.float64), reference.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = smooth(x), smooth(y)
    variance_x, variance_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float(np.mean(luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)))


def six_calls(sharp: ImageArray, *images: ImageArray) -> list[float]:
    return [value for x in images for value in (psnr(x, sharp), ssim(x, sharp, "wang"), ssim(x, sharp, "nafnet"))]


def one_call(sharp: ImageArray, *images: ImageArray) -> list[float]:
    return [float(value) for row in compare(sharp[None], *(x[None] for x in images)) for value in row.values()]


def six_calls_of_others(sharp: ImageArray, *images: ImageArray) -> list[float]:
    return [
        value
        for x in images
        for value in (
            peak_signal_noise_ratio(sharp, x, data_range=255),
            skimage_ssim(x, sharp),
            scipy_volume_ssim(x, sharp),
        )
    ]


Way = Callable[[ImageArray, ImageArray, ImageArray], Any]  # of sharp, blurred and result
# What is measured -> ways to do it, the peer last.
WAYS: dict[str, dict[str, Way]] = {
    "PSNR": {
        "ours": lambda sharp, _, result: psnr(result, sharp),
        "scikit-image": lambda sharp, _, result: peak_signal_noise_ratio(sharp, result, data_range=255),
    },
    "SSIM, wang": {
        "ours": lambda sharp, _, result: ssim(result, sharp),
        "scikit-image": lambda sharp, _, result: skimage_ssim(result, sharp),
    },
    "SSIM, nafnet": {
        "ours": lambda sharp, _, result: ssim(result, sharp, "nafnet"),
        "SciPy": lambda sharp, _, result: scipy_volume_ssim(result, sharp),
    },
    "the three, of blurred and of result": {
        "ours, compare": lambda sharp, blurred, result: one_call(sharp, blurred, result),
        "ours, six calls": lambda sharp, blurred, result: six_calls(sharp, blurred, result),
        "scikit-image and SciPy": lambda sharp, blurred, result: six_calls_of_others(sharp, blurred, result),
    },
}


def metrics() -> dict[str, Any]:
    """Milliseconds and images per second of every way, and how far the values are from the peer's."""
    images = photographs()
    ways = [(what, name, way) for what, by_name in WAYS.items() for name, way in by_name.items()]
    seconds: dict[tuple[str, str], list[float]] = {(what, name): [] for what, name, _ in ways}
    for turn in range(-1, TURNS):  # the first one fills caches
        for place in np.random.default_rng(turn + 1).permutation(len(ways)):
            what, name, way = ways[place]
            start = time.process_time()
            way(*images[turn % len(images)])
            if turn >= 0:
                seconds[what, name].append(time.process_time() - start)
    rows = []
    for what, by_name in WAYS.items():
        *_, (peer, theirs) = by_name.items()
        expected = [np.asarray(theirs(*three)) for three in images]
        for name, way in by_name.items():
            spent = statistics.median(seconds[what, name])
            apart = [np.abs(np.asarray(way(*three)) - e).max() for three, e in zip(images, expected, strict=True)]
            rows.append(
                {
                    "what": what,
                    "way": name,
                    "ms per image": round(1e3 * spent, 2),
                    "quartiles ms": np.round(1e3 * np.quantile(seconds[what, name], (0.25, 0.75)), 2).tolist(),
                    "images/s": round(1 / spent, 1),
                    "times as fast as the peer": round(statistics.median(seconds[what, peer]) / spent, 1),
                    "largest difference": float(f"{max(apart):.0e}"),
                }
            )
    print(f"\nmetrics, {WIDTH}x{HEIGHT}, one thread, medians of {TURNS}:")
    columns = ("what", "way", "ms per image", "images/s", "times as fast as the peer", "largest difference")
    print_table(columns, [[row[column] for column in columns] for row in rows])
    return {"size": f"{WIDTH}x{HEIGHT}", "threads": 1, "turns": TURNS, "images": PHOTOGRAPHS, "rows": rows}


def print_table(head: tuple[str, ...], rows: list[list[Any]]) -> None:
    """In Markdown."""
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def whole() -> dict[str, Any]:
    """Seconds per image of a whole evaluation, and of a plain script."""
    network = load_network("bundled")
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, (sharp, blurred, _) in enumerate(photographs()):
            for side, image in (("sharp", sharp), ("blur", blurred)):
                (folder / "pairs" / side).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / "pairs" / side / f"{number}.png"), image[..., ::-1])
        source = open_source(str(folder / "pairs"), "test")

        def read(key: str) -> Sample:
            pair = source.read(key)
            return Sample(pair.blurred, pair.sharp)

        images = LooseSet("pairs", "test", "", source.keys, read, None)
        for turn in range(-1, 3):
            start = time.process_time()
            task = Evaluation(folder / f"results-{turn}", "", Conventions(), shown_images=1, say=print)
            found = evaluate(network, images, Inference(), task, Ranks(torch.device("cpu")))
            write_report(task.folder, Results("bundled", "", "", (found,), Conventions()))
            middle = time.process_time()
            plain_script(network, folder / "pairs")
            if turn >= 0:
                ours.append((middle - start) / len(source.keys))
                theirs.append((time.process_time() - middle) / len(source.keys))
    spent, plain = statistics.median(ours), statistics.median(theirs)
    row = {
        "s per image": round(spent, 2),
        "images/s": round(1 / spent, 3),
        "plain script, s per image": round(plain, 2),
        "times as fast as the plain script": round(plain / spent, 2),
    }
    print("\nwhole:")
    print_table(tuple(row), [list(row.values())])
    return {"size": f"{WIDTH}x{HEIGHT}", "threads": 1, "turns": len(ours), **row}


def plain_script(network: Deblurrer, folder: Path) -> None:
    """What people write by hand: read, restore, save, score with scikit-image."""
    for path in sorted((folder / "blur").iterdir()):
        blurred, sharp = (cv2.imread(str(folder / side / path.name))[..., ::-1].copy() for side in ("blur", "sharp"))
        with torch.inference_mode():
            output = network(torch.from_numpy(blurred).permute(2, 0, 1)[None].float() / 255)[0]
        result = output.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        for image in (blurred, result):
            peak_signal_noise_ratio(sharp, image, data_range=255)
            skimage_ssim(image, sharp)


MEMORY = {"whole": Inference(), "tiles 512/64": Inference(512, 64)}


def memory() -> dict[str, Any]:
    """Highest resident size of an evaluation of one large image, less what was there before."""
    rows = {}
    for name in MEMORY:
        command = [sys.executable, "-m", "benchmarks.evaluation.evaluate", "--child", name]
        rows[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print("\nmemory, 2152x1436:")
    print_table(("way", *rows["whole"]), [[name, *row.values()] for name, row in rows.items()])
    return {"size": "2152x1436", "network": "NAFNet of width 32, 36 blocks, MAP", "rows": rows}


def memory_of(name: str) -> dict[str, float]:
    """In this process."""
    torch.manual_seed(0)
    network = with_prior(NAFNet(32, (1, 1, 1, 28), 1, (1, 1, 1, 1)), MAPUnit(), "default").eval()
    sharp = cv2.resize(photographs()[0][0], (2152, 1436))
    blurred = cv2.blur(sharp, (9, 9))
    rng, (ys, xs) = np.random.default_rng(0), np.mgrid[:1436, :2152]
    discs = np.stack([np.hypot(ys - rng.uniform(0, 1436), xs - rng.uniform(0, 2152)) < 300 for _ in range(40)])
    atoms = AtomMap.from_masks(discs)
    del discs
    images = LooseSet("large", "test", "", ["a"], lambda key: Sample(blurred, sharp), lambda image: (atoms, {}))
    with tempfile.TemporaryDirectory() as folder:
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident size
        before, start = resident(), time.process_time()
        task = Evaluation(Path(folder), "", Conventions(), shown_images=0, say=print)
        evaluate(network, images, MEMORY[name], task, Ranks(torch.device("cpu")))
        return {"MB": round(resident() - before), "s": round(time.process_time() - start, 1)}


def resident() -> float:
    """Highest resident size of this process since it was last cleared, in MB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"metrics": metrics, "whole": whole, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="all of them unless named")
    parser.add_argument("--child", choices=MEMORY, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "evaluate.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if options.child:
        print(json.dumps(memory_of(options.child)))
        return
    versions = {package.__name__: package.__version__ for package in (np, cv2, torch, skimage)}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "versions": versions}
    document = json.loads(options.out.read_text()) if options.out.exists() else {}
    for part in options.part or PARTS:
        document[part] = machine | PARTS[part]()
    options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
