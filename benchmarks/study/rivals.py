"""Priors beside the paper's: tables over no prior, over MAP with the same masks, and with other masks at test time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from axes import cell_of, crossed_gains, crossed_table
from intervals import holm
from plan import PRIORS, Size
from summary import BASELINE, Found, Row, markdown, summarise

PAPER = "map"


def write_priors(size: Size, out: Path, found: Found, crossed: Found) -> str:
    """priors.json and priors.md; gives the latter."""
    name = size.families[0]
    over_none = {row.variant: row for row in summarise(found) if row.images == name and row.over}
    over_paper = {row.variant: row for row in _over_paper(size, found, name)}
    gains = crossed_gains(found[BASELINE][name], crossed)
    parts = [
        f"{len(found[BASELINE][name].seeds)} seeds of `{BASELINE}`",
        "**Trained and tested with the same kind of masks (columns): dB over no prior**",
        _table(size, over_none),
        f"**The same over `{PAPER}` with these masks**",
        _table(size, over_paper),
        "**Trained with one kind of masks (rows), tested with another: dB over no prior**",
        crossed_table(gains),
    ]
    kept = {
        "seeds": {variant: sets[name].psnr.shape[0] for variant, sets in found.items()},
        "over none": {variant: _plain(row) for variant, row in over_none.items()},
        f"over {PAPER}": {variant: _plain(row) for variant, row in over_paper.items()},
        "tested with others": {
            variant: {masks: gain._asdict() for masks, gain in of.items()} for variant, of in gains.items()
        },
    }
    (out / "priors.json").write_text(json.dumps(kept, indent=1) + "\n")
    text = "\n\n".join(parts)
    (out / "priors.md").write_text(text + "\n")
    return text


def _over_paper(size: Size, found: Found, name: str) -> list[Row]:
    """Every row over the paper's with the same masks, corrected for all of them together."""
    rows = []
    for masks in size.masks:
        alike = {variant: sets for variant, sets in found.items() if variant.endswith(f", {masks}")}
        rows += [row for row in summarise(alike, f"{PAPER}, {masks}") if row.images == name and row.over]
    corrected = holm(np.array([row.over["psnr"].p for row in rows])) if rows else []
    return [replace(row, p=float(p)) for row, p in zip(rows, corrected, strict=True)]


def _table(size: Size, rows: Mapping[str, Row]) -> str:
    body = []
    for prior in PRIORS:
        row = [rows.get(f"{prior}, {masks}") for masks in size.masks]
        if any(row):
            body.append([prior, *(cell_of(one) for one in row)])
    return markdown(["", *size.masks], body)


def _plain(row: Row) -> dict[str, float]:
    return {**row.over["psnr"]._asdict(), "corrected p": row.p}
