"""Scores as they come, a line each, so that an evaluation that is killed goes on where it was."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samdeblur.evaluation.results import Score, as_row, score_of
from samdeblur.storage.names import file_name


@dataclass(frozen=True)
class Entry:
    """A line: a score, the seconds it took, and what it is of.

    Attributes:
        stamp, content: of the image, as an `ImageSet` gives them.
        saved: stamp of the file that the result was written to; empty where it was not.
        source: file that it was made of, where there is one.
    """

    score: Score
    seconds: float
    stamp: str = ""
    content: str = ""
    saved: str = ""
    source: str = ""


class Journal:
    """The scores of one set, in files of the processes that wrote them. Of an image the last line counts.

    Args:
        folder: of the evaluation.
        name: of the set.
        identity: what the scores depend on beside the images, as JSON values; files of other identities are not read,
            and written over.
        rank: number of this process.
    """

    def __init__(self, folder: Path, name: str, identity: Mapping[str, Any], rank: int = 0) -> None:
        self._identity = json.dumps(identity, sort_keys=True) + "\n"
        self._stem = folder / "journal" / file_name(name)
        self._mine = self._path(rank)
        self._pass = 0  # of this process: above those that were read, so that its lines come after them

    def read(self, holds: Callable[[Entry], bool] = lambda entry: True) -> dict[str, Entry]:
        """What all processes have scored so far and still holds, by key."""
        latest: dict[str, tuple[int, Entry]] = {}
        for path in sorted(self._stem.parent.glob(f"{glob.escape(self._stem.name)}.*.jsonl")):
            for number, entry in self._lines(path):
                if number >= latest.get(entry.score.key, (0, None))[0]:
                    latest[entry.score.key] = number, entry
                self._pass = max(self._pass, number + 1)
        return {key: entry for key, (_, entry) in latest.items() if holds(entry)}

    def add(self, entry: Entry) -> None:
        """One line more."""
        if not self._mine.exists() or self._head(self._mine) != self._identity:
            self._mine.parent.mkdir(parents=True, exist_ok=True)
            self._mine.write_text(self._identity, encoding="utf-8", newline="\n")
        row = as_row(entry.score) | {
            "seconds": round(entry.seconds, 4),
            "stamp": entry.stamp,
            "content": entry.content,
            "saved": entry.saved,
            "source": entry.source,
            "pass": self._pass,
        }
        with open(self._mine, "r+b") as file:
            _drop_torn_line(file)
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")

    def _path(self, rank: int) -> Path:
        return self._stem.with_name(f"{self._stem.name}.{rank}.jsonl")

    def _head(self, path: Path) -> str:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline()

    def _lines(self, path: Path) -> Iterator[tuple[int, Entry]]:
        """The pass and the entry of each whole line."""
        if self._head(path) != self._identity:
            return
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in lines[1:-1]:  # the last one is empty, or torn by a kill
            try:
                row = json.loads(line)
                rest = [row.pop(name) for name in ("seconds", "stamp", "content", "saved", "source")]
                yield row.pop("pass"), Entry(score_of(row), *rest)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # scored again


def _drop_torn_line(file: Any) -> None:
    """Cut off what a kill left of a line, and stand at the end."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 65536))
    tail = file.read()
    file.truncate(end - (len(tail) - tail.rfind(b"\n") - 1))
    file.seek(0, os.SEEK_END)
