"""Running the commands in this process, on small folders of pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from programs import Result, samdeblur

from samdeblur.models import NAFNet

__all__ = ["samdeblur"]

TINY = [
    *("--config", "tiny", "--set", "width=4", "--set", "enc_blk_nums=[1]", "--set", "dec_blk_nums=[1]"),
    *("--set", "middle_blk_num=1", "--set", "crop_size=32", "--set", "batch_size=2", "--steps", "2"),
]


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
    """Five pairs of 48x64 images with a few shapes, in blur/ and sharp/."""
    for number in range(5):
        rng = np.random.default_rng(number)
        sharp = np.full((48, 64, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(4):
            centre, colour = rng.integers(8, 40, 2).tolist(), rng.integers(0, 256, 3).tolist()
            cv2.circle(sharp, centre, int(rng.integers(5, 14)), colour, -1)
        for folder, image in (("sharp", sharp), ("blur", cv2.blur(sharp, (5, 3)))):
            (tmp_path / "pairs" / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "pairs" / folder / f"{number:03d}.png"), image)
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


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Weights of a small NAFNet without a prior."""
    torch.manual_seed(0)
    torch.save(NAFNet(4, [1], 1, [1]).state_dict(), tmp_path / "nafnet.pth")
    return tmp_path / "nafnet.pth"
