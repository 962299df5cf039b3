"""Tables of text: of one evaluation, and of several in the layout of the paper's Table 1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from samdeblur.evaluation.results import Results, SetResult
from samdeblur.evaluation.tables.arrangement import has_metrics
from samdeblur.evaluation.tables.bootstrap import LEVEL
from samdeblur.evaluation.tables.cells import BLURRED, LABELS, Table, metric_digits, metric_names
from samdeblur.evaluation.tables.comparison import DEFAULTS, Comparison, Row, Settings, compare
from samdeblur.evaluation.tables.estimates import Cell, Estimate
from samdeblur.evaluation.tables.published import SSIM
from samdeblur.storage.files import printable

NONE = "-"
_PUBLISHED_DIGITS = {f"ssim_{SSIM}": 3}  # as printed


class Number(NamedTuple):
    text: str
    best: bool = False


def run_table(results: Results) -> Table:
    """A row per set of one evaluation; infinite values as they are."""
    known = ("images", "mcr", "psnr", "ssim_wang", "ssim_nafnet")
    others = [name for name in metric_names(name for s in results.sets for name in s.summary) if name not in known]
    guarded = any(result.inference.guard for result in results.sets)
    first = any(result.psnr_step_0 is not None for result in results.sets)
    mcr = f"MCR (> {results.conventions.collapse_db:g} dB)"
    columns = [
        "set",
        "images",
        "PSNR blurred",
        "PSNR",
        "SSIM (wang)",
        "SSIM (nafnet)",
        mcr,
        *others,
        *(["flagged"] if guarded else []),
        *(["step 0"] if first else []),
        "inference",
    ]
    rows = []
    for result in results.sets:
        s = result.summary
        rows.append(
            [
                printable(result.name),
                f"{s['images']}",
                *(_plain(name, s.get(name)) for name in (f"psnr{BLURRED}", "psnr", "ssim_wang", "ssim_nafnet", "mcr")),
                *(_plain(name, s.get(name)) for name in others),
                *([_flagged(result)] if guarded else []),
                *([_plain("psnr", result.psnr_step_0)] if first else []),
                str(result.inference) or "whole images",
            ]
        )
    return Table("Scores", columns, rows)


def comparison_tables(
    runs: Sequence[Results], folders: Sequence[Path] = (), settings: Settings = DEFAULTS
) -> list[Table]:
    """The tables of `tables_of`; sets without sharp images are left out, and nothing is left where all are.

    Args:
        folders: where the results were read from, to tell rows of the same method apart.

    Raises:
        NotComparable
    """
    usable = [position for position, run in enumerate(runs) if any(map(has_metrics, run.sets))]
    if not usable:
        return []
    places = [str(folders[position]) for position in usable] if folders else []
    return tables_of(compare([runs[position] for position in usable], places, settings))


def tables_of(comparison: Comparison) -> list[Table]:
    """Scores as in the paper's Table 1, then what is in `interval_tables`."""
    metrics = shown_metrics(comparison)
    heads = [LABELS[metric] for metric in metrics]
    columns = ["method", *(f"{name} {head}" for name in comparison.names for head in heads)]
    rows, best = [], set()
    for line, (row, numbers) in enumerate(zip(comparison.rows, score_grid(comparison), strict=True)):
        flat = [number for cell in numbers for number in cell]
        rows.append([row.label, *(number.text for number in flat)])
        best |= {(line, place) for place, number in enumerate(flat, 1) if number.best}
    return [Table("Scores", columns, rows, frozenset(best)), *interval_tables(comparison)]


def shown_metrics(comparison: Comparison) -> tuple[str, ...]:
    return ("psnr", f"ssim_{comparison.settings.ssim}", "mcr")


def score_grid(comparison: Comparison) -> list[list[list[Number]]]:
    """Numbers by row, set and metric.

    The best of ours, as printed, are marked where they differ, unless the blurred input itself is better.
    """
    metrics = shown_metrics(comparison)
    grid = []
    for row in comparison.rows:
        digits = _PUBLISHED_DIGITS if row.kind == "published" else {}
        grid.append([[Number(_plain(m, _value(cell, m), digits)) for m in metrics] for cell in row.cells])
    for place in range(len(comparison.names)):
        for position, metric in enumerate(metrics):
            values = {
                line: value
                for line, row in enumerate(comparison.rows)
                if row.ours and (value := _value(row.cells[place], metric)) is not None
            }
            if len({grid[line][place][position].text for line in values}) > 1:
                best_value = (min if metric == "mcr" else max)(values.values())
                blurred = [_value(row.cells[place], metric) for row in comparison.rows if row.kind == "input"]
                if any(value is not None and value > best_value for value in blurred):
                    continue
                best = _plain(metric, best_value)
                for line in values:
                    text = grid[line][place][position].text
                    grid[line][place][position] = Number(text, text == best)
    return grid


