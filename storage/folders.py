"""Folders that a command writes: each carries a marker of what it is, and no command writes into another's."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from samdeblur.storage.files import PARTIAL, write_durably
from samdeblur.storage.listing import counts

MARKER = "samdeblur.json"
NAMED = 3  # files in a message

# What a folder may be, in words; and the files that give it away where the marker was lost on the way.
RUN, EVALUATION, TABLE, RESTORED, STORE = "run", "evaluation", "table", "restored", "store"
WORDS = {
    RUN: "a training run",
    EVALUATION: "an evaluation",
    TABLE: "a comparison of evaluations",
    RESTORED: "restored images",
    STORE: "a mask store",
}
_SIGNS = {
    RUN: ("config.yaml", "run.json"),
    EVALUATION: ("results.json", "results.csv"),
    TABLE: ("table.md", "table.csv", "table.tex"),
    STORE: ("zarr.json", "index"),
}
_LOGS = (".log", ".out", ".err")


class NotItsFolder(ValueError):
    """An output folder that holds something else."""


def kind_of(folder: Path) -> str | None:
    """What a folder is, a key of WORDS; None for any other."""
    try:
        marked = json.loads((folder / MARKER).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        marked = None
    if marked in WORDS:
        return str(marked)
    return next((kind for kind, names in _SIGNS.items() if all((folder / name).exists() for name in names)), None)


def check_claim(folder: Path, kind: str) -> None:
    """Raise NotItsFolder, or the OSError of a path that cannot be looked at, unless `claim` may have the folder."""
    there = kind_of(folder)
    if there == kind:
        return
    other = "name a new folder, or an empty one"
    if there is not None:
        raise NotItsFolder(f"{folder}: holds {WORDS[there]}, so it cannot take {WORDS[kind]}; {other}")
    if folder.exists() and (found := _contents(folder)):
        named = ", ".join(found[:NAMED]) + (f" and {len(found) - NAMED:,} more" if len(found) > NAMED else "")
        raise NotItsFolder(f"{folder}: holds files that are not of {WORDS[kind]} ({named}); {other}")


def claim(folder: Path, kind: str) -> None:
    """Make a folder that is new, empty, or of this kind already, and mark it. Raises NotItsFolder."""
    check_claim(folder, kind)
    marker = folder / MARKER
    if not marker.exists():
        write_durably(marker, (json.dumps({"kind": kind, "what": WORDS[kind]}, indent=1) + "\n").encode())


def _contents(folder: Path) -> Sequence[str]:
    """Names of what matters in a folder: not what systems leave, not logs of the command that is about to begin."""
    with os.scandir(folder) as entries:
        return sorted(entry.name.encode(errors="replace").decode() for entry in entries if not _is_nothing(entry))


def _is_nothing(entry: os.DirEntry[str]) -> bool:
    if not counts(entry.name) or entry.name == MARKER + PARTIAL:
        return True
    return entry.is_file() and (entry.name.lower().endswith(_LOGS) or not entry.stat().st_size)
