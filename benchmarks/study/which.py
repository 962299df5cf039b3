"""What `samdeblur-prep quality` says of the study's kinds of masks, beside what each brought: docs/which-masks.md.

    python benchmarks/study/which.py                     # -> benchmarks/results/which.json; ten minutes
    python benchmarks/study/which.py true true-moved-1   # of these kinds; the others stay as they are there
    python benchmarks/study/which.py --figure            # -> docs/images/which-masks.png, of what is there
    python benchmarks/study/which.py --law               # how well figures predict gains, of what is there

The scenes are those the study tests on. Gains are of MAP over no prior on the same scenes, from
benchmarks/results/study.json, study_axes.json and study_found.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from degrade import degraded
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from plan import AXES_MASKS
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from benchmarks.common.figures import IMAGES, RESULTS
from samdeblur.evaluation.masks.quality import Quality, mean, quality_of
from samdeblur.models import load_sam
from samdeblur.pipeline import BUNDLED_SETTINGS, MaskGenerator
from samdeblur.pipeline.segmenters.refine import refine
from samdeblur.pipeline.segmenters.superpixels import SuperpixelSegmenter
from samdeblur.pipeline.sources.base import ImagePair
from samdeblur.pipeline.sources.worlds import WorldSource
from samdeblur.storage import AtomMap

SCENES = "worlds:24:160"
SHOWN = ("on_edges", "iou", "recall", "precision", "border_error", "border_surplus")


def kinds() -> dict[str, Callable[[str, ImagePair], AtomMap]]:
    """Kind of masks -> what finds them in a pair with true ones."""
    sam = load_sam("bundled")
    fine, coarse = (MaskGenerator(sam, **(BUNDLED_SETTINGS | more)) for more in ({}, {"points_per_side": 8}))
    superpixels = SuperpixelSegmenter()

    def true(pair: ImagePair) -> AtomMap:
        assert pair.masks is not None
        return pair.masks

    def made_worse(kind: str) -> Callable[[str, ImagePair], AtomMap]:
        return lambda key, pair: degraded(true(pair), kind, int(key))

    twelve = MaskGenerator(sam, **(BUNDLED_SETTINGS | {"points_per_side": 12}))
    return {
        "sam-12": lambda key, pair: twelve.generate(pair.blurred)[0],
        "sam-12-refined": lambda key, pair: refine(twelve.generate(pair.blurred)[0], pair.blurred, 3),
        "sam-coarse": lambda key, pair: coarse.generate(pair.blurred)[0],
        "sam": lambda key, pair: fine.generate(pair.blurred)[0],
        "sam-of-sharp": lambda key, pair: fine.generate(pair.sharp)[0],
        "superpixels": lambda key, pair: superpixels.segment(pair.blurred)[0],
        **{kind: made_worse(kind) for kind in AXES_MASKS if kind != "true"},
        "true": lambda key, pair: true(pair),
    }


def gains() -> dict[str, float]:
    """Kind of masks -> dB of `map` over `none` on `worlds`; of the study itself where both have it."""
    axes = json.loads((RESULTS / "study_axes.json").read_text())["gains"]
    priors = json.loads((RESULTS / "study_found.json").read_text())["over none"]
    rows = json.loads((RESULTS / "study.json").read_text())
    found = {variant: gain["mean"] for variant, gain in (priors | axes).items()} | {
        row["variant"]: row["over"]["psnr"]["mean"] for row in rows if row["images"] == "worlds" and row["over"]
    }
    return {name.removeprefix("map, "): gain for name, gain in found.items() if name.startswith("map, ")}


def draw(rows: dict[str, Any]) -> None:
    """The gain with each kind of masks over three figures of `samdeblur-prep quality`."""
    known = {name: row for name, row in rows.items() if row["gain"] is not None}
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {
        "border_error": "px from a border of the reference to these",
        "border_surplus": "px from a border of these to the reference",
        "on_edges": "places near a border that change less",
    }
    for axis, (column, label) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        axis.axhline(0, color="black", linewidth=0.8)
        for name, row in known.items():
            at = row["quality"][column]
            axis.plot(at, row["gain"], "o", color="tab:blue" if name.startswith("true") else "tab:orange", markersize=5)
            axis.annotate(name.removeprefix("true-"), (at, row["gain"]), (4, 3), textcoords="offset points", fontsize=7)
        axis.set(xlabel=label)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("PSNR of MAP over no prior (dB)")
    figure.savefig(IMAGES / "which-masks.png", dpi=100)


def law(rows: dict[str, Any]) -> None:
    """Print the law of `expected_share`, fitted to the gains, and how well it predicts each kind from the others."""
    known = {name: row for name, row in rows.items() if row["gain"] is not None}
    gain = np.array([row["gain"] for row in known.values()])
    error, surplus = (
        np.array([row["quality"][figure] for row in known.values()]) for figure in ("border_error", "border_surplus")
    )

    def predict(law: np.ndarray, of: Any) -> np.ndarray:
        most, missing, misplaced = law
        return most * np.exp(-error[of] * (missing + misplaced * surplus[of]))

    def fit(of: np.ndarray) -> np.ndarray:
        return least_squares(lambda given: predict(given, of) - gain[of], [1.0, 0.5, 0.5]).x

    everything = np.ones(len(gain), bool)
    most, missing, misplaced = fit(everything)
    print(f"gain = {most:.2f} dB exp(-e ({missing:.2f} + {misplaced:.2f} s)), {len(gain)} kinds")
    left_out = ~np.eye(len(gain), dtype=bool)
    guessed = np.array([predict(fit(others), ~others)[0] for others in left_out])
    print(f"each kind from the others: {np.abs(guessed - gain).mean():.2f} dB off on average, ", end="")
    print(f"Spearman {spearmanr(guessed, gain).statistic:.2f}")
    for name, one, other in zip(known, guessed, gain, strict=True):
        print(f"{name:20} {one:+.2f} {other:+.2f}")
    for column in SHOWN:
        figures = [row["quality"][column] for row in known.values()]
        print(f"Spearman of the gain with {column}: {spearmanr(figures, gain).statistic:+.2f}")


def main(*names: str) -> None:
    if names == ("--law",):
        law(json.loads((RESULTS / "which.json").read_text()))
        return
    if names == ("--figure",):
        draw(json.loads((RESULTS / "which.json").read_text()))
        return
    source, path, known = WorldSource.of(SCENES, "test"), RESULTS / "which.json", gains()
    before = json.loads(path.read_text())
    found: dict[str, Quality] = {}
    for name, find in kinds().items():
        if name in before and names and name not in names:
            found[name] = Quality(**before[name]["quality"])
        if name in found or (names and name not in names):
            continue
        pairs = [(key, source.read(key)) for key in source.keys]
        found[name] = mean([quality_of(find(key, pair), pair.sharp, pair.masks) for key, pair in pairs])
        print(name, asdict(found[name]), file=sys.stderr, flush=True)
    print("| masks | " + " | ".join(SHOWN) + " | gain |\n" + "|---" * (len(SHOWN) + 2) + "|")
    for name, one in found.items():
        gain = f"{known[name]:+.2f} dB" if name in known else ""
        print(f"| `{name}` | " + " | ".join(f"{getattr(one, each):.2f}" for each in SHOWN) + f" | {gain} |")
    content = {name: {"quality": asdict(one), "gain": known.get(name)} for name, one in found.items()}
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
