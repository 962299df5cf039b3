"""Small folders of image pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


@pytest.fixture(scope="session")
def picture() -> Callable[[int, int, int], Picture]:
    """(seed, height, width) -> (H, W, 3) uint8: twelve patches of random colours."""
    return _picture


def _picture(seed: int, height: int, width: int) -> Picture:
    patches = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return cv2.resize(patches, (width, height), interpolation=cv2.INTER_NEAREST)


@pytest.fixture(scope="session")
def save() -> Callable[[Path, Picture], Path]:
    """(path, picture) -> path: an image file of the kind its suffix says, in folders made for it."""
    return _save


def _save(path: Path, picture: Picture) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture[..., ::-1] if picture.ndim == 3 else picture)
    return path


@pytest.fixture(scope="session")
def write_pairs() -> Callable[..., Path]:
    """(folder, {name: (height, width)}, blurred="blur", sharp="sharp", suffix=".png") -> folder, with those pairs."""
    return _write_pairs


def _write_pairs(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    blurred: str = "blur",
    sharp: str = "sharp",
    suffix: str = ".png",
) -> Path:
    for seed, (name, shape) in enumerate(shapes.items()):
        picture = _picture(seed, *shape)
        _save(folder / sharp / f"{name}{suffix}", picture)
        _save(folder / blurred / f"{name}{suffix}", cv2.blur(picture, (5, 5)))
    return folder
