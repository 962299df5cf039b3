"""How the gain of a prior falls as true masks get worse: a table and a figure for each of AXES."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from intervals import Interval
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from plan import AXES, Axis, Size
from summary import BASELINE, Found, Row, Scores, markdown, over_baseline, signed, summarise

METHODS = ("map", "map-dropout", "map smallest")


@dataclass(frozen=True)
class Point:
    """The gain with one kind of masks.

    Attributes:
        level: how far the masks are from the true ones, or what became of them.
        gain: PSNR over no prior, in dB: mean, low and high end of its interval.
    """

    masks: str
    level: float | str
    gain: tuple[float, float, float]


def points(axis: Axis, rows: Mapping[str, Row], method: str) -> list[Point]:
    """What there is along an axis, in its order."""
    found = []
    for masks, level in axis.levels.items():
        row = rows.get(f"{method}, {masks}")
        if row is not None and row.over:
            over = row.over["psnr"]
            found.append(Point(masks, level, (over.mean, over.low, over.high)))
    return found


def half(course: Sequence[Point]) -> float | None:
    """The level at which the gain is half that of the first point, between two points on a straight line."""
    levels = [(point.level, point.gain[0]) for point in course if isinstance(point.level, float)]
    if len(levels) < 2 or len(levels) < len(course):
        return None
    wanted = levels[0][1] / 2
    for (before, more), (after, less) in pairwise(levels):
        if more >= wanted > less:
            return float(before + (after - before) * (more - wanted) / (more - less))
    return None


def write_axes(size: Size, out: Path, found: Found, crossed: Found) -> str:
    """axes.json, axes.md and axes.png; gives the second."""
    name = size.families[0]
    rows = {row.variant: row for row in summarise(found) if row.images == name}
    courses = {title: {method: points(axis, rows, method) for method in METHODS} for title, axis in AXES.items()}
    courses = {title: of for title, of in courses.items() if max(map(len, of.values())) > 1}
    parts = [f"{row.seeds} seeds of `{variant}`" for variant, row in rows.items() if variant == BASELINE]
    for title, of_title in courses.items():
        parts.append(f"**{title}: dB over no prior**\n\n" + _table(AXES[title], rows, of_title))
    parts.append("**Other masks: dB over no prior**\n\n" + _others(size, rows))
    gains = crossed_gains(found[BASELINE][name], crossed)
    parts.append("**Trained with one kind of masks (rows), tested with another: dB over no prior**")
    parts.append(crossed_table(gains, size.masks))
    if courses:
        draw_axes(courses, out / "axes.png")
    kept = {
        "seeds": {variant: row.seeds for variant, row in rows.items()},
        "gains": {
            variant: {**row.over["psnr"]._asdict(), "corrected p": row.p} for variant, row in rows.items() if row.over
        },
        "tested with others": {
            variant: {masks: gain._asdict() for masks, gain in of.items()} for variant, of in gains.items()
        },
        "half": {title: {method: half(course) for method, course in of.items()} for title, of in courses.items()},
    }
    (out / "axes.json").write_text(json.dumps(kept, indent=1) + "\n")
    text = "\n\n".join(parts)
    (out / "axes.md").write_text(text + "\n")
    return text


def _table(axis: Axis, rows: Mapping[str, Row], courses: Mapping[str, Sequence[Point]]) -> str:
    methods = [method for method in METHODS if len(courses[method]) > 1]
    body = []
    for masks, level in axis.levels.items():
        cells = [cell_of(rows.get(f"{method}, {masks}")) for method in methods]
        body.append([f"{level}", *cells])
    halves = {method: half(courses[method]) for method in methods}
    if any(halves.values()):
        body.append(["half of the gain at", *(f"{at:.2f}" if at else "-" for at in halves.values())])
    return markdown([axis.label, *methods], body)


def cell_of(row: Row | None) -> str:
    if row is None or not row.over:
        return "-"
    text = signed(row.over["psnr"])
    return f"**{text}**" if row.p < 0.05 else text


def _others(size: Size, rows: Mapping[str, Row]) -> str:
    on_axes = {masks for axis in AXES.values() for masks in axis.levels}
    names = [masks for masks in size.masks if masks not in on_axes]
    return markdown(["masks", "map"], [[name, cell_of(rows.get(f"map, {name}"))] for name in names])


def crossed_gains(base: Scores, crossed: Found) -> dict[str, dict[str, Interval]]:
    """Network -> kind of masks it was tested with -> what it is better than the networks without a prior."""
    found: dict[str, dict[str, Interval]] = {}
    for variant, sets in crossed.items():
        for masks, scores in sets.items():
            if (over := over_baseline(scores, base)) is not None:
                found.setdefault(variant, {})[masks] = over
    return found


def crossed_table(gains: Mapping[str, Mapping[str, Interval]], order: Sequence[str] = ()) -> str:
    """A row per network, a column per kind of masks it was tested with."""
    tested = dict.fromkeys(masks for of in gains.values() for masks in of)
    columns = [*(masks for masks in order if masks in tested), *(masks for masks in tested if masks not in order)]
    body = [[variant, *(f"{of[m].mean:+.2f}" if m in of else "-" for m in columns)] for variant, of in gains.items()]
    return markdown(["trained with", *columns], body)


def draw_axes(courses: Mapping[str, Mapping[str, Sequence[Point]]], path: Path) -> None:
    """A panel per axis: the gain of each method at each level, with its interval."""
    figure = Figure(figsize=(4.2 * len(courses), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(courses), sharey=True, squeeze=False)[0]
    for axis, (title, methods) in zip(axes, courses.items(), strict=True):
        levels = AXES[title].levels
        numbers = all(isinstance(level, float) for level in levels.values())
        places = {masks: level if numbers else place for place, (masks, level) in enumerate(levels.items())}
        axis.axhline(0, color="black", linewidth=0.8)
        for method, course in methods.items():
            if len(course) < 2:
                continue
            at = [places[point.masks] for point in course]
            mean, low, high = np.array([point.gain for point in course]).T
            style = {"linestyle": "-" if numbers else "", "marker": "o", "capsize": 3, "linewidth": 1.2}
            axis.errorbar(at, mean, [mean - low, high - mean], label=method, **style)
        if not numbers:
            axis.set_xticks(list(places.values()), [str(level) for level in levels.values()], rotation=30, ha="right")
        axis.set(title=title, xlabel=AXES[title].label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PSNR over no prior (dB)")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)
