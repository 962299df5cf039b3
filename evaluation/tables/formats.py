"""A comparison as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from samdeblur.evaluation.results import inert
from samdeblur.evaluation.tables.cells import LABELS, Table
from samdeblur.evaluation.tables.comparison import Comparison, Row
from samdeblur.evaluation.tables.estimates import METRICS, Estimate
from samdeblur.evaluation.tables.text import interval_tables, markdown_escaped, piped, score_grid, shown_metrics
from samdeblur.storage.files import printable

BEST = "Bold: the best of ours, of numbers as printed."
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\0": "{}",
    **{character: f"\\{character}" for character in "{}$&#%_"},
}


def markdown_text(comparison: Comparison) -> str:
    """Scores with a column per set, then a table each of intervals and differences, then notes."""
    heads = " / ".join(LABELS[metric] for metric in shown_metrics(comparison))
    rows = []
    for row, cells in zip(comparison.rows, score_grid(comparison), strict=True):
        texts = [" / ".join(f"**{n.text}**" if n.best else n.text for n in numbers) for numbers in cells]
        rows.append([markdown_escaped(row.label), *texts])
    names = [markdown_escaped(name) for name in comparison.names]
    parts = [f"## {heads}", piped(["method", *names], rows)]
    for table in interval_tables(comparison):
        parts += [
            f"## {markdown_escaped(table.title)}",
            piped(table.columns, [list(map(markdown_escaped, row)) for row in table.rows]),
        ]
    notes = (f"- {markdown_escaped(note)}" for note in _notes(comparison))
    return "\n\n".join([*parts, "\n".join(notes)]) + "\n"


def _notes(comparison: Comparison) -> list[str]:
    marked = any(number.best for cells in score_grid(comparison) for numbers in cells for number in numbers)
    return [*([BEST] if marked else []), *comparison.notes]


def csv_text(comparison: Comparison) -> str:
    """A row per method and set, with every number and the ends of its interval; rates and levels are shares."""
    text = io.StringIO()
    rows = [record for row in comparison.rows for record in _records(comparison, row)]
    writer = csv.DictWriter(
        text, list(dict.fromkeys(name for record in rows for name in record)), restval="", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows({name: inert(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _records(comparison: Comparison, row: Row) -> Iterator[dict[str, object]]:
    conventions, settings = comparison.conventions, comparison.settings
    means = len(comparison.names) - len(comparison.columns)
    for name, column, cell in zip(comparison.names, [*comparison.columns, *[None] * means], row.cells, strict=True):
        if cell is None:
            continue
        dataset, split, recipe = map(printable, column.key if column else ("", "", ""))
        yield {
            "kind": row.kind,
            "label": row.label,
            "method": row.method,
            "runs": len(row.sha256) or "",
            "results": "; ".join(row.places),
            "sha256": "; ".join(map(printable, row.sha256)),
            "step": "; ".join(f"{of.step}" if of else "" for of in row.trained),
            "set": name,
            "dataset": dataset,
            "split": split,
            "recipe": recipe if row.ours else "",
            "images": cell.images,
            "inference": cell.inference,
            "align": printable(conventions.align),
            "collapse_db": conventions.collapse_db,
            "resamples": settings.resamples,
            "seed": settings.seed,
            "baseline": comparison.baseline,
            **_numbers("", cell.scores),
            **{f"{metric}_runs_sd": _rounded(cell.spread.get(metric)) for metric in METRICS},
            **_numbers("_minus_baseline", cell.over_baseline),
            **_numbers("_minus_published", cell.over_published),
        }


def _numbers(ending: str, estimates: Mapping[str, Estimate]) -> dict[str, object]:
    numbers: dict[str, object] = {}
    for metric in METRICS:
        found = estimates.get(metric)
        values = (found.value, found.low, found.high) if found is not None else (None, None, None)
        for end, value in zip(("", "_low", "_high"), values, strict=True):
            numbers[f"{metric}{ending}{end}"] = _rounded(value)
    return numbers


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 6) + 0.0


def latex_text(comparison: Comparison) -> str:
    """The same tables as in Markdown, in the style of booktabs, with the sets of Table 1 above their metrics."""
    metrics = shown_metrics(comparison)
    groups = [rf"\multicolumn{{{len(metrics)}}}{{c}}{{{latex_escaped(name)}}}" for name in comparison.names]
    starts = [2 + place * len(metrics) for place in range(len(groups))]
    rules = " ".join(rf"\cmidrule(lr){{{start}-{start + len(metrics) - 1}}}" for start in starts)
    heads = [latex_escaped(LABELS[metric]) for metric in metrics] * len(groups)
    body = [_line(["", *groups]), rules, _line(["Method", *heads]), r"\midrule"]
    kind = comparison.rows[0].kind
    for row, cells in zip(comparison.rows, score_grid(comparison), strict=True):
        if kind == "published" != row.kind:
            body.append(r"\midrule")
        kind = row.kind
        numbers = [number for cell in cells for number in cell]
        texts = [rf"\textbf{{{latex_escaped(n.text)}}}" if n.best else latex_escaped(n.text) for n in numbers]
        body.append(_line([latex_escaped(row.label), *texts]))
    notes = " ".join(map(latex_escaped, _notes(comparison)))
    below = rf"\par\smallskip\begin{{minipage}}{{\textwidth}}\footnotesize {notes}\end{{minipage}}"
    scores = _environment("Scores", "l" + "c" * len(heads), body, below)
    return "\n".join([r"% \usepackage{booktabs, adjustbox}", scores, *map(_latex_table, interval_tables(comparison))])


def _latex_table(table: Table) -> str:
    rows = [_line([latex_escaped(cell) for cell in row]) for row in table.rows]
    body = [_line([latex_escaped(column) for column in table.columns]), r"\midrule", *rows]
    return _environment(table.title, "ll" + "r" * (len(table.columns) - 2), body, "")


def _environment(caption: str, columns: str, body: Sequence[str], below: str) -> str:
    lines = [
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{latex_escaped(caption)}}}",
        r"\begin{adjustbox}{max width=\textwidth}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{adjustbox}",
        *([below] if below else []),
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    # After the end of a line LaTeX takes a star or a bracket for an argument of it.
    guard = "{}" if cells[0].startswith(("[", "*")) else ""
    return guard + " & ".join(cells) + r" \\"


def latex_escaped(text: str) -> str:
    """Text that LaTeX sets as it is; the sign of numbers as a minus, a lone dash as an en dash."""
    if text == "-":
        return "--"
    parts = re.split(r"(?<![\w.-])-(?=\d)", text.replace("--", "-\0-"))
    return "$-$".join("".join(_TEX.get(character, character) for character in part) for part in parts)


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "markdown": markdown_text,
    "csv": csv_text,
    "latex": latex_text,
}
FILES = {"markdown": "table.md", "csv": "table.csv", "latex": "table.tex"}
