"""Small stores with images, as fixtures for those conftest.py that import them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from samdeblur.storage import AtomMap, MaskStore, open_store
from samdeblur.storage.format.layout import DONE, PENDING, Header, pixel_digest, round_up
from samdeblur.storage.writing.commits import Committer, ImageContent, ImageOutcome, StagedBlock, stage_block
from samdeblur.storage.writing.creation import create_store

ImageArray = NDArray[np.uint8]
Images = Mapping[str, tuple[ImageArray, ImageArray, NDArray[np.bool_]]]


@pytest.fixture(scope="session")
def make_store() -> Callable[..., MaskStore]:
    """(path, {key: (blurred, sharp, masks)}, pending=(), recipe="a") -> store; those pending are not filled in."""
    return _make_store


def _make_store(path: Path, images: Images, pending: tuple[str, ...] = (), recipe: str = "a") -> MaskStore:
    shapes = np.array([blurred.shape[:2] for blurred, _, _ in images.values()], np.int32)
    extent = (round_up(int(shapes[:, 0].max())), round_up(int(shapes[:, 1].max())))
    header = Header("toy", "train", {"segmenter": recipe}, "pixels", len(images), extent, 64, 1, images=True)
    create_store(path, header, list(images), shapes)
    committer, staged = Committer(path), []
    for block, (key, (blurred, sharp, masks)) in enumerate(images.items()):
        atoms = AtomMap.from_masks(masks, blurred.shape[:2])
        content = ImageContent(atoms, {"area": atoms.mask_areas().astype(float)}, blurred, sharp)
        state = PENDING if key in pending else DONE
        outcome = ImageOutcome(state, pixel_digest(blurred), (atoms.n_masks, atoms.n_atoms, len(atoms.pairs)))
        folder = committer.staging(block)
        digests = stage_block(path, header, folder, block, [content])
        staged.append(StagedBlock(block, str(folder), (outcome,), digests))
    committer.commit(staged)
    committer.close()
    return open_store(path)


@pytest.fixture(scope="session")
def pair() -> Callable[[int, int, int], tuple[ImageArray, ImageArray, NDArray[np.bool_]]]:
    """(seed, height, width) -> blurred, sharp, masks: six patches of colour, each a mask, and one mask over four."""
    return _pair


def _pair(seed: int, height: int, width: int) -> tuple[ImageArray, ImageArray, NDArray[np.bool_]]:
    colours = np.random.default_rng(seed).integers(0, 256, (2, 3, 3), np.uint8)
    sharp = cv2.resize(colours, (width, height), interpolation=cv2.INTER_NEAREST)
    number = cv2.resize(np.arange(6, dtype=np.uint8).reshape(2, 3), (width, height), interpolation=cv2.INTER_NEAREST)
    masks = np.stack([*(number == n for n in range(6)), number < 4])
    return cv2.blur(sharp, (7, 3)), sharp, masks


@pytest.fixture(scope="session")
def store(tmp_path_factory, pair) -> MaskStore:
    """Four ready images. For reading only."""
    images = {f"s/{n}": pair(n, 30 + 3 * n, 40 - 2 * n) for n in range(4)}
    return _make_store(tmp_path_factory.mktemp("train") / "toy.zarr", images)
