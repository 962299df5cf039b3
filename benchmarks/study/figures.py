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
    order = [v.name for v in variants(size.masks) if any(v.name == row.variant for row in columns)][1:]
    base = {row.images: np.array(row.psnr_of_seeds) for row in columns if row.variant == BASELINE}
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
            of_seeds = np.array(row.psnr_of_seeds)
            n = min(len(of_seeds), len(base[name]))
            axis.plot(of_seeds[:n] - base[name][:n], [place + 0.28] * n, "|", color="black", markersize=4, alpha=0.6)
        axis.set(title=name, xlabel="PSNR over none (dB)")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(order)), order)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)


def draw_curves(size: Size, out: Path, path: Path) -> None:
    """PSNR on held out training images over steps: the mean over seeds, from the lowest to the highest."""
    groups: dict[str, list[str]] = {}
    for variant in variants(size.masks)[1:]:
        method = variant.name.split(", ")[0]
        plain = method in ("cat", "map", "map-dropout")
        groups.setdefault(f"masks: {variant.masks}" if plain else "other semantics, ours, ablations", []).append(
            variant.name
        )
    figure = Figure(figsize=(4.2 * len(groups), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axis, (title, names) in zip(axes, groups.items(), strict=True):
        for name in (BASELINE, *names):
            courses = _courses(size, out, name)
            if not courses:
                continue
            steps = sorted(set.intersection(*map(set, courses)) - {0})
            psnr = np.array([[course[step] for step in steps] for course in courses])
            (line,) = axis.plot(
                steps, psnr.mean(axis=0), label=name.split(", ")[0], color="black" if name == BASELINE else None
            )
            axis.fill_between(steps, psnr.min(axis=0), psnr.max(axis=0), color=line.get_color(), alpha=0.12)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    axes[0].set_ylabel("PSNR on held out images (dB)")
    figure.savefig(path, dpi=110)


def _courses(size: Size, out: Path, name: str) -> list[dict[int, float]]:
    """Step -> PSNR, of every seed that is there."""
    (variant,) = (variant for variant in variants(size.masks) if variant.name == name)
    courses = []
    for seed in range(size.seeds):
        path = out / "runs" / Cell(variant, seed).place / "log.csv"
        if path.exists():
            with open(path, newline="") as file:
                courses.append(
                    {int(row["step"]): float(row["val_psnr"]) for row in csv.DictReader(file) if row["val_psnr"]}
                )
    return courses
