"""How long the report of many images takes to open in a browser, and how large it is. And a screenshot of one for docs.

python -m benchmarks.evaluation.report             # -> benchmarks/results/report.json; two minutes
python -m benchmarks.evaluation.report --screenshot   # -> docs/images/report.png; some six minutes

Needs Chromium or Chrome. Images are the photographs of scikit-image and windows of them.
"""

from __future__ import annotations

import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common.figures import ROOT
from samdeblur.evaluation.metrics.psnr_ssim import psnr, ssim
from samdeblur.evaluation.report.images import keep_images, keep_strip, keep_thumbnail
from samdeblur.evaluation.report.write import write_comparison, write_report
from samdeblur.evaluation.results import Results, Score, SetResult
from samdeblur.evaluation.tables.cells import Table
from samdeblur.models import deblur, load_network, load_sam
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator
from samdeblur.pipeline.sources.sample import MODEL
from samdeblur.storage import AtomMap

sys.path.insert(0, str(ROOT / "tests"))
from browser import PROGRAM, Browser

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina")
KEPT = 24  # images with originals, the default of samdeblur-eval run
REPEATS = 5
SIZE = (1280, 720)
READY = """(() => {
  const images = [...document.querySelectorAll("#overview:not([hidden]) .card img[src], .pane img")];
  return images.length > 0 && images.every(image => image.complete && image.naturalWidth);
})()"""

ImageArray = NDArray[np.uint8]


def photograph(name: str) -> ImageArray:
    return np.ascontiguousarray(getattr(skimage.data, name)()[..., :3])


