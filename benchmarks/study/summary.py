"""What the study found: means, intervals over seeds and images, and paired differences, as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from intervals import Interval, Values, holm, of_means, of_rates
from plan import CONTROLS, PHOTOGRAPHS, WORLDS, Size, best_masks, cells, variants

from samdeblur.evaluation.metrics.mode_collapse import COLLAPSE_DB
from samdeblur.evaluation.results import RESULTS, read_results
from samdeblur.evaluation.tables import published

BASELINE = "none"
METRICS = ("psnr", "ssim", "collapsed")

# Name of a column -> the sets it is the mean of, scene by scene: a scene is the same one in all families.
POOLED = {
    "worlds": WORLDS[:1],
    "worlds, other families": WORLDS[1:],
    "photographs": PHOTOGRAPHS[:1],
    "photographs, other families": PHOTOGRAPHS[1:],
}


@dataclass(frozen=True)
class Scores:
    """Of one variant on one set, or the means over several.

    Attributes:
        seeds: those that are there.
        psnr, ssim, collapsed: (seeds, images); collapsed is 1 where more than 3 dB are lost.
    """

    seeds: tuple[int, ...]
    psnr: Values
    ssim: Values
    collapsed: Values


@dataclass(frozen=True)
class Row:
    """What is said of one variant on one set or column.

    Attributes:
        over: metric -> difference from another variant, of the same seed and image; nothing for that one itself.
        p: that the difference of PSNR is 0, corrected for the number of variants (Holm).
    """

    variant: str
    images: str
    seeds: int
    count: int
    psnr: Interval
    ssim: Interval
    mcr: Interval
    psnr_of_seeds: list[float]
    over_of_seeds: list[float]  # of PSNR
    over: Mapping[str, Interval]
    p: float = 1.0


Found = dict[str, dict[str, Scores]]  # variant -> set ->


def read_scores(size: Size, out: Path, kind: str = "results") -> Found:
    """Scores of the trainings that are done; a set has the same images in every one."""
    runs: dict[str, dict[str, dict[int, Values]]] = {}
    for cell in cells(size):
        folder = out / kind / cell.place
        if not (folder / RESULTS).exists():
            continue
        for result in read_results(folder).sets:
            rows = sorted(result.scores, key=lambda score: score.key)
            names = ("psnr", "ssim_wang", "psnr_blurred")
            values = np.array([[row.metrics[name] for row in rows] for name in names])
            runs.setdefault(cell.variant.name, {}).setdefault(result.split, {})[cell.seed] = values
    found: Found = {}
    for variant, sets in runs.items():
        for name, of_seeds in sets.items():
            psnr, ssim, blurred = np.stack([*of_seeds.values()], axis=1)
            collapsed = (blurred - psnr > COLLAPSE_DB).astype(float)
            found.setdefault(variant, {})[name] = Scores(tuple(of_seeds), psnr, ssim, collapsed)
    return found


def pooled(found: Found, columns: Mapping[str, Sequence[str]]) -> Found:
    """The same for columns, where a variant has all sets of it that the baseline has."""
    means: Found = {}
    for variant, sets in found.items():
        for column, names in columns.items():
            wanted = [name for name in names if name in found[BASELINE]]
            parts = [sets[name] for name in wanted if name in sets]
            if parts and len(parts) == len(wanted):
                arrays = (np.mean([getattr(part, metric) for part in parts], axis=0) for metric in METRICS)
                means.setdefault(variant, {})[column] = Scores(parts[0].seeds, *arrays)
    return means


def differences(one: Scores, other: Scores) -> dict[str, Values]:
    """Metric -> one minus the other, for the seeds that both have."""
    both = [seed for seed in one.seeds if seed in other.seeds]
    mine, theirs = ([scores.seeds.index(seed) for seed in both] for scores in (one, other))
    return {metric: getattr(one, metric)[mine] - getattr(other, metric)[theirs] for metric in METRICS} if both else {}


def over_baseline(scores: Scores, base: Scores) -> Interval | None:
    """PSNR of one over another, of the same seeds and images."""
    compared = differences(scores, base)
    return of_means(compared["psnr"]) if compared else None


def summarise(found: Found, baseline: str = BASELINE) -> list[Row]:
    """A row per variant and set, with its difference from a baseline."""
    rows = []
    for variant, sets in found.items():
        for name, scores in sets.items():
            base = found.get(baseline, {}).get(name)
            compared = differences(scores, base) if base is not None and variant != baseline else {}
            rows.append(
                Row(
                    variant,
                    name,
                    *scores.psnr.shape,
                    psnr=of_means(scores.psnr),
                    ssim=of_means(scores.ssim),
                    mcr=of_rates(scores.collapsed),
                    psnr_of_seeds=scores.psnr.mean(axis=1).round(4).tolist(),
                    over_of_seeds=compared["psnr"].mean(axis=1).round(4).tolist() if compared else [],
                    over={metric: of_means(values) for metric, values in compared.items()},
                )
            )
    return [replace(row, p=p) for row, p in zip(rows, _corrected(rows), strict=True)]


def _corrected(rows: Sequence[Row]) -> list[float]:
    """p of each row, corrected within its set."""
    corrected = [1.0] * len(rows)
    for name in {row.images for row in rows}:
        places = [place for place, row in enumerate(rows) if row.images == name and row.over]
        for place, p in zip(places, holm(np.array([rows[place].over["psnr"].p for place in places])), strict=True):
            corrected[place] = float(p)
    return corrected


def asmarkdown(size: Size, found: Found, in_practice: Found, quality: Mapping[str, Sequence[float]]) -> str:
    """All tables: a row per variant, a column per set.

    Args:
        quality: of masks, see `mask_quality`.
        in_practice: of networks trained with masks of an oracle, tested with masks found in blurred images.
    """
    order = [variant.name for variant in variants(size)]
    controls = [f"{size.families[0]}-{control}" for control in CONTROLS]
    sets, columns = summarise(found), summarise(pooled(found, POOLED))
    families = [row for row in sets if row.images not in controls]
    papers = {f"map-dropout, {masks}": masks for masks in (best_masks(size.masks), size.masks[-1])}
    tables = {
        "PSNR: dB over `none` of the same seed and image": _table(order, columns, _over),
        "SSIM (`wang`): over `none`": _table(order, columns, _ssim),
        "Mode collapse rate": _table(order, columns, _mcr),
        "As in Table 1 of the paper: PSNR over the network without a prior, and MCR": _beside_paper(size, sets),
        **{
            f"PSNR: dB over `{paper}`": _table(order, _over_paper(found, paper, masks), _over)
            for paper, masks in papers.items()
        },
        "PSNR by family: dB over `none`": _table(order, families, _over),
        "Mode collapse rate by family": _table(order, families, _mcr),
        "PSNR that the masks are worth: dB over the same network without any, and with those of another image": (
            _worth(found, order, size.families[0], controls)
        ),
        "Trained with masks that know the sharp images, tested with SAM's of the blurred: PSNR over `none`": _table(
            order, summarise(pooled({BASELINE: found[BASELINE]} | in_practice, POOLED)), _over
        ),
        "Masks: how many per image, mean IoU of the best for each true mask, share of those above 0.75": markdown(
            ["", "masks", "IoU", "found"],
            [[name, f"{count:.0f}", f"{iou:.2f}", f"{share:.0%}"] for name, (count, iou, share) in quality.items()],
        ),
        "PSNR of every seed": _table(order, columns, lambda row: " ".join(f"{p:.2f}" for p in row.psnr_of_seeds)),
    }
    return "\n\n".join(f"**{title}**\n\n{table}" for title, table in tables.items())


def _over_paper(found: Found, paper: str, masks: str) -> list[Row]:
    """Rows with the same masks, over the paper's method."""
    rivals = {variant: sets for variant, sets in pooled(found, POOLED).items() if variant.endswith(f", {masks}")}
    return summarise(rivals, paper)


