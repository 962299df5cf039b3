"""What the study found: means, intervals over seeds and images, and paired differences, as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plan import Size, cells, variants

from samdeblur.train.results import RESULTS, read_results

RESAMPLES = 10_000
BASELINE = "none"
METRICS = ("psnr", "ssim_wang")


@dataclass(frozen=True)
class Scores:
    """Of one variant on one set.

    Attributes:
        psnr, ssim, psnr_blurred: (seeds, images).
    """

    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]
    psnr_blurred: NDArray[np.float64]

    @property
    def collapsed(self) -> NDArray[np.float64]:
        """(seeds, images), 1 where more than 3 dB are lost."""
        return (self.psnr_blurred - self.psnr > 3.0).astype(float)


def read_scores(size: Size, out: Path) -> dict[str, dict[str, Scores]]:
    """variant -> set -> scores of the seeds that are there; sets have the same images in every run."""
    found: dict[str, dict[str, list[tuple[list[float], list[float], list[float]]]]] = {}
    for cell in cells(size):
        folder = out / "results" / cell.place
        if not (folder / RESULTS).exists():
            continue
        for result in read_results(folder).sets:
            rows = sorted(result.scores, key=lambda score: score.key)
            columns = tuple([row.metrics[name] for row in rows] for name in ("psnr", "ssim_wang", "psnr_blurred"))
            found.setdefault(cell.variant.name, {}).setdefault(result.split, []).append(columns)  # type: ignore[arg-type]
    return {
        variant: {
            name: Scores(*(np.array(column) for column in zip(*runs, strict=True))) for name, runs in sets.items()
        }
        for variant, sets in found.items()
    }


def interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95% interval of (seeds, images), by drawing seeds and images again, each with replacement."""
    rng = np.random.default_rng(seed)
    n_seeds, n_images = values.shape
    seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), RESAMPLES) / n_seeds
    images = rng.multinomial(n_images, np.full(n_images, 1 / n_images), RESAMPLES) / n_images
    means = np.einsum("rs,si,ri->r", seeds, values, images, optimize=True)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def summarise(scores: Mapping[str, Mapping[str, Scores]]) -> list[dict[str, Any]]:
    """A row per variant and set, with the difference from the network without a prior of the same seed and image."""
    rows = []
    for variant, sets in scores.items():
        for name, found in sets.items():
            row: dict[str, Any] = {
                "variant": variant,
                "set": name,
                "seeds": len(found.psnr),
                "images": found.psnr.shape[1],
            }
            row["psnr"] = interval(found.psnr)
            row["ssim"] = interval(found.ssim)
            row["mcr"] = interval(found.collapsed)
            row["psnr of seeds"] = found.psnr.mean(axis=1).tolist()
            base = scores.get(BASELINE, {}).get(name)
            if base is not None and variant != BASELINE:
                n = min(len(base.psnr), len(found.psnr))
                row["psnr over none"] = interval(found.psnr[:n] - base.psnr[:n])
                row["mcr over none"] = interval(found.collapsed[:n] - base.collapsed[:n])
            rows.append(row)
    return rows


def as_markdown(size: Size, rows: Sequence[Mapping[str, Any]]) -> str:
    """Two tables, a row per variant and a column per set: PSNR with the change over none, and MCR."""
    names = list(dict.fromkeys(row["set"] for row in rows))
    by_place = {(row["variant"], row["set"]): row for row in rows}
    order = [
        variant.name for variant in variants(size.masks) if any((variant.name, name) in by_place for name in names)
    ]
    psnr, mcr = [], []
    for variant in order:
        cells_ = [by_place.get((variant, name)) for name in names]
        psnr.append([variant, *(_psnr(row) for row in cells_)])
        mcr.append([variant, *(_mcr(row) for row in cells_)])
    return "\n\n".join(
        f"{title}\n\n{_table(['', *names], body)}"
        for title, body in (("PSNR, and its change over `none`", psnr), ("MCR", mcr))
    )


def _psnr(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    if "psnr over none" not in row:
        return f"{row['psnr'][0]:.2f}"
    mean, low, high = row["psnr over none"]
    text = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def _mcr(row: Mapping[str, Any] | None) -> str:
    return "-" if row is None else "{:.1%} [{:.1%}, {:.1%}]".format(*row["mcr"])


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def write_summary(size: Size, out: Path) -> str:
    """summary.json and summary.md; gives the latter."""
    rows = summarise(read_scores(size, out))
    (out / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = as_markdown(size, rows)
    (out / "summary.md").write_text(text + "\n")
    return text
