"""What the bundled Segment Anything model can do: the figures of its card, and overlays on photographs to look at.

python -m benchmarks.bundled.sam                   # the bundled weights -> benchmarks/results/bundled_sam.json
python -m benchmarks.bundled.sam --weights FILE --scenes 20 --out FOLDER
"""

from __future__ import annotations

import json
import platform
import time
from itertools import pairwise
from pathlib import Path

import click
import cv2
import numpy as np
import skimage
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from skimage.segmentation import slic

from benchmarks.bundled.candidates import candidates
from benchmarks.common.figures import RESULTS
from samdeblur.evaluation.masks.matching import borders, boundary_recall, distinct, mask_iou, match
from samdeblur.models import load_sam
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator
from samdeblur.pipeline.sources.worlds import WorldSource
from samdeblur.storage import AtomMap
from samdeblur.storage.sharing.paint import paint_masks

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "motorcycle_left")


def one_point(predictor: SamPredictor, image: np.ndarray, truth: AtomMap, rng: np.random.Generator) -> np.ndarray:
    """(M, 2) IoU with each true mask of the best of three outputs, and of the one the model believes in.

    The prompt is one point, drawn from the mask's pixels.
    """
    predictor.set_image(image)
    rows = []
    for mask in truth.to_masks():
        inside = np.flatnonzero(mask)
        row, column = divmod(int(rng.choice(inside)), mask.shape[1])
        found, believed, _ = predictor.predict(np.array([[column, row]]), np.array([1]))
        ious = (found & mask).sum(axis=(1, 2)) / (found | mask).sum(axis=(1, 2))
        rows.append((ious.max(), ious[believed.argmax()]))
    return np.array(rows).reshape(-1, 2)


def by_area(found: np.ndarray, area: np.ndarray) -> list[list[object]]:
    """What one point finds of small and of large masks.

    Rows: bounds of the area, share of the image; how many masks lie between them, mean IoU.
    """
    table: list[list[object]] = []
    for low, high in pairwise((0, 0.003, 0.01, 0.05, 1)):
        some = (area > low) & (area <= high)
        if some.any():
            table.append([f"{low:.1%}-{high:.1%}", int(some.sum()), round(float(found[some].mean()), 3)])
    return table


def scenes(sam, generator: MaskGenerator, count: int) -> dict[str, object]:
    """Figures on held-out scenes, sharp and blurred, and by the area of masks of the sharp ones."""
    source = WorldSource.of(f"worlds:{count}", "test")
    predictor = SamPredictor(sam)
    figures = {}
    for kind in ("sharp", "blurred"):
        points, areas, matches, recalls = [], [], [], []
        for key in source.keys:
            pair = source.read(key)
            image, truth = getattr(pair, kind), pair.masks
            points.append(one_point(predictor, image, truth, np.random.default_rng(int(key))))
            areas.append(truth.to_masks().mean(axis=(1, 2)))
            found, _ = generator.generate(image)
            matches.append(match(mask_iou(found, truth)))
            true_borders, count_ = borders(truth.atoms), max(2, found.n_masks)
            superpixels = borders(slic(image, count_, 12.0, start_label=0))
            sides = [borders(found.atoms), superpixels]
            recalls.append(
                [boundary_recall(side, true_borders) for side in sides]
                + [boundary_recall(true_borders, side) for side in sides]
            )
        points_, borders_ = np.concatenate(points), np.nanmean(recalls, axis=0)
        if kind == "sharp":
            areas_of_masks = by_area(points_[:, 0], np.concatenate(areas))
        true, found_, at_50, at_75 = (sum(values) for values in zip(*map(_counts, matches), strict=True))
        figures[kind] = {
            "true masks": true,
            "found masks": found_,
            "one point, best of three: mean IoU": points_[:, 0].mean(),
            "one point, by predicted IoU: mean IoU": points_[:, 1].mean(),
            "recall at 0.5": at_50 / true,
            "recall at 0.75": at_75 / true,
            "precision at 0.5": at_50 / max(found_, 1),
            "precision at 0.75": at_75 / max(found_, 1),
            "boundary recall": borders_[0],
            "boundary recall of as many superpixels": borders_[1],
            "boundary precision": borders_[2],
            "boundary precision of as many superpixels": borders_[3],
        }
    rounded = {kind: {name: round(float(value), 4) for name, value in row.items()} for kind, row in figures.items()}
    return {**rounded, "area of the mask, masks, one point, sharp: mean IoU": areas_of_masks}