def _worth(found: Found, order: Sequence[str], name: str, controls: Sequence[str]) -> str:
    body = []
    for variant in order:
        sets = found.get(variant, {})
        if all(control in sets for control in controls):
            told = (differences(sets[name], sets[control])["psnr"] for control in controls)
            body.append([variant, *(signed(of_means(values), 3) for values in told)])
    return markdown(["", *controls], body)


def _table(order: Sequence[str], rows: Sequence[Row], text: Callable[[Row], str]) -> str:
    by_place = {(row.variant, row.images): text(row) for row in rows}
    names = list(dict.fromkeys(row.images for row in rows))
    body = [[variant, *(by_place.get((variant, name), "-") for name in names)] for variant in order]
    return markdown(["", *names], [line for line in body if set(line[1:]) != {"-"}])


def _over(row: Row) -> str:
    """Bold where it is not chance, for all that so many variants were tried."""
    if not row.over:
        return f"({row.psnr.mean:.2f})"
    text = signed(row.over["psnr"])
    return f"**{text}**" if row.p < 0.05 else text


def _ssim(row: Row) -> str:
    return signed(row.over["ssim"], 4) if row.over else f"({row.ssim.mean:.4f})"


def _mcr(row: Row) -> str:
    return f"{row.mcr.mean:.1%} [{row.mcr.low:.1%}, {row.mcr.high:.1%}]"


def signed(interval: Interval, digits: int = 2) -> str:
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
            text = f"({scores['psnr']:.2f})" if row is base else f"{over:+.2f}"
            line.append(text + (f" / {scores['mcr']:.2%}" if "mcr" in scores else ""))
        for name in names:
            mine = ours.get((row.method if row is base else f"{row.method}, {masks}", name))
            line.append("-" if mine is None else f"{_over(mine)} / {_mcr(mine)}")
        body.append(line)
    return markdown(["", *(f"paper: {dataset}" for dataset, _ in base.scores), *(f"here: {n}" for n in names)], body)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def write_summary(
    size: Size, out: Path, found: Found, in_practice: Found, quality: Mapping[str, Sequence[float]]
) -> str:
    """summary.json and summary.md; gives the latter."""
    means = {column: names for column, names in POOLED.items() if len(names) > 1}
    rows = [*summarise(found), *summarise(pooled(found, means))]
    kept = [{name: _plain(value) for name, value in vars(row).items()} for row in rows]
    (out / "summary.json").write_text("[\n" + ",\n".join(map(json.dumps, kept)) + "\n]\n")
    text = asmarkdown(size, found, in_practice, quality)
    (out / "summary.md").write_text(text + "\n")
    return text


def _plain(value: object) -> object:
    """For JSON; figures that nobody could see are left off."""
    if isinstance(value, Interval):
        return {name: round(figure, 6) for name, figure in value._asdict().items()}
    return {name: _plain(of) for name, of in value.items()} if isinstance(value, Mapping) else value
