"""What an evaluation found: scores of images, sets of them, and the files they are kept in."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from samdeblur.evaluation.metrics.mode_collapse import COLLAPSE_DB, mode_collapse_rate
from samdeblur.storage.files import write_durably
from samdeblur.storage.names import nfc

RESULTS, TABLE = "results.json", "results.csv"


class ResultsError(ValueError):
    """A file that is not results.json."""


@dataclass(frozen=True)
class Score:
    """One image.

    Attributes:
        metrics: name -> value, in order: psnr_blurred and psnr in dB, and ssim_wang_blurred, ssim_wang,
            ssim_nafnet_blurred, ssim_nafnet, of the blurred input and of the result against the sharp image; then
            others that were asked for. Empty where there is no sharp image.
        flags: what the guard found suspicious in the result.
        fallback: what stands in place of a suspicious result; empty for the result itself.
        pixels: start of a digest of the images it is of, decoded; empty where nobody looked.
    """

    key: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    fallback: str = ""
    pixels: str = field(default="", compare=False)

    @property
    def gain(self) -> float:
        """dB won over the blurred input; 0 for two perfect images, and without a sharp image."""
        before, after = self.metrics.get("psnr_blurred", 0.0), self.metrics.get("psnr", 0.0)
        return after - before if after != before else 0.0  # infinity less infinity is not a number


def worst_first(scores: Sequence[Score]) -> list[Score]:
    """By dB won over the blurred input, the least first; as they come where there is no sharp image."""
    return sorted(scores, key=lambda score: score.gain)


def examples(scores: Sequence[Score]) -> list[tuple[str, Score]]:
    """What a report opens with, in words: the best image, one in the middle, the worst; fewer of few."""
    if not scores or "psnr" not in scores[0].metrics:
        return [("the first", score) for score in scores[:1]]
    ordered = worst_first(scores)
    chosen = {"best": ordered[-1], "median": ordered[(len(ordered) - 1) // 2], "worst": ordered[0]}
    if len(ordered) < 3:
        chosen.pop("median")
    return [("the only one", ordered[0])] if len(ordered) == 1 else list(chosen.items())


def summarise(scores: Sequence[Score], collapse_db: float = COLLAPSE_DB) -> dict[str, float]:
    """Number of images, the mode collapse rate, and means over images; no rate without sharp images."""
    names = scores[0].metrics if scores else ()
    means = {name: float(np.mean([score.metrics[name] for score in scores])) for name in names}
    if "psnr" not in means:
        return {"images": len(scores), **means}
    before, after = ([score.metrics[name] for score in scores] for name in ("psnr_blurred", "psnr"))
    return {"images": len(scores), "mcr": mode_collapse_rate(before, after, collapse_db), **means}


@dataclass(frozen=True)
class Inference:
    """How images went through the network: as a whole unless `tile` is given, with global means unless `tlc` is."""

    tile: int | None = None
    overlap: int | None = None  # of tiles
    tlc: int | None = None  # size of the training crops that local means were made for
    precision: str = "float32"
    guard: str | None = None  # what the guard does with suspicious results

    def __str__(self) -> str:
        """Nothing for the usual way, else for instance "TLC 256, tiles 512/64"."""
        words = [f"TLC {self.tlc}"] if self.tlc is not None else []
        words += [f"tiles {self.tile}/{self.overlap}"] if self.tile is not None else []
        words += [self.precision] if self.precision != "float32" else []
        words += [f"guard {self.guard}"] if self.guard is not None else []
        return ", ".join(words)


@dataclass(frozen=True)
class Conventions:
    """What numbers mean; those of other conventions do not compare."""

    psnr: str = "uint8, RGB, peak 255, mean of dB over images"
    ssim: str = "wang and nafnet"
    collapse_db: float = COLLAPSE_DB  # loss above which an image counts as collapsed
    align: str = "none"  # "ecc": results are aligned with the sharp images before they are compared


@dataclass(frozen=True)
class Trained:
    """Of which step of a training run weights are.

    Attributes:
        step: theirs.
        of: steps the run was asked for.
        reached: the last step of it that is saved.
        segmenter: what the masks were of that it looked at, as `ImageSet.segmenter`; empty for none.
    """

    step: int
    of: int
    reached: int
    segmenter: str = ""

    @property
    def finished(self) -> bool:
        return self.reached >= self.of

    def __str__(self) -> str:
        unfinished = "" if self.finished else f", which is not finished: it stands at step {self.reached:,}"
        return f"step {self.step:,} of {self.of:,}{unfinished}"


@dataclass(frozen=True)
class SetResult:
    """Scores of one network on one set of images, in the order of the set."""

    dataset: str
    split: str
    recipe: str  # fingerprint of the masks; empty where none were looked at
    scores: tuple[Score, ...]
    inference: Inference = Inference()
    psnr_step_0: float | None = None  # of the same network before training
    unready: int = 0  # images the set could not give
    seconds: float = 0.0  # spent on the images, reading and scoring included
    collapse_db: float = COLLAPSE_DB
    left_out: Mapping[str, str] = field(default_factory=dict)  # the images the set could not give, and why
    segmenter: str = ""  # what the masks are of, as `ImageSet.segmenter`
    trained_on: bool = False  # whether the network was trained on the store that the images are in

    @property
    def name(self) -> str:
        """What results are compared on: the images and the masks of one recipe."""
        masks = f" (masks {self.recipe[:8]})" if self.recipe else ""
        return f"{self.dataset} {self.split}{masks}"

    @cached_property
    def summary(self) -> dict[str, float]:
        return summarise(self.scores, self.collapse_db)


@dataclass(frozen=True)
class Results:
    """Everything `results.json` holds."""

    method: str  # as tables name it
    weights: str  # path of the weights
    sha256: str
    sets: tuple[SetResult, ...]
    conventions: Conventions = Conventions()
    environment: Mapping[str, str] = field(default_factory=dict)  # versions and device
    trained: Trained | None = None  # where that is known


def write_results(results: Results, folder: Path) -> None:
    """Write results.json (infinite values as null, see `as_row`) and results.csv, a row per image."""
    sets = []
    for s in results.sets:
        speed = round(len(s.scores) / s.seconds, 3) if s.seconds else None
        sets.append(
            {
                "dataset": s.dataset,
                "split": s.split,
                "recipe": s.recipe,
                "unready": s.unready,
                **({"left_out": dict(s.left_out)} if s.left_out else {}),
                **({"segmenter": s.segmenter} if s.segmenter else {}),
                **({"trained_on": True} if s.trained_on else {}),
                "inference": asdict(s.inference),
                **({} if s.psnr_step_0 is None else {"psnr_step_0": s.psnr_step_0}),
                "summary": s.summary,
                **({"timings": {"total": round(s.seconds, 3), "images_per_second": speed}} if s.seconds else {}),
                "images": [as_row(score) for score in s.scores],
            }
        )
    document = {
        "method": results.method,
        "weights": results.weights,
        "sha256": results.sha256,
        **({"trained": asdict(results.trained)} if results.trained else {}),
        "conventions": asdict(results.conventions),
        "environment": dict(results.environment),
        "sets": sets,
    }
    text = json.dumps(_without_infinity(document), indent=1, allow_nan=False)
    write_durably(folder / RESULTS, f"{text}\n".encode())

    names = dict.fromkeys(name for s in results.sets for score in s.scores for name in score.metrics)
    table = io.StringIO()
    columns = ["dataset", "split", "key", *names, "flags", "fallback"]
    writer = csv.DictWriter(table, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for s in results.sets:
        for score in s.scores:
            row = {"dataset": s.dataset, "split": s.split, "key": score.key, **score.metrics}
            row |= {"flags": " ".join(score.flags), "fallback": score.fallback}
            writer.writerow({name: inert(value) for name, value in row.items()})
    write_durably(folder / TABLE, table.getvalue().encode(errors="replace"))


def inert(value: Any) -> Any:
    """A cell of CSV that no spreadsheet takes for a formula: text that begins like one gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")) else value


