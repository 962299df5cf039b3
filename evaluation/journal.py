"""Scores as they come, a line each, so that an evaluation that is killed goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from samdeblur.evaluation.results import Score, as_row, score_of


class Journal:
    """The scores of one set, in files of the processes that wrote them.

    Args:
        folder: of the evaluation.
        name: of the set.
        identity: what the scores depend on, as JSON values; files of other identities are not read, and written over.
        rank: number of this process.
    """

    def __init__(self, folder: Path, name: str, identity: Mapping[str, Any], rank: int = 0) -> None:
        self._identity = json.dumps(identity, sort_keys=True) + "\n"
        self._stem = folder / "journal" / quote(name, safe="")
        self._mine = self._path(rank)

    def read(self) -> tuple[dict[str, Score], float]:
        """What all processes have scored so far, by key, and the seconds it took them."""
        scores: dict[str, Score] = {}
        seconds = 0.0
        for path in sorted(self._stem.parent.glob(f"{self._stem.name}.*.jsonl")):
            for row in self._rows(path):
                seconds += row.pop("seconds")
                scores[row["key"]] = score_of(row)
        return scores, seconds

    def add(self, score: Score, seconds: float) -> None:
        """One line more."""
        if not self._mine.exists() or self._head(self._mine) != self._identity:
            self._mine.parent.mkdir(parents=True, exist_ok=True)
            self._mine.write_text(self._identity)
        with open(self._mine, "r+b") as file:
            _drop_torn_line(file)
            file.write(json.dumps(as_row(score) | {"seconds": round(seconds, 4)}).encode() + b"\n")

    def _path(self, rank: int) -> Path:
        return self._stem.with_name(f"{self._stem.name}.{rank}.jsonl")

    def _head(self, path: Path) -> str:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline()

    def _rows(self, path: Path) -> list[dict[str, Any]]:
        if self._head(path) != self._identity:
            return []
        rows = []
        for line in path.read_text(errors="replace").split("\n")[1:-1]:  # the last one is empty, or torn by a kill
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue  # scored again
        return rows


def _drop_torn_line(file: Any) -> None:
    """Cut off what a kill left of a line, and stand at the end."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 65536))
    tail = file.read()
    file.truncate(end - (len(tail) - tail.rfind(b"\n") - 1))
    file.seek(0, os.SEEK_END)
