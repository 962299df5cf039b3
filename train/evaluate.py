"""Scores of a network on the images of a store."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samdeblur.models import Deblurrer, deblur
from samdeblur.models.tiles import OVERLAP
from samdeblur.storage import MaskStore
from samdeblur.storage.files import write_durably
from samdeblur.train.metrics import mode_collapse_rate, psnr, ssim


class ResultsError(ValueError):
    """A file that is not results.json."""


@dataclass(frozen=True)
class Score:
    """One image: PSNR in dB and SSIM in both conventions, of the blurred input and of the result, against the sharp."""

    key: str
    psnr_blurred: float
    psnr: float
    ssim_wang_blurred: float
    ssim_wang: float
    ssim_nafnet_blurred: float
    ssim_nafnet: float

    @property
    def gain(self) -> float:
        """dB won over the blurred input; 0 for two perfect images."""
        return gain(self.psnr, self.psnr_blurred)


def gain(psnr_after: float, psnr_before: float) -> float:
    """dB won; 0 for infinity over infinity."""
    return psnr_after - psnr_before if psnr_after != psnr_before else 0.0


def score_images(
    network: Deblurrer, store: MaskStore, keys: Sequence[str], tile: int | None = None, overlap: int = OVERLAP
) -> Iterator[tuple[Score, NDArray[np.uint8]]]:
    """Deblur whole images with the masks of the store; yields the score and the result, (H, W, 3) uint8.

    `tile` and `overlap` as in `deblur`.
    """
    for key in keys:
        blurred, sharp = store.image("blurred", key), store.image("sharp", key)
        atoms = store.atoms(key) if network.prior is not None else None
        result = deblur(network, blurred, atoms, tile, overlap)
        yield (
            Score(
                key,
                psnr(blurred, sharp),
                psnr(result, sharp),
                ssim(blurred, sharp),
                ssim(result, sharp),
                ssim(blurred, sharp, "nafnet"),
                ssim(result, sharp, "nafnet"),
            ),
            result,
        )


def summarise(scores: Sequence[Score]) -> dict[str, float]:
    """Means over images, the mode collapse rate, and the number of images."""
    names = [name for name in asdict(scores[0]) if name != "key"]
    means = {name: float(np.mean([getattr(score, name) for score in scores])) for name in names}
    mcr = mode_collapse_rate([s.psnr_blurred for s in scores], [s.psnr for s in scores])
    return {"images": len(scores), "mcr": mcr, **means}


@dataclass(frozen=True)
class Inference:
    """How images went through the network: as a whole unless `tile` is given, with global means unless `tlc` is."""

    tile: int | None = None
    overlap: int | None = None  # of tiles
    tlc: int | None = None  # size of the training crops that local means were made for

    def __str__(self) -> str:
        """Nothing for whole images and global means, else for instance "TLC 256, tiles 512/64"."""
        tlc = [f"TLC {self.tlc}"] if self.tlc is not None else []
        return ", ".join(tlc + ([f"tiles {self.tile}/{self.overlap}"] if self.tile is not None else []))


@dataclass(frozen=True)
class SetResult:
    """Scores of one network on one store."""

    dataset: str
    split: str
    recipe: str  # fingerprint of the masks
    scores: tuple[Score, ...]
    psnr_step_0: float | None = None  # of the same network before training
    unready: int = 0  # images the store could not give

    @property
    def name(self) -> str:
        """What results are compared on: the images and the masks of one recipe."""
        return f"{self.dataset} {self.split} (masks {self.recipe[:8]})"

    @property
    def summary(self) -> dict[str, float]:
        return summarise(self.scores)


@dataclass(frozen=True)
class Results:
    """Everything `results.json` holds."""

    method: str  # as tables name it: with the settings of inference where they are not the usual ones
    weights: str  # path of the weights
    sha256: str
    sets: tuple[SetResult, ...]
    inference: Inference = Inference()


def write_results(results: Results, folder: Path) -> None:
    """Write results.json (infinite values as null) and results.csv, a row per image."""
    sets = [
        {
            "dataset": s.dataset,
            "split": s.split,
            "recipe": s.recipe,
            "unready": s.unready,
            **({} if s.psnr_step_0 is None else {"psnr_step_0": s.psnr_step_0}),
            "summary": s.summary,
            "images": [asdict(score) for score in s.scores],
        }
        for s in results.sets
    ]
    document = {
        "method": results.method,
        "weights": results.weights,
        "sha256": results.sha256,
        "inference": asdict(results.inference),
        "sets": sets,
    }
    text = json.dumps(_without_infinity(document), indent=1, allow_nan=False)
    write_durably(folder / "results.json", text.encode())

    rows = [{"dataset": s.dataset, "split": s.split, **asdict(score)} for s in results.sets for score in s.scores]
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    write_durably(folder / "results.csv", table.getvalue().encode())


def read_results(folder: Path) -> Results:
    """Read results.json, given it or its folder. Raises FileNotFoundError, ValueError naming the file."""
    path = folder / "results.json" if folder.is_dir() else folder
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such results; write them with samdeblur-eval run")
    try:
        document = json.loads(path.read_text())
        sets = tuple(_set(row) for row in document["sets"])
        if not sets or not all(result.scores for result in sets):
            raise ValueError("no images")
        inference = Inference(**{name: _size(value) for name, value in document.get("inference", {}).items()})
        return Results(
            _text(document["method"]), _text(document["weights"]), _text(document["sha256"]), sets, inference
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path}: not results of samdeblur-eval run ({type(error).__name__}: {error})") from error


def _set(row: dict[str, Any]) -> SetResult:
    scores = tuple(
        Score(**{name: _text(value) if name == "key" else _decibel(value) for name, value in image.items()})
        for image in row["images"]
    )
    step_0 = _decibel(row["psnr_step_0"]) if "psnr_step_0" in row else None
    return SetResult(_text(row["dataset"]), _text(row["split"]), _text(row["recipe"]), scores, step_0, row["unready"])


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _size(value: Any) -> Any:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"{value!r} is not a number of pixels")
    return value


def _decibel(value: Any) -> Any:
    """A score; null stands for infinity."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{value!r} is not a number")
    return math.inf if value is None else float(value)


def _without_infinity(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_infinity(item) for item in value]
    return value
