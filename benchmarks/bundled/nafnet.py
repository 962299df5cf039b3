"""What the bundled NAFNet can do: the figures of its card.

python -m benchmarks.bundled.nafnet                       # -> benchmarks/results/bundled_nafnet.json
python -m benchmarks.bundled.nafnet --pairs FOLDER        # and on your pairs: FOLDER/blur, FOLDER/sharp
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.common.figures import RESULTS
from samdeblur.evaluation.metrics.psnr_ssim import psnr, ssim
from samdeblur.models import Deblurrer, deblur, load_network, local_pooling
from samdeblur.pipeline import Source, open_source

HELD_OUT = {
    "worlds, test": ("worlds:40", "test"),
    "worlds, test-ood": ("worlds:40", "test-ood"),
    "photographs, test": ("sample", "test"),
    "photographs, test-ood": ("sample", "test-ood"),
}
KEPT = ("worlds, test", "photographs, test")  # whose sharp images go in as well


def measure(network: Deblurrer, source: Source, sharp: bool = False) -> dict[str, float]:
    """Mean PSNR and SSIM of a split before and after, and how many images got worse; of its sharp images if asked."""
    rows = []
    start = time.perf_counter()
    for key in source.keys:
        pair = source.read(key)
        if sharp:
            pair = replace(pair, blurred=pair.sharp)
        result = deblur(network, pair.blurred)
        rows.append([metric(image, pair.sharp) for metric in (psnr, ssim) for image in (pair.blurred, result)])
    before, after, ssim_before, ssim_after = np.mean(rows, axis=0)
    gains = [row[1] - row[0] for row in rows]
    if sharp:
        return {"images": len(rows), "PSNR kept": round(after, 3), "worst PSNR kept": round(min(r[1] for r in rows), 3)}
    return {
        "images": len(rows),
        "PSNR blurred": round(before, 3),
        "PSNR deblurred": round(after, 3),
        "gain dB": round(after - before, 3),
        "worst gain dB": round(min(gains), 3),
        "images made worse": sum(gain < 0 for gain in gains),
        "by more than 0.1 dB": sum(gain < -0.1 for gain in gains),
        "SSIM blurred": round(ssim_before, 4),
        "SSIM deblurred": round(ssim_after, 4),
        "seconds": round(time.perf_counter() - start, 1),
    }


@click.command()
@click.option("--weights", default="bundled")
@click.option("--pairs", type=click.Path(exists=True), help="A folder of pairs to measure as well.")
@click.option("--split", default="test", show_default=True, help="Split of --pairs.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "bundled_nafnet.json")
def main(weights: str, pairs: str | None, split: str, out: Path) -> None:
    """Measure a network on held-out blur."""
    network = load_network(weights)
    if network.local_means:
        network = local_pooling(network, network.train_size or 256)
    sources = {name: open_source(*where) for name, where in HELD_OUT.items()}
    if pairs:
        sources[Path(pairs).name] = open_source(pairs, split)
    figures = {"parameters": sum(p.numel() for p in network.parameters())}
    figures |= {name: measure(network, source) for name, source in sources.items()}
    figures |= {f"{name}, sharp": measure(network, sources[name], sharp=True) for name in KEPT}
    figures["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    out.write_text(json.dumps(figures, indent=1) + "\n")
    click.echo(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