def read_results(folder: str | Path) -> Results:
    """Read results.json, given it or its folder. Raises FileNotFoundError, ResultsError naming the file."""
    folder = Path(folder)
    path = folder / RESULTS if folder.is_dir() else folder
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such results; write them with samdeblur-eval run")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        conventions = Conventions(**_fields(document["conventions"], Conventions(), {"collapse_db": _number}))
        sets = tuple(_set(row, conventions.collapse_db) for row in document["sets"])
        if not sets or not all(result.scores for result in sets):
            raise ValueError("no images")
        environment = {_text(name): _text(value) for name, value in document["environment"].items()}
        method, weights, sha256 = (_text(document[name]) for name in ("method", "weights", "sha256"))
        trained = _trained(document["trained"]) if "trained" in document else None
        return Results(method, weights, sha256, sets, conventions, environment, trained)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path}: not results of samdeblur-eval run ({type(error).__name__}: {error})") from error


def _set(row: dict[str, Any], collapse_db: float) -> SetResult:
    sizes = dict.fromkeys(("tile", "overlap", "tlc"), _size)
    inference = Inference(**_fields(row["inference"], Inference(), {**sizes, "guard": _text_or_none}))
    scores = tuple(score_of(image) for image in row["images"])
    if {frozenset(score.metrics) for score in scores} - {frozenset(scores[0].metrics if scores else ())}:
        raise ValueError("images of one set have other scores")
    return SetResult(
        nfc(_text(row["dataset"])),
        nfc(_text(row["split"])),
        _text(row["recipe"]),
        scores,
        inference,
        _decibel(row["psnr_step_0"]) if "psnr_step_0" in row else None,
        row["unready"],
        _number(row["timings"]["total"]) if "timings" in row else 0.0,
        collapse_db,
        {_text(key): _text(why) for key, why in row.get("left_out", {}).items()},
        _text(row.get("segmenter", "")),
        bool(row.get("trained_on", False)),
    )


