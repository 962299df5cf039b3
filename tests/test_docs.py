"""What README and docs tell people to type: every command is understood, and those of the README are run."""

from __future__ import annotations

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
from samdeblur.models import AtomBatch, NAFNet
from samdeblur.pipeline.sources import layouts
from samdeblur.storage import AtomMap, open_store

__all__ = ["samdeblur"]

GROUPS = {"prep": prep.cli, "train": train.cli, "eval": eval_command.cli}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages whose commands are run here, in their order, and the tests that run the like of those on the others.
RUN = {"README", "tutorial", "restore", "evaluation", "tables"}
ELSEWHERE = {
    "batch-jobs": "tests/cli/test_run.py",
    "checkpoints": "tests/models/checkpoints/test_loading.py",
    "clusters": "tests/pipeline/job/test_recipes.py",
    "datasets": "tests/pipeline/sources/test_layouts.py",
    "families": "tests/pipeline/sources/test_worlds.py",
    "guard": "tests/cli/test_inference.py",
    "inference": "tests/cli/test_inference.py",
    "masks": "tests/cli/test_run.py",
    "networks": "tests/train/test_networks.py",
    "segmenters": "tests/cli/test_kill.py",
    "sharing": "tests/cli/test_stores.py",
    "stores": "tests/cli/test_stores.py",
    "table1": "tests/cli/test_weights.py",
    "training": "tests/cli/test_train.py",
    "which-masks": "tests/cli/test_quality.py",
    "worlds": "tests/pipeline/sources/test_worlds.py",
}
# The same of the blocks of Python.
SNIPPETS_RUN = {"python", "contributing"}
SNIPPETS_ELSEWHERE = {
    "batch-jobs": "tests/pipeline/job/test_cluster.py",
    "checkpoints": "tests/models/checkpoints/test_loading.py",
    "guard": "tests/evaluation/test_guard.py",
    "inference": "tests/models/inference/test_tiles.py",
    "networks": "tests/models/priors/test_third_party.py",
    "segmenters": "tests/cli/test_kill.py",
    "sharing": "tests/storage/access/test_readers.py",
    "tables": "tests/evaluation/tables/test_comparison.py",
}
# Put behind commands of the README, which are meant for machines with a GPU and for days.
SMALL = {
    "prep run": ["--workers", "1", "--points-per-side", "4"],
    "train": [
        *(
            "--steps",
            "2",
            "--batch-size",
            "2",
            "--set",
            "crop_size=32",
            "--set",
            "width=4",
            "--set",
            "middle_blk_num=1",
        ),
        *("--set", "enc_blk_nums=[1]", "--set", "dec_blk_nums=[1]", "--set", "val_share=0.5", "--device", "cpu"),
    ],
    "eval run": ["--tlc", "off"],
}


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


def test_every_page_with_commands_or_snippets_has_a_test_that_runs_them_or_their_like():
    assert {command.page.removesuffix(".md") for command in EVERY} == RUN | ELSEWHERE.keys()
    pages = {page.stem for page in PAGES if any(blocks(page, "python"))}
    assert pages == SNIPPETS_RUN | SNIPPETS_ELSEWHERE.keys()
    for test in (*ELSEWHERE.values(), *SNIPPETS_ELSEWHERE.values()):
        assert (ROOT / test).is_file(), test


def test_a_command_that_is_not_understood_would_be_found():
    for words in (
        ("run", "a", "b", "--no-such", "1"),
        ("no-such",),
        ("table",),
        ("run", "a", "b", "--out", "o", "--tlc", "x"),
    ):
        assert refusal(Command("page.md", 1, "eval", words)), words


@pytest.fixture
def place(tmp_path, monkeypatch, random_sam):
    """A folder with small things under the names of the README."""
    monkeypatch.chdir(tmp_path)
    for number, split in enumerate(("train", "test")):
        for frame in range(2):
            patches = np.random.default_rng(10 * number + frame).integers(0, 256, (4, 5, 3), np.uint8)
            sharp = cv2.resize(patches, (72, 64), interpolation=cv2.INTER_NEAREST)
            for side, picture in (("sharp", sharp), ("blur", cv2.blur(sharp, (5, 3)))):
                folder = Path(f"GOPRO_Large/{split}/GOPR0001_0{number}_00/{side}")
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f"{frame:06d}.png"), picture)
    torch.manual_seed(0)
    torch.save(NAFNet(4, [1], 1, [1]).state_dict(), "NAFNet-GoPro-width32.pth")
    torch.save(random_sam().state_dict(), "sam_vit_h_4b8939.pth")
    shutil.copytree("GOPRO_Large/test/GOPR0001_01_00/blur", "holiday")
    shutil.copy("holiday/000000.png", "photo.png")
    cv2.imwrite("photo.jpg", cv2.imread("photo.png"))
    return tmp_path


def run_page(samdeblur, place: Path, name: str) -> list[str]:
    """Run the commands of a page that need neither a network nor several processes; which they were."""
    ran = []
    for command in commands(ROOT / name):
        words = []
        for word in command.words:
            words += sorted(str(found) for found in place.glob(word)) if "*" in word else [word]
        if any(word.startswith(("http://", "https://", "s3://")) or word == "sam_vit_h" for word in words):
            continue
        kind = "train" if command.program == "train" else f"{command.program} {words[0]}"
        if words[0] == "doctor":  # of the machine that tests run on
            continue
        small = [] if "--segmenter" in words else SMALL.get(kind, [])
        done = samdeblur(command.program, *words, *small)
        assert done.code == 0, (str(command), done.err)
        ran.append(kind)
    return ran


def test_the_commands_of_the_first_hour_are_run_in_their_order(samdeblur, place):
    assert len(run_page(samdeblur, place, "docs/tutorial.md")) >= 13
    for path in (
        "sharper/compare.html",
        "masks.html",
        "comparison/report.html",
        "masks.zarr.zip",
        "whole.zarr/zarr.json",
    ):
        assert (place / "first" / path).is_file(), path


def test_the_commands_of_the_readme_and_of_evaluation_are_run_in_their_order(samdeblur, place):
    ran = run_page(samdeblur, place, "README.md")
    assert len(ran) >= 8
    assert {"prep run", "train", "eval run", "eval table", "eval restore", "prep export"} <= set(ran)
    for path in ("comparison/report.html", "restored/000001.png", "run/best.safetensors"):
        assert (place / path).is_file(), path
    for copy in ("gopro-test.zarr", "reds-val.zarr"):
        shutil.copytree(place / "test.zarr", place / copy)
    shutil.copytree(place / "runs/map-dropout", place / "runs/map")
    for page, fewest in (("docs/restore.md", 2), ("docs/evaluation.md", 3), ("docs/tables.md", 3)):
        shutil.rmtree(place / "restored", ignore_errors=True)
        assert len(run_page(samdeblur, place, page)) >= fewest, page


def test_the_snippets_of_the_page_on_python_are_one_script(samdeblur, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepared = samdeblur(
        "prep", "run", "worlds:1:256", "train.zarr", "--split", "train", "--segmenter", "true-masks", "--workers", 1
    )
    assert prepared.code == 0, prepared.err
    script = "\n".join(text for _, text in blocks(ROOT / "docs/python.md", "python"))
    assert script.count("import") >= 5
    names: dict[str, object] = {}
    exec(compile(script, "python.md", "exec"), names)
    assert names["atoms"].shape == (256, 256)
    assert names["found"].n_masks == len(names["records"]["predicted_iou"])


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
