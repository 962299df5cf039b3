"""Several evaluations side by side, beside the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from samdeblur.evaluation.results import Conventions, Results, Trained
from samdeblur.evaluation.tables import published
from samdeblur.evaluation.tables.arrangement import (
    Arrangement,
    Column,
    Group,
    NotComparable,
    arrange,
    differing,
)
from samdeblur.evaluation.tables.bootstrap import LEVEL, RESAMPLES
from samdeblur.evaluation.tables.caveats import FEW, TRAINED_ON, other_masks
from samdeblur.evaluation.tables.estimates import (
    HIGHEST_DB,
    INPUT,
    METRICS,
    Cell,
    Estimate,
    cell,
    mean_over_sets,
    sample,
)
from samdeblur.storage.files import printable
from samdeblur.storage.plurals import counted

MEANS = ("mean of sets", "mean of images")
USUAL = "whole images and no TLC"  # inference that has no words of its own


@dataclass(frozen=True)
class Settings:
    """How results are compared.

    Attributes:
        ssim: convention of SSIM that is shown. Published values are of `nafnet` and stand beside no other.
        published: whether published rows are shown; None: where they compare.
        mean_runs: whether the runs of a method become one row, their mean.
        baseline: label or method of the row that others are compared with; by default the method `none`, or else the
            first row of the table.
    """

    ssim: Literal["nafnet", "wang"] = "nafnet"
    published: bool | None = None
    resamples: int = RESAMPLES
    seed: int = 0
    mean_runs: bool = False
    baseline: str | None = None


DEFAULTS = Settings()


@dataclass(frozen=True)
class Row:
    """One network, the mean of several, the blurred input, or a published method.

    Attributes:
        cells: one for each set, then those of MEANS if there are several sets; None where there is nothing.
        places: where the results were read from.
    """

    kind: Literal["published", "input", "run", "mean of runs"]
    label: str
    method: str
    cells: tuple[Cell | None, ...]
    places: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()
    trained: tuple[Trained | None, ...] = ()

    @property
    def ours(self) -> bool:
        return self.kind in ("run", "mean of runs")


@dataclass(frozen=True)
class Comparison:
    """Everything a table shows.

    Attributes:
        names: of what the cells of a row are.
        baseline: label of a row; empty for a single row, which compares with nothing.
        notes: sentences that belong to the table.
    """

    columns: tuple[Column, ...]
    names: tuple[str, ...]
    rows: tuple[Row, ...]
    baseline: str
    conventions: Conventions
    settings: Settings
    notes: tuple[str, ...]


def compare(runs: Sequence[Results], places: Sequence[str] = (), settings: Settings = DEFAULTS) -> Comparison:
    """Put results side by side.

    Args:
        places: where each was read from, for labels and messages; by default its weights.

    Raises:
        NotComparable: other conventions, other images under the same name, no metrics, an unknown baseline, or
            published rows asked for that do not compare.
    """
    arrangement = arrange(runs, places, settings.mean_runs)
    columns, groups = arrangement.columns, arrangement.groups
    baseline = _baseline(groups, settings.baseline)
    beside, notes = _published(arrangement, settings)

    samples = [sample(column, arrangement, settings.resamples, settings.seed) for column in columns]
    names = [column.name for column in columns]
    if len(columns) > 1:
        sizes = [len(column.images) for column in columns]
        samples += [mean_over_sets(samples, [1] * len(sizes)), mean_over_sets(samples, sizes)]
        names += MEANS
    means = len(names) - len(columns)

    rows = [*beside, Row("input", "blurred input", "", tuple(cell(found, INPUT) for found in samples))]
    for position, group in enumerate(groups):
        theirs = next((row.cells for row in beside if row.method == group.method), (None,) * len(names))
        ways = [group.way(column.key) or "" for column in columns] + [""] * means
        cells = (
            cell(found, position, baseline, their, way) for found, their, way in zip(samples, theirs, ways, strict=True)
        )
        rows.append(
            Row(
                "run" if len(group.networks) == 1 else "mean of runs",
                group.label,
                group.method,
                tuple(cells),
                tuple(place for network in group.networks for place in network.places),
                tuple(network.sha256 for network in group.networks),
                tuple(network.trained for network in group.networks),
            )
        )
    name = groups[baseline].label if len(groups) > 1 else ""
    notes = [
        *_conventions(arrangement.conventions, settings),
        *notes,
        *arrangement.notes,
        *_inference_notes(arrangement),
        *_capped_psnr_notes(arrangement),
    ]
    notes += [*_weight_notes(groups), *_small_set_notes(columns), *_mask_notes(arrangement)]
    return Comparison(columns, tuple(names), tuple(rows), name, arrangement.conventions, settings, tuple(notes))


def _baseline(groups: Sequence[Group], wanted: str | None) -> int:
    if wanted is None:
        return next((position for position, group in enumerate(groups) if group.method == "none"), 0)
    for names in ([group.label for group in groups], [group.method for group in groups]):
        if wanted in names:
            return names.index(wanted)
    there = ", ".join(group.label for group in groups)
    raise NotComparable(f"no row {printable(wanted)!r} to compare others with; there are: {there}")


def _published(arrangement: Arrangement, settings: Settings) -> tuple[list[Row], list[str]]:
    """The published rows, if they are shown, and what a reader should know of them."""
    if settings.published is False:
        return [], []
    known = [_of_paper(column) for column in arrangement.columns]
    reason = differing(arrangement.conventions, published.CONVENTIONS)
    if not reason and not any(known):
        reason = f"none of the sets is one of the paper's, in name and number ({_paper_sets()})"
    if reason:
        reason = f"published numbers cannot be compared with these: {printable(reason)}"
        if settings.published:
            raise NotComparable(f"{', '.join(arrangement.places)}: {reason}")
        return [], [f"{reason[0].upper()}{reason[1:]}."]

    notes = [f"Published: {published.SOURCE}; taken as exact, and its SSIM as of the convention {published.SSIM}."]
    if settings.ssim != published.SSIM:
        notes.append(f"Published SSIM is left out, as SSIM here is of the convention {settings.ssim}.")
    for column, of_paper in zip(arrangement.columns, known, strict=True):
        if of_paper is not None:
            notes += _inference_unlike_published(arrangement, column, of_paper)
    return [_published_row(row, arrangement.columns) for row in published.ROWS], notes


def _of_paper(column: Column) -> published.PublishedSet | None:
    """The set of the paper that a column is, by its name and the number of its images."""
    found = published.SETS.get(column.key[:2])
    return found if found is not None and found.images == len(column.images) else None


def _paper_sets() -> str:
    return ", ".join(f"{' '.join(key)} {found.images:,}" for key, found in published.SETS.items())


def _inference_unlike_published(
    arrangement: Arrangement, column: Column, of_paper: published.PublishedSet
) -> list[str]:
    """How our evaluation of a set differs from the published one."""
    notes = []
    usual = str(of_paper.inference)
    ways = {group.label: group.way(column.key) for group in arrangement.groups}
    odd = [f"{label} with {way or USUAL}" for label, way in ways.items() if way not in (usual, None)]
    if odd:
        notes.append(f"{column.name}: published numbers are with {usual or USUAL}; here {'; '.join(odd)}.")
    return notes


def _published_row(row: published.PublishedRow, columns: Sequence[Column]) -> Row:
    sets = [_of_paper(column) for column in columns]
    scores = [row.scores.get(column.key[:2], {}) if of else {} for column, of in zip(columns, sets, strict=True)]
    sizes = [of_paper.images if of_paper is not None else 0 for of_paper in sets]
    cells = [
        _published_cell(found, of_paper.images, str(of_paper.inference)) if of_paper is not None else None
        for found, of_paper in zip(scores, sets, strict=True)
    ]
    if len(columns) > 1:
        shared = [metric for metric in METRICS if all(metric in found for found in scores)]
        for weights in ([1] * len(sizes), sizes):
            means = {m: float(np.average([found[m] for found in scores], weights=weights)) for m in shared}
            cells.append(_published_cell(means, sum(sizes)) if means else None)
    return Row("published", f"{row.name} (published)", row.method, tuple(cells))


def _published_cell(scores: Mapping[str, float], images: int, inference: str = "") -> Cell:
    return Cell(images, {metric: Estimate(value) for metric, value in scores.items()}, inference=inference)


def _conventions(conventions: Conventions, settings: Settings) -> list[str]:
    aligned = "" if conventions.align == "none" else f" Results are aligned with the sharp images: {conventions.align}."
    return [
        printable(
            f"PSNR in dB ({conventions.psnr}). SSIM of the convention {settings.ssim}. MCR: share of images that lose "
            f"more than {conventions.collapse_db:g} dB.{aligned}"
        ),
        f"Intervals: {LEVEL:.0%}, percentiles of {settings.resamples} bootstrap resamples of the images, seed "
        f"{settings.seed}, paired in differences from another row; of MCR itself Wilson's.",
    ]


def _inference_notes(arrangement: Arrangement) -> list[str]:
    """How inference was done in rows whose label does not say it, for it was not the same on all sets."""
    notes = []
    mixed = [group for group in arrangement.groups if len(group.networks[0].ways) > 1]
    for column in arrangement.columns:
        labels: dict[str, list[str]] = {}
        for group in mixed:
            if way := group.way(column.key):
                labels.setdefault(way, []).append(group.label)
        notes += [f"{column.name} with {way}: {', '.join(several)}." for way, several in labels.items()]
    return notes


def _weight_notes(groups: Sequence[Group]) -> list[str]:
    """Of which steps the weights are, where they say."""
    steps_of_groups: list[str] = []
    for group in groups:
        steps = [str(network.trained) for network in group.networks if network.trained is not None]
        steps_of_groups += [f"{group.label}: {'; '.join(dict.fromkeys(steps))}"] if steps else []
    return [f"Weights of {', '.join(steps_of_groups)}."] if steps_of_groups else []


def _small_set_notes(columns: Sequence[Column]) -> list[str]:
    return [
        f"{column.name}: {counted(len(column.images), 'image')}, too few for means to say much."
        for column in columns
        if len(column.images) < FEW
    ]


def _mask_notes(arrangement: Arrangement) -> list[str]:
    """Where a network met masks of another kind than in training, or the images of its training."""
    notes = []
    for column in arrangement.columns:
        for group in arrangement.groups:
            found = (other_masks(n.sets[column.key], n.trained) for n in group.networks if column.key in n.sets)
            notes += [f"{group.label}, {column.name}: {line}." for line in dict.fromkeys(filter(None, found))]
            if any(n.sets[column.key].trained_on for n in group.networks if column.key in n.sets):
                notes.append(f"{group.label}, {column.name}: {TRAINED_ON}")
    return notes


def _capped_psnr_notes(arrangement: Arrangement) -> list[str]:
    """Where PSNR is too high to be averaged."""
    notes = []
    for column in arrangement.columns:
        results = (network.sets.get(column.key) for group in arrangement.groups for network in group.networks)
        scores = [score for result in results if result is not None for score in result.scores]
        high = {s.key for s in scores if max(s.metrics["psnr"], s.metrics["psnr_blurred"]) > HIGHEST_DB}
        if high:
            notes.append(
                f"{column.name}: PSNR above {HIGHEST_DB:g} dB, that of perfect images too, counts as "
                f"{HIGHEST_DB:g} dB ({len(high)} of {len(column.images)} images)."
            )
    return notes