def _trained(row: Mapping[str, Any]) -> Trained:
    return Trained(_step(row["step"]), _step(row["of"]), _step(row["reached"]), _text(row["segmenter"]))


def as_row(score: Score) -> dict[str, Any]:
    """A score as JSON values: infinity as null, what is no number as "nan"."""
    row: dict[str, Any] = {"key": score.key}
    for name, value in score.metrics.items():
        row[name] = value if math.isfinite(value) else "nan" if math.isnan(value) else None
    row |= {"flags": list(score.flags)} if score.flags else {}
    row |= {"fallback": score.fallback} if score.fallback else {}
    return row | ({"pixels": score.pixels} if score.pixels else {})


def score_of(row: Mapping[str, Any]) -> Score:
    """A score from its row in a file. Raises KeyError, TypeError."""
    other = ("key", "flags", "fallback", "pixels")
    metrics = {name: _metric(value) for name, value in row.items() if name not in other}
    flags = tuple(_text(flag) for flag in row.get("flags", ()))
    texts = (_text(row.get(name, "")) for name in ("fallback", "pixels"))
    return Score(_text(row["key"]), metrics, flags, *texts)


def _fields(row: Mapping[str, Any], default: Any, kinds: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """Values of a dataclass, as checked by name; text by default."""
    unknown = set(row) - set(asdict(default))
    if unknown:
        raise KeyError(min(unknown))
    return {name: kinds.get(name, _text)(value) for name, value in row.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _size(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"{value!r} is not a number of pixels")
    return value


def _step(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{value!r} is not a step")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _metric(value: Any) -> float:
    return math.nan if value == "nan" else _decibel(value)


def _decibel(value: Any) -> float:
    """A score; null stands for infinity."""
    return math.inf if value is None else _number(value)


def _without_infinity(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    return value
