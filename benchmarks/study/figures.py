"""Figures of the study: what each variant adds with its interval, and the course of the trainings."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from plan import Cell, Size, variants
from summary import BASELINE, Row


def draw_differences(size: Size, columns: Sequence[Row], path: Path) -> None:
    """A panel per column: the PSNR of every variant over none, its interval, and a point for each seed."""
    names = list(dict.fromkeys(row.images for row in columns))
    order = [v.name for v in variants(size) if any(v.name == row.variant for row in columns)][1:]
    figure = Figure(figsize=(3.0 + 2.4 * len(names), 1.0 + 0.24 * len(order)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        axis.axvline(0, color="black", linewidth=0.8)
        for row in columns:
            if row.images != name or not row.over:
                continue
            place, over = order.index(row.variant), row.over["psnr"]
            sure = row.p < 0.05
            colour = "grey" if not sure else "tab:green" if over.mean > 0 else "tab:red"
            axis.plot([over.low, over.high], [place, place], color=colour, linewidth=2)
            axis.plot(over.mean, place, "o", color=colour, markersize=5)
            below = [place + 0.28] * len(row.over_of_seeds)
            axis.plot(row.over_of_seeds, below, "|", color="black", markersize=4, alpha=0.6)
        axis.set(title=name, xlabel="PSNR over none (dB)")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(order)), order)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)


def draw_curves(size: Size, out: Path, path: Path) -> None:
    """PSNR over none of the same seed on held out training images, by step: the mean and the range over seeds."""
    groups: dict[str, list[str]] = {}
    for variant in variants(size)[1:]:
        method = variant.name.split(", ")[0]
        plain = method in ("cat", "map", "map-dropout")
        groups.setdefault(variant.masks if plain else f"{variant.masks}: others", []).append(variant.name)
    base = _courses(size, out, BASELINE)
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (title, names) in zip(axes, groups.items(), strict=False):
        axis.axhline(0, color="black", linewidth=0.8)
        for name in names:
            courses = _courses(size, out, name)
            both = sorted(base.keys() & courses.keys())
            if not both:
                continue
            steps = sorted(set.intersection(*(set(courses[seed]) & set(base[seed]) for seed in both)) - {0})
            over = np.array([[courses[seed][step] - base[seed][step] for step in steps] for seed in both])
            (line,) = axis.plot(steps, over.mean(axis=0), marker=".", label=name.split(", ")[0])
            axis.fill_between(steps, over.min(axis=0), over.max(axis=0), color=line.get_color(), alpha=0.12)
        axis.set(title=f"masks: {title}", xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    for axis in axes[::columns]:
        axis.set_ylabel("PSNR over none (dB)")
    for axis in axes[len(groups) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=90)


def _courses(size: Size, out: Path, name: str) -> dict[int, dict[int, float]]:
    """Seed -> step -> PSNR, of the trainings that are done."""
    (variant,) = (variant for variant in variants(size) if variant.name == name)
    courses = {}
    for seed in range(variant.seeds):
        cell = Cell(variant, seed)
        path = out / "runs" / cell.place / "log.csv"
        if (out / "results" / cell.place).exists():
            with open(path, newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["val_psnr"]]
            courses[seed] = {int(row["step"]): float(row["val_psnr"]) for row in rows}
    return courses
