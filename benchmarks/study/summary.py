"""What the study found: means, intervals over seeds and images, and paired differences, as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from intervals import Interval, Values, holm, of_means, of_rates
from plan import CONTROLS, PHOTOGRAPHS, WORLDS, Size, best_masks, cells, variants

from samdeblur.train import published
from samdeblur.train.results import RESULTS, read_results

BASELINE = "none"
COLLAPSE_DB = 3.0

# Name of a column -> the sets it is the mean of, scene by scene: a scene is the same one in all families.
POOLED = {
    "worlds": WORLDS[:1],
    "worlds, other families": WORLDS[1:],
    "photographs": PHOTOGRAPHS[:1],
    "photographs, other families": PHOTOGRAPHS[1:],
}


@dataclass(frozen=True)
class Scores:
    """Of one variant on one set, or the means over several; (seeds, images) each.

    Attributes:
        collapsed: 1 where more than 3 dB are lost.
    """

    psnr: Values
    ssim: Values
    collapsed: Values


@dataclass(frozen=True)
class Row:
    """What is said of one variant on one set or column.

    Attributes:
        psnr_over_none, ssim_over_none, mcr_over_none: of the same seed and image; None for the baseline itself.
        p: that `psnr_over_none` is 0, corrected for the number of variants (Holm).
    """

    variant: str
    images: str
    seeds: int
    count: int
    psnr: Interval
    ssim: Interval
    mcr: Interval
    psnr_of_seeds: list[float]
    psnr_over_none: Interval | None = None
    ssim_over_none: Interval | None = None
    mcr_over_none: Interval | None = None
    p: float = 1.0


Found = dict[str, dict[str, Scores]]  # variant -> set ->


def read_scores(size: Size, out: Path) -> Found:
    """Scores of the seeds that are there; a set has the same images in every run."""
    runs: dict[str, dict[str, list[Values]]] = {}
    for cell in cells(size):
        folder = out / "results" / cell.place
        if not (folder / RESULTS).exists():
            continue
        for result in read_results(folder).sets:
            rows = sorted(result.scores, key=lambda score: score.key)
            names = ("psnr", "ssim_wang", "psnr_blurred")
            values = np.array([[row.metrics[name] for row in rows] for name in names])
            runs.setdefault(cell.variant.name, {}).setdefault(result.split, []).append(values)
    found: Found = {}
    for variant, sets in runs.items():
        for name, stacked in sets.items():
            psnr, ssim, blurred = np.stack(stacked, axis=1)
            collapsed = (blurred - psnr > COLLAPSE_DB).astype(float)
            found.setdefault(variant, {})[name] = Scores(psnr, ssim, collapsed)
    return found


def pooled(found: Found, columns: Mapping[str, Sequence[str]]) -> Found:
    """The same for columns, where a variant has all sets of it."""
    means: Found = {}
    for variant, sets in found.items():
        for column, names in columns.items():
            parts = [sets[name] for name in names if name in sets]
            if parts and len(parts) == len([name for name in names if name in found[BASELINE]]):
                arrays = (np.mean([getattr(part, name) for part in parts], axis=0) for name in asdict(parts[0]))
                means.setdefault(variant, {})[column] = Scores(*arrays)
    return means


def summarise(found: Found) -> list[Row]:
    """A row per variant and set, with the difference from the network without a prior, of the same seed and image."""
    rows = []
    for variant, sets in found.items():
        for name, scores in sets.items():
            row = Row(
                variant,
                name,
                *scores.psnr.shape,
                psnr=of_means(scores.psnr),
                ssim=of_means(scores.ssim),
                mcr=of_rates(scores.collapsed),
                psnr_of_seeds=scores.psnr.mean(axis=1).round(4).tolist(),
            )
            base = found.get(BASELINE, {}).get(name)
            if base is not None and variant != BASELINE:
                n = min(len(base.psnr), len(scores.psnr))
                over = (of_means(getattr(scores, metric)[:n] - getattr(base, metric)[:n]) for metric in asdict(scores))
                row = Row(**(vars(row) | dict(zip(_OVER, over, strict=True))))
            rows.append(row)
    return [Row(**(vars(row) | {"p": p})) for row, p in zip(rows, _corrected(rows), strict=True)]


_OVER = ("psnr_over_none", "ssim_over_none", "mcr_over_none")


def _corrected(rows: Sequence[Row]) -> list[float]:
    """p of each row, corrected within its set."""
    corrected = [1.0] * len(rows)
    for name in {row.images for row in rows}:
        of_set = [
            (place, row.psnr_over_none.p) for place, row in enumerate(rows) if row.images == name and row.psnr_over_none
        ]
        for (place, _), p in zip(of_set, holm(np.array([p for _, p in of_set])), strict=True):
            corrected[place] = float(p)
    return corrected


def as_markdown(size: Size, sets: Sequence[Row], columns: Sequence[Row]) -> str:
    """All tables: a row per variant, a column per set."""
    order = [variant.name for variant in variants(size.masks)]
    controls = [f"{size.families[0]}-{control}" for control in CONTROLS]
    families = [row for row in sets if row.images not in controls]
    told = [row for row in sets if row.images in (size.families[0], *controls)]
    tables = {
        "PSNR: dB over `none` of the same seed and image": _table(order, columns, _over),
        "SSIM (`wang`): over `none`": _table(order, columns, _ssim),
        "Mode collapse rate": _table(order, columns, _mcr),
        "PSNR by family: dB over `none`": _table(order, families, _over),
        "Mode collapse rate by family": _table(order, families, _mcr),
        "PSNR with the masks, without any, and with those of another image": _table(order, told, _psnr),
        "PSNR of every seed": _table(order, columns, lambda row: " ".join(f"{p:.2f}" for p in row.psnr_of_seeds)),
        "As in Table 1 of the paper: PSNR over the network without a prior, and MCR": _beside_paper(size, sets),
    }
    return "\n\n".join(f"**{title}**\n\n{table}" for title, table in tables.items())


def _table(order: Sequence[str], rows: Sequence[Row], text: Callable[[Row], str]) -> str:
    by_place = {(row.variant, row.images): text(row) for row in rows}
    names = list(dict.fromkeys(row.images for row in rows))
    body = [[variant, *(by_place.get((variant, name), "-") for name in names)] for variant in order]
    return _markdown(["", *names], [line for line in body if set(line[1:]) != {"-"}])


def _over(row: Row) -> str:
    """Bold where it is not chance, for all that so many variants were tried."""
    if row.psnr_over_none is None:
        return f"({row.psnr.mean:.2f})"
    text = _signed(row.psnr_over_none)
    return f"**{text}**" if row.p < 0.05 else text


def _psnr(row: Row) -> str:
    return f"{row.psnr.mean:.2f}"


def _ssim(row: Row) -> str:
    return f"({row.ssim.mean:.4f})" if row.ssim_over_none is None else _signed(row.ssim_over_none, 4)


def _mcr(row: Row) -> str:
    return f"{row.mcr.mean:.1%} [{row.mcr.low:.1%}, {row.mcr.high:.1%}]"


def _signed(interval: Interval, digits: int = 2) -> str:
    mean, low, high, _ = interval
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _beside_paper(size: Size, sets: Sequence[Row]) -> str:
    """The rows of Table 1, with the best masks that SAM found, beside what the paper has."""
    masks = best_masks(size.masks)
    ours = {(row.variant, row.images): row for row in sets}
    names = [name for name in ("worlds", "worlds-long", "worlds-local") if name in size.families]
    base = published.ROWS[0]
    body = []
    for row in published.ROWS:
        line = [row.method]
        for name, scores in row.scores.items():
            over = scores["psnr"] - base.scores[name]["psnr"]
            line.append(f"{over:+.2f}" + (f" / {scores['mcr']:.2%}" if "mcr" in scores else ""))
        for name in names:
            mine = ours.get((row.method if row is base else f"{row.method}, {masks}", name))
            over_none = mine and mine.psnr_over_none
            line.append("-" if mine is None else f"{over_none.mean if over_none else 0:+.2f} / {mine.mcr.mean:.1%}")
        body.append(line)
    return _markdown(["", *(f"paper: {dataset}" for dataset, _ in base.scores), *(f"here: {n}" for n in names)], body)


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def write_summary(size: Size, out: Path, sets: Sequence[Row], columns: Sequence[Row]) -> str:
    """summary.json and summary.md; gives the latter."""
    kept = [{name: _plain(value) for name, value in vars(row).items()} for row in (*sets, *columns)]
    (out / "summary.json").write_text(json.dumps(kept, indent=1) + "\n")
    text = as_markdown(size, sets, columns)
    (out / "summary.md").write_text(text + "\n")
    return text


def _plain(value: object) -> object:
    return value._asdict() if isinstance(value, Interval) else value
