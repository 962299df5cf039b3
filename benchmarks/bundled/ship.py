"""From trained models to the bundled ones: scores calibrated on held-out worlds, thresholds compared, files written.

python -m benchmarks.bundled.ship sam FOLDER/sam/sam.safetensors       # -> models/bundled/sam.safetensors
python -m benchmarks.bundled.ship nafnet FOLDER/nafnet                 # -> models/bundled/nafnet.safetensors
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import click
import numpy as np
from safetensors import safe_open

from benchmarks.bundled.candidates import Candidates, candidates
from samdeblur.models import load_network, load_sam
from samdeblur.models.checkpoints.loading import BUNDLED_NETWORK, BUNDLED_SAM, encode_network
from samdeblur.models.networks.sam import METADATA_KEY, Calibration, SamConfig, encode_sam
from samdeblur.pipeline.sources.worlds import WorldSource
from samdeblur.storage.files import write_durably

FACTORS = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0)  # tried on the logits
STABLE = 0.95  # the reference's threshold of the stability score, which good masks are to reach


@click.group()
def cli() -> None:
    """Make the bundled weights of trained ones."""


@cli.command()
@click.argument("weights", type=click.Path(exists=True, path_type=Path))
@click.option("--scenes", default=10, show_default=True, help="Held-out worlds to calibrate on.")
@click.option("--points", default=16, show_default=True, help="Points per side.")
@click.option("--out", default=BUNDLED_SAM, type=click.Path(path_type=Path))
def sam(weights: Path, scenes: int, points: int, out: Path) -> None:
    """Calibrate a Segment Anything model, print what thresholds give, and write it with weights of half precision."""
    model = load_sam(weights, calibrated=False)
    source = WorldSource.of(f"worlds:{scenes}", "val")
    found = []
    for number, key in enumerate(source.keys):
        pair = source.read(key)
        image = pair.sharp if number % 4 else pair.blurred
        found.append(candidates(model, image, pair.masks, points, FACTORS))
    predicted, true = (np.concatenate([getattr(c, name) for c in found]) for name in ("predicted", "best"))
    slope, level = np.polyfit(predicted, true, 1)
    stability = np.concatenate([c.stability for c in found])
    good = np.median(stability[true >= 0.75], axis=0)
    factor = int(np.flatnonzero(good >= STABLE)[0]) if (good >= STABLE).any() else len(FACTORS) - 1
    click.echo(f"predicted IoU: {slope:.3f} x + {level:.3f}; logits x {FACTORS[factor]}")
    click.echo(f"median stability of masks of IoU >= 0.75, by factor: {dict(zip(FACTORS, good.round(3), strict=True))}")
    calibration = Calibration(float(slope), float(level), FACTORS[factor])
    calibration.apply(model)
    fitted = [
        Candidates(np.float32(slope) * c.predicted + np.float32(level), c.ious, c.boxes, c.stability) for c in found
    ]
    click.echo("box_nms  pred_iou  stability  found  recall 0.5  recall 0.75  precision 0.5")
    for nms, pred_iou, stable in product((0.7, 0.5), (0.4, 0.5, 0.6, 0.7, 0.8, 0.88), (0.7, 0.8, 0.85, 0.9, 0.95)):
        rows = [c.generated(pred_iou, stable, factor, nms) for c in fitted]
        true_, found_, at_50, at_75 = (sum(getattr(r, n) for r in rows) for n in ("true", "found", "at_50", "at_75"))
        click.echo(
            f"{nms:7}  {pred_iou:8}  {stable:9}  {found_:5}  {at_50 / true_:10.3f}  {at_75 / true_:11.3f}  "
            f"{at_50 / max(found_, 1):13.3f}"
        )
    with safe_open(weights, "pt") as file:
        config = SamConfig(**json.loads(file.metadata()[METADATA_KEY])["sam"])
    write_durably(out, encode_sam(model.half(), config, calibration))
    click.echo(out)


@cli.command()
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.option("--out", default=BUNDLED_NETWORK, type=click.Path(path_type=Path))
def nafnet(run: Path, out: Path) -> None:
    """Write a network that asks for local means at the size of its training crops."""
    network = load_network(run)
    network.local_means = True
    write_durably(out, encode_network(network))
    click.echo(out)


if __name__ == "__main__":
    cli()
