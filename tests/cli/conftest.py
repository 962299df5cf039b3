"""Running the commands in this process, on small folders of pairs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from samdeblur.cli import eval as eval_command
from samdeblur.cli import prep, train

PROGRAMS = {"prep": prep.main, "train": train.main, "eval": eval_command.main}
TINY = [
    *("--config", "tiny", "--set", "width=4", "--set", "enc_blk_nums=[1]", "--set", "dec_blk_nums=[1]"),
    *("--set", "middle_blk_num=1", "--set", "crop_size=32", "--set", "batch_size=2", "--steps", "2"),
]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error; fails when there is more than that on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        return lines[0]


@pytest.fixture
def samdeblur(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """samdeblur("prep", "run", ...) -> Result, as the console script would end."""

    def call(program: str, *arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", [f"samdeblur-{program}", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            PROGRAMS[program]()
        out, err = capfd.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture
def prep_run(samdeblur: Callable[..., Result]) -> Callable[..., Result]:
    """prep_run(source, store, ...) -> Result of `samdeblur-prep run` in this process; superpixels without --sam."""

    def call(source: object, store: object, *options: object) -> Result:
        fixed = ("--split", "test", "--workers", 1, "--block-size", 2)
        if "--sam" not in options and "--segmenter" not in options:
            fixed += ("--segmenter", "superpixels")
        return samdeblur("prep", "run", source, store, *fixed, *options)

    return call


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Five pairs of 48x64 pictures with a few shapes, in blur/ and sharp/."""
    for number in range(5):
        rng = np.random.default_rng(number)
        sharp = np.full((48, 64, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(4):
            centre, colour = rng.integers(8, 40, 2).tolist(), rng.integers(0, 256, 3).tolist()
            cv2.circle(sharp, centre, int(rng.integers(5, 14)), colour, -1)
        for folder, picture in (("sharp", sharp), ("blur", cv2.blur(sharp, (5, 3)))):
            (tmp_path / "pairs" / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "pairs" / folder / f"{number:03d}.png"), picture)
    return tmp_path / "pairs"


@pytest.fixture
def store(pairs: Path, tmp_path: Path, prep_run: Callable[..., Result]) -> Path:
    """The pairs, prepared with superpixels."""
    path = tmp_path / "prepared.zarr"
    assert prep_run(pairs, path).code == 0
    return path


@pytest.fixture
def tiny() -> list[str]:
    """Options of samdeblur-train for two steps of a very small network."""
    return list(TINY)
