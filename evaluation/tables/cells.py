"""A table of text, and how the metrics in it are called and rounded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LABELS = {"psnr": "PSNR", "ssim_wang": "SSIM (wang)", "ssim_nafnet": "SSIM (nafnet)", "mcr": "MCR"}
DIGITS = {"psnr": 2}  # after the point; 4 of others
BLURRED = "_blurred"  # ends the names of metrics of the blurred image


@dataclass(frozen=True)
class Table:
    """A table of text; the first column is a heading. `best` marks cells (row, column) to be set in bold."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()


def metric_names(names: Iterable[str]) -> list[str]:
    """Names of metrics without those of the blurred image, each once."""
    return list(dict.fromkeys(name for name in names if not name.endswith(BLURRED)))


def metric_label(name: str) -> str:
    return LABELS.get(name, name)


def metric_digits(name: str) -> int:
    return DIGITS.get(name, 4)