def interval_tables(comparison: Comparison) -> list[Table]:
    """Scores with intervals, differences from the baseline, differences from published numbers; those there are."""
    percent = f"{LEVEL:.0%}"
    tables = [_long(f"Scores with {percent} intervals", comparison, "scores")]
    if comparison.baseline:
        tables.append(_long(f"Minus {comparison.baseline}, with {percent} intervals", comparison, "over_baseline"))
    tables.append(_long(f"Minus published, with {percent} intervals", comparison, "over_published"))
    return [table for table in tables if table.rows]


def _long(title: str, comparison: Comparison, what: str) -> Table:
    """A row per set and method."""
    metrics = shown_metrics(comparison)
    difference = what != "scores"
    heads = [f"{LABELS[metric]}, points" if difference and metric == "mcr" else LABELS[metric] for metric in metrics]
    rows = []
    for place, name in enumerate(comparison.names):
        for row in comparison.rows:
            cell = row.cells[place]
            if not row.ours or cell is None or not getattr(cell, what):
                continue
            texts = [_with_interval(row, cell, what, metric) for metric in metrics]
            rows.append([name, row.label, f"{cell.images}", *texts])
    return Table(title, ["set", "method", "images", *heads], rows)


def _with_interval(row: Row, cell: Cell, what: str, metric: str) -> str:
    estimates: dict[str, Estimate] = getattr(cell, what)
    if metric not in estimates:
        return NONE
    found = estimates[metric]
    digits = _PUBLISHED_DIGITS.get(metric) if what == "over_published" else None
    scale, digits = (100, 2) if metric == "mcr" else (1, digits or metric_digits(metric))
    values = [scale * value for value in (found.value, found.low, found.high) if value is not None]
    if what != "scores":
        value, *ends = (_signed(value, digits) for value in values)
        return value + _between(ends)
    value, *ends = (f"{value:.{digits}f}" for value in values)
    unit = "%" if metric == "mcr" else ""
    spread = f" ± {scale * cell.spread[metric]:.{digits}f}" if metric in cell.spread else ""
    return f"{value}{unit}{spread}{_between(ends)}"


def _between(ends: Sequence[str]) -> str:
    return f" [{', '.join(ends)}]" if ends else ""


def _value(cell: Cell | None, metric: str) -> float | None:
    return cell.scores[metric].value if cell is not None and metric in cell.scores else None


def _flagged(result: SetResult) -> str:
    """How many results the guard found suspicious, and how many of them something else stands in for."""
    if result.inference.guard is None:
        return NONE
    flagged, replaced = sum(bool(s.flags) for s in result.scores), sum(bool(s.fallback) for s in result.scores)
    return f"{flagged}" + (f", {replaced} replaced" if replaced else "")


def _plain(metric: str, value: float | None, digits: dict[str, int] | None = None) -> str:
    if value is None:
        return NONE
    if metric == "mcr":
        return f"{100 * value:.2f}%"
    return f"{value:.{(digits or {}).get(metric, metric_digits(metric.removesuffix(BLURRED)))}f}"


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # never -0.00


def as_markdown(table: Table) -> str:
    """A table for terminals and pages; the best in bold, names as they are."""
    rows = [
        [_bold(markdown_escaped(cell), (line, place) in table.best) for place, cell in enumerate(row)]
        for line, row in enumerate(table.rows)
    ]
    return piped([markdown_escaped(column) for column in table.columns], rows)


def piped(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells of Markdown between pipes, as wide as their column."""
    widths = [max(3, *(len(row[place]) for row in [columns, *rows])) for place in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def markdown_escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = re.sub(r"([\\`*|])", r"\\\1", printable(text)).replace("](", r"]\(")
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    return text.replace("<", "&lt;")


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text
