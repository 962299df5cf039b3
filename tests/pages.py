"""The blocks of code in README and docs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Block:
    """A fenced block: its language ("" for none), its first line, and the name of the file it is ("" for none)."""

    language: str
    line: int
    text: str
    file: str


def every_block(page: Path) -> Iterator[Block]:
    """In their order. A block is a file where its name stands alone in the line before, or in its first comment."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        before = text[: found.start()]
        named = re.search(r"^`([\w.]+)`\n*\Z", before, re.MULTILINE) or re.match(r"# ([\w-]+\.yaml)\b", found[2])
        yield Block(found[1], text[: found.start(2)].count("\n") + 1, found[2], named[1] if named else "")


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """Number of the first line, and text, of each block of code in a language."""
    for block in every_block(page):
        if block.language == language:
            yield block.line, block.text
