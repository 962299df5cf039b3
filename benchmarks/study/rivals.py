"""Priors beside the paper's: tables over no prior, over MAP with the same masks, and with other masks at test time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from axes import cell_of, crossed_gains, crossed_table
from intervals import holm
from plan import ALIKE, MORE_PHOTOGRAPHS, PAIRS, PREDEBLURRED, PRIORS, Size
from summary import BASELINE, Found, Row, markdown, summarise

PAPER = "map"


def write_priors(size: Size, out: Path, found: Found, crossed: Found) -> str:
    """priors.json and priors.md; gives the latter."""
    name = size.families[0]
    over_none = {row.variant: row for row in summarise(found) if row.images == name and row.over}
    over_paper = {row.variant: row for row in _over_paper(size, found, name)}
    elsewhere = [row for row in summarise(found) if row.images in (MORE_PHOTOGRAPHS, PAIRS) and row.over]
    alike = {row.variant: row for row in _alike(found, name)}
    gains = crossed_gains(found[BASELINE][name], crossed)
    parts = [
        f"{len(found[BASELINE][name].seeds)} seeds of `{BASELINE}`",
        "**Trained and tested with the same kind of masks (columns): dB over no prior**",
        _table(size, over_none),
        f"**The same over `{PAPER}` with these masks**",
        _table(size, over_paper),
        "**Training and test images treated alike: neither pre-deblurred, or both, over those of training alone**",
        markdown(["", "dB"], [[variant, cell_of(row)] for variant, row in alike.items()]),
        "**On photographs, and real pairs: dB over no prior**",
        _elsewhere(elsewhere),
        "**Trained with one kind of masks (rows), tested with another: dB over no prior**",
        crossed_table(gains),
    ]
    kept = {
        "seeds": {variant: sets[name].psnr.shape[0] for variant, sets in found.items()},
        "over none": {variant: _plain(row) for variant, row in over_none.items()},
        f"over {PAPER}": {variant: _plain(row) for variant, row in over_paper.items()},
        "treated alike over not": {variant: _plain(row) for variant, row in alike.items()},
        "elsewhere": {
            name: {row.variant: _plain(row) for row in elsewhere if row.images == name}
            for name in dict.fromkeys(row.images for row in elsewhere)
        },
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
        same = {variant: sets for variant, sets in found.items() if variant.endswith(f", {masks}")}
        rows += [row for row in summarise(same, f"{PAPER}, {masks}") if row.images == name and row.over]
    return _corrected(rows)


def _alike(found: Found, name: str) -> list[Row]:
    """Every row whose training masks were made as those of the test, over the same where they were not."""
    rows = []
    for variant, sets in found.items():
        other = variant.removesuffix(ALIKE).removesuffix(PREDEBLURRED)
        if other != variant and other in found:
            pair = {variant: sets, other: found[other]}
            rows += [row for row in summarise(pair, other) if row.images == name and row.over]
    return _corrected(rows)


def _corrected(rows: Sequence[Row]) -> list[Row]:
    corrected = holm(np.array([row.over["psnr"].p for row in rows])) if rows else []
    return [replace(row, p=float(p)) for row, p in zip(rows, corrected, strict=True)]


def _table(size: Size, rows: Mapping[str, Row]) -> str:
    body = []
    for prior in PRIORS:
        row = [rows.get(f"{prior}, {masks}") for masks in size.masks]
        if any(row):
            body.append([prior, *(cell_of(one) for one in row)])
    return markdown(["", *size.masks], body)


def _elsewhere(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(row.images for row in rows))
    by_place = {(row.variant, row.images): row for row in rows}
    variants = dict.fromkeys(row.variant for row in rows)
    body = [[variant, *(cell_of(by_place.get((variant, name))) for name in names)] for variant in variants]
    return markdown(["", *names], body)


def _plain(row: Row) -> dict[str, float]:
    return {**row.over["psnr"]._asdict(), "corrected p": row.p}