def _counts(found):
    return found.true, found.found, found.at_50, found.at_75


def reliability(sam: Sam, count: int) -> dict[str, object]:
    """How far predicted IoU is from the IoU with the best true mask, for all answers to 12x12 points of sharp scenes.

    Rows of the table: bounds of the prediction, how many answers lie between them, their mean prediction and IoU.
    """
    pairs = (source.read(key) for source in [WorldSource.of(f"worlds:{count}", "test")] for key in source.keys)
    found = [candidates(sam, pair.sharp, pair.masks, side=12) for pair in pairs]
    predicted, true = (np.concatenate([getattr(c, name) for c in found]) for name in ("predicted", "best"))
    table = []
    for low, high in pairwise((-np.inf, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, np.inf)):
        some = (predicted >= low) & (predicted < high)
        if some.any():
            between = f"{max(low, 0):.1f}-{min(high, 1):.1f}"
            table.append([between, int(some.sum()), *(round(float(x[some].mean()), 3) for x in (predicted, true))])
    return {
        "mean |predicted - true IoU|": round(float(np.abs(predicted - true).mean()), 4),
        "correlation": round(float(np.corrcoef(predicted, true)[0, 1]), 3),
        "predicted between, answers, mean predicted, mean true": table,
    }


def photograph(name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, one of scikit-image's wheel."""
    image = skimage.data.stereo_motorcycle()[0] if name == "motorcycle_left" else getattr(skimage.data, name)()
    return np.ascontiguousarray(image)


def photographs(generator: MaskGenerator, out: Path) -> dict[str, dict[str, float]]:
    """Masks on photographs: how many are distinct, seconds, and an overlay each."""
    figures, tiles = {}, []
    for name in PHOTOGRAPHS:
        image = photograph(name)
        start = time.perf_counter()
        masks, _ = generator.generate(image)
        figures[name] = {
            "masks": masks.n_masks,
            "distinct masks of 0.1-50% area": len(distinct(masks)),
            "seconds": round(time.perf_counter() - start, 1),
        }
        tiles.append(np.hstack([_tile(image), _tile(paint_masks(image, masks))]))
    out.mkdir(parents=True, exist_ok=True)
    for name, tile in zip(PHOTOGRAPHS, tiles, strict=True):
        cv2.imwrite(str(out / f"{name}.jpg"), tile[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return figures


def _tile(image: np.ndarray) -> np.ndarray:
    height = 300
    return cv2.resize(image, (round(image.shape[1] * height / image.shape[0]), height), interpolation=cv2.INTER_AREA)


@click.command()
@click.option("--weights", default="bundled")
@click.option("--scenes", "count", default=16, show_default=True)
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Setting of the generator.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "bundled_sam")
def main(weights: str, count: int, assignments: tuple[str, ...], out: Path) -> None:
    """Measure a model and write OUT.json and overlays in OUT/."""
    sam = load_sam(weights)
    settings = BUNDLED_SETTINGS | {name: json.loads(value) for name, value in (a.split("=") for a in assignments)}
    generator = MaskGenerator(sam, **settings)
    figures = {
        "parameters": sum(p.numel() for p in sam.parameters()),
        "settings": settings,
        "scenes": count,
        **scenes(sam, generator, count),
        "predicted IoU": reliability(sam, max(1, count // 2)),
        "photographs": photographs(generator, out),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    click.echo(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
