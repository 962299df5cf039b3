"""README and docs: every command is understood, the reference is complete, recipes work. test_pages.py runs them."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
import torch
from pages import blocks
from places import ROOT
from programs import samdeblur

from samdeblur.cli import eval as eval_command
from samdeblur.cli import prep, train
from samdeblur.cli.commands import runs
from samdeblur.models import AtomBatch
from samdeblur.pipeline.sources import layouts
from samdeblur.storage import AtomMap, open_store

__all__ = ["samdeblur"]

GROUPS = {"prep": prep.cli, "train": train.cli, "eval": eval_command.cli}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Command:
    """A line of a page, as its program and the words behind it."""

    page: str
    line: int
    program: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.program} {' '.join(self.words)}"


def commands(page: Path) -> Iterator[Command]:
    for start, text in blocks(page, "sh"):
        whole = re.sub(r"\\\n\s*", lambda joint: " " + "\0" * joint[0].count("\n"), text)
        number = start
        for line in whole.splitlines():
            if command := _command(page.name, number, line.replace("\0", "")):
                yield command
            number += 1 + line.count("\0")


def _command(page: str, number: int, line: str) -> Command | None:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return None
    words = words[: next((i for i, word in enumerate(words) if word in (">", "|", "&", "&&", ";", ">>", "2>")), None)]
    for i, word in enumerate(words):
        program = re.fullmatch(r"samdeblur-(prep|train|eval)|samdeblur\.cli\.(prep|train|eval)", word)
        if program and not any(other == "..." or other.startswith("$") for other in words[i:]):
            return Command(page, number, program[1] or program[2], tuple(words[i + 1 :]))
    return None


EVERY = [command for page in PAGES for command in commands(page)]


def test_pages_are_full_of_commands():
    assert len(EVERY) > 60
    assert {command.program for command in EVERY} == {"prep", "train", "eval"}
    assert {"README.md", "restore.md", "evaluation.md", "tables.md", "training.md", "stores.md"} <= {
        command.page for command in EVERY
    }


def refusal(command: Command) -> str:
    """What the program has against a command before it does anything; empty for nothing, and for --help."""
    group, words = GROUPS[command.program], list(command.words)
    if command.program == "train" and words[:1] in (["status"], ["plot"]):
        group = getattr(runs, words.pop(0))
    try:
        if not isinstance(group, click.Group):
            group.make_context(command.program, words)
            return ""
        context = group.make_context(command.program, words)
        name, found, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        found.make_context(name, rest, parent=context)
    except click.UsageError as error:
        return error.format_message()
    except click.exceptions.Exit:
        return ""
    return ""


@pytest.mark.parametrize("command", EVERY, ids=str)
def test_every_command_is_understood(command, tmp_path, monkeypatch):
    """Its options are there, and take the values that are given; files that are not there are another matter."""
    monkeypatch.chdir(tmp_path)
    said = refusal(command)
    assert not said or "does not exist" in said, said


def test_a_command_that_is_not_understood_would_be_found():
    for words in (
        ("run", "a", "b", "--no-such", "1"),
        ("no-such",),
        ("table",),
        ("run", "a", "b", "--out", "o", "--tlc", "x"),
    ):
        assert refusal(Command("page.md", 1, "eval", words)), words


def literals() -> str:
    """All strings of the package, adjacent ones joined, fields of f-strings as they are written."""
    text = "".join(
        path.read_text(encoding="utf-8")
        for room in ("storage", "models", "pipeline", "evaluation", "train", "cli")
        for path in sorted((ROOT / room).rglob("*.py"))
    )
    return re.sub(r'"\s*\n\s*f?"', "", text)


def test_every_line_that_is_explained_is_one_that_is_said():
    said = literals()
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 20
    for row in rows:
        for part in filter(None, (part.strip() for part in row.split("..."))):
            assert part in said, part


def raised() -> dict[str, list[str]]:
    """Class of errors of the package, or UsageError -> its messages, with " ... " for what differs."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for room in ("storage", "models", "pipeline", "evaluation", "train", "cli")
        for path in sorted((ROOT / room).rglob("*.py"))
    ]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    own = {node.name for node in nodes if isinstance(node, ast.ClassDef)} | {"UsageError"}
    found: dict[str, list[str]] = {}
    for node in nodes:
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[message, *_])):
                if name in own and (text := _words(message)):
                    found.setdefault(name, []).append(text)
    return found


def _words(message: ast.expr) -> str:
    match message:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_words(part) or " ... " for part in parts)
    return ""


# No errors, or their words are put together elsewhere.
INSIDE = {"Unreachable", "_BrokenConnection", "Stopped"}


def test_every_kind_of_error_is_explained():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = [[part.strip() for part in row.split("...")] for row in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)]
    kinds = raised()
    assert len(kinds) > 25
    for kind, messages in kinds.items():
        explained = any(all(part in message for part in row) for row in rows for message in messages)
        assert explained or kind in INSIDE, (kind, messages)


def test_the_reference_names_what_the_faces_offer():
    offered = set()
    for room in ("storage", "models", "pipeline", "evaluation", "train"):
        stub = (ROOT / room / "__init__.pyi").read_text(encoding="utf-8")
        offered |= {
            f"samdeblur.{room}.{module}.{name}" for module, name in re.findall(r"from \.(\S*) import (\w+) as", stub)
        }
    assert set(re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE)) == offered


def test_the_site_builds_without_a_warning(tmp_path):
    """Broken links and anchors, pages without a place and docstrings that cannot be read end it."""
    for name in ("mkdocs.yml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "typings").symlink_to(ROOT / "typings")
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )
    said = built.stdout + built.stderr
    assert built.returncode == 0, said
    assert "griffe:" not in said, said
    assert "open_store" in (tmp_path / "build/site/api.html").read_text(encoding="utf-8")


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def recipe(number: int) -> dict[str, object]:
    """The names that a block of Python of the page for contributors makes."""
    names: dict[str, object] = {}
    exec(
        compile([text for _, text in blocks(ROOT / "docs/contributing.md", "python")][number], "recipe", "exec"), names
    )
    return names


def test_the_recipe_of_a_layout_makes_a_store(samdeblur, tmp_path, monkeypatch):
    """Of links, hidden files and missing ones it is as good as the others: tests/pipeline/sources/test_layouts.py."""
    monkeypatch.setitem(layouts.LAYOUTS, "scenes", None)  # which takes the recipe's away afterwards
    recipe(0)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    for scene in ("a", "b"):
        (tmp_path / "set/test" / scene).mkdir(parents=True)
        for name in ("input", "truth"):
            cv2.imwrite(str(tmp_path / "set/test" / scene / f"{name}.png"), pixels)
    options = ["--split", "test", "--segmenter", "superpixels", "--workers", 1]
    done = samdeblur("prep", "run", tmp_path / "set", tmp_path / "x.zarr", *options)
    assert done.code == 0, done.err
    assert open_store(tmp_path / "x.zarr").ready_keys == ["a", "b"]


def test_the_recipe_of_a_prior_feeds_a_network():
    names = recipe(1)
    masks = np.zeros((1, 24, 32), bool)
    masks[0, 8:16, 8:20] = True
    batch = AtomBatch.collate([AtomMap.from_masks(masks)])
    features = names["BorderPrior"]()(torch.zeros(1, 3, 24, 32), batch)
    expected = (masks[0] != np.roll(masks[0], -1, 1)) | (masks[0] != np.roll(masks[0], -1, 0))
    assert np.array_equal(features[0, 0].numpy() > 0, expected)
    assert names["network"](torch.rand(1, 3, 24, 32), batch).shape == (1, 3, 24, 32)