def window(photos: Sequence[ImageArray], position: int) -> ImageArray:
    """A part of one of the photographs, 16 to 9, another one for each position."""
    rng = np.random.default_rng(position)
    photo = photos[position % len(photos)]
    height = int(rng.integers(150, min(photo.shape[0], photo.shape[1] * 9 // 16)))
    width = height * 16 // 9
    top, left = rng.integers(0, photo.shape[0] - height + 1), rng.integers(0, photo.shape[1] - width + 1)
    return photo[top : top + height, left : left + width]


def large_report(folder: Path, images: int) -> Path:
    """The report of a set whose scores are made up; the worst KEPT images have originals of 720p with 240 masks."""
    rng = np.random.default_rng(0)
    photos = [photograph(name) for name in PHOTOS]
    before = rng.normal(26, 3, images)
    gains = rng.normal(1.2, 1.5, images) - 8 * (rng.random(images) < 0.02)
    others = {"ssim_wang_blurred": 0.8123, "ssim_wang": 0.8532, "ssim_nafnet_blurred": 0.8912, "ssim_nafnet": 0.9145}
    scores = [
        Score(f"GOPR0384_11_{position // 100:02d}/{position:06d}", {"psnr_blurred": low, "psnr": low + gain, **others})
        for position, (low, gain) in enumerate(zip(before.tolist(), gains.tolist(), strict=True))
    ]
    result = SetResult("GoPro", "test", "0123456789abcdef", tuple(scores))
    worst = {score.key for score in sorted(scores, key=lambda score: score.gain)[:KEPT]}
    squares = [np.zeros(SIZE[::-1], bool) for _ in range(240)]
    for square in squares:
        top, left = rng.integers(0, SIZE[::-1])
        square[top : top + 90, left : left + 120] = True
    atoms = AtomMap.from_masks(squares)
    for position, score in enumerate(scores):
        keep_thumbnail(folder, result.name, score.key, window(photos, position))
        if score.key in worst:
            shown = cv2.resize(window(photos, position), SIZE, interpolation=cv2.INTER_CUBIC)
            blurred = cv2.blur(shown, (9, 9))
            keep_images(folder, result.name, score.key, blurred, shown, shown, atoms, {"area": atoms.mask_areas()})
    return write_report(folder, Results("map-dropout", "run/best.safetensors", "ab" * 32, (result,)))


def opening(page: Path) -> dict[str, float]:
    """Seconds in a fresh browser from asking for the page until it is drawn, and until its thumbnails in sight are."""
    with Browser() as browser:
        start = time.perf_counter()
        browser.open(page)
        browser.until(READY)
        browser.run("new Promise(requestAnimationFrame)")
        seen = time.perf_counter() - start
        drawn = browser.run("performance.getEntriesByName('drawn')[0].startTime") / 1000
        cards = browser.run("document.querySelectorAll('.card').length")
        assert cards
        assert not browser.problems, browser.problems
    return {"drawn": drawn, "thumbnails": seen}


def measure(images: int) -> dict[str, Any]:
    """The row of a report of so many images."""
    with tempfile.TemporaryDirectory() as folder:
        page = large_report(Path(folder), images)
        times = [opening(page) for _ in range(REPEATS)]
        kept = sum(path.stat().st_size for path in Path(folder, "images").rglob("*.*"))
        return {
            "images": images,
            "html_mb": round(page.stat().st_size / 1e6, 2),
            "originals_mb": round(kept / 1e6, 1),
            **{f"{name}_s": round(statistics.median(row[name] for row in times), 2) for name in times[0]},
            "slowest_s": round(max(row["thumbnails"] for row in times), 2),
        }


def sharpened(image: ImageArray) -> ImageArray:
    """Unsharp masking, strong enough to do harm."""
    smooth = cv2.GaussianBlur(image, (0, 0), 3)
    return cv2.addWeighted(image, 3.5, smooth, -2.5, 0)


def example(folder: Path) -> Path:
    """A report of the bundled NAFNet beside unsharp masking, on photographs blurred by the model of the sample."""
    network, generator = load_network("bundled"), MaskGenerator(load_sam("bundled"), **BUNDLED_SETTINGS)
    methods: dict[str, Callable[[ImageArray], ImageArray]] = {
        "bundled NAFNet": lambda image: deblur(network, image),
        "unsharp masking": sharpened,
    }
    name = SetResult("photographs", "test", "", ()).name
    scores: dict[str, list[Score]] = {method: [] for method in methods}
    for photo in ("chelsea", "coffee", "rocket", "astronaut"):
        for seed in range(9):
            blurred, sharp = MODEL.render(photograph(photo), seed)
            key = f"{photo}/{seed:02d}"
            atoms, records = generator.generate(blurred) if seed == 0 else (None, None)
            for method, run in methods.items():
                result = run(blurred)
                metrics = {
                    "psnr_blurred": psnr(blurred, sharp),
                    "psnr": psnr(result, sharp),
                    "ssim_wang_blurred": ssim(blurred, sharp),
                    "ssim_wang": ssim(result, sharp),
                }
                scores[method].append(Score(key, metrics))
                keep_thumbnail(folder / method, name, key, result)
                keep_strip(folder / method, name, key, blurred, result, sharp)
                if atoms is not None:
                    keep_images(folder / method, name, key, blurred, result, sharp, atoms, records)
    runs = [
        Results(method, "", "", (SetResult("photographs", "test", "", tuple(scores[method])),)) for method in methods
    ]
    summaries = {run.method: run.sets[0].summary for run in runs}
    rows = [[method, f"{found['psnr']:.2f}", f"{found['mcr']:.2%}"] for method, found in summaries.items()]
    tables = [Table(name, ["network", "PSNR", "MCR"], rows)]
    return write_comparison(folder, runs, [folder / method for method in methods], {}, tables)


def take_screenshot(page: Path) -> bytes:
    """The list, and below it an image of the report, as PNG with few colours."""
    with Browser(1120, 985) as browser:
        browser.open(page)
        browser.until(READY)
        parts = [browser.screenshot()]
        browser.show(1120, 740)
        browser.open(f"{page.as_uri()}#0/coffee/00")
        browser.until(f"{READY} && document.querySelector('.pane canvas:not([hidden])') !== null")
        parts.append(browser.screenshot())
        assert not browser.problems, browser.problems
    stacked = np.vstack([np.array(Image.open(io.BytesIO(part)).convert("RGB")) for part in parts])
    buffer = io.BytesIO()
    Image.fromarray(stacked).quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@click.command()
@click.option("--images", type=int, multiple=True, default=(100, 1000, 3000), show_default=True)
@click.option("--screenshot", is_flag=True, help="Make the image for the docs instead.")
def main(images: Sequence[int], screenshot: bool) -> None:
    """Time how reports open."""
    if PROGRAM is None:
        raise click.ClickException("no Chromium or Chrome on the PATH")
    if screenshot:
        with tempfile.TemporaryDirectory() as folder:
            target = ROOT / "docs/images/report.png"
            target.write_bytes(take_screenshot(example(Path(folder))))
            click.echo(f"{target}: {target.stat().st_size / 1e3:.0f} kB")
        return
    rows = [measure(number) for number in images]
    for row in rows:
        click.echo(", ".join(f"{name} {value}" for name, value in row.items()))
    with Browser() as browser:
        program = f"Chromium {browser.version}"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {program}, headless, a fresh profile for each"
    text = json.dumps({"machine": machine, "repeats": REPEATS, "rows": rows}, indent=1)
    (ROOT / "benchmarks/results/report.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
