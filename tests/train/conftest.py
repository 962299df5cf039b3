"""Small stores with images, and runs that take a second."""

from __future__ import annotations

import csv
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samdeblur.storage import AtomMap, MaskStore, open_store
from samdeblur.storage.commits import Committer, ImageContent, ImageOutcome, StagedBlock, stage_block
from samdeblur.storage.layout import DONE, PENDING, Header, create_store, pixel_digest, round_up
from samdeblur.train import TrainConfig, state
from samdeblur.train.state import TIMES

Picture = NDArray[np.uint8]
Images = Mapping[str, tuple[Picture, Picture, NDArray[np.bool_]]]

# Commands and loader workers are forked from one process that has read the libraries, which takes seconds.
multiprocessing.set_forkserver_preload(["samdeblur.cli.train"])


@pytest.fixture(scope="session")
def make_store() -> Callable[..., MaskStore]:
    """(path, {key: (blurred, sharp, masks)}, pending=(), recipe="a") -> store; those pending are not filled in."""
    return _make_store


def _make_store(path: Path, images: Images, pending: tuple[str, ...] = (), recipe: str = "a") -> MaskStore:
    shapes = np.array([blurred.shape[:2] for blurred, _, _ in images.values()], np.int32)
    extent = (round_up(shapes[:, 0].max()), round_up(shapes[:, 1].max()))
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
def pair() -> Callable[[int, int, int], tuple[Picture, Picture, NDArray[np.bool_]]]:
    """(seed, height, width) -> blurred, sharp, masks: six patches of colour, each a mask, and one mask over four."""
    return _pair


def _pair(seed: int, height: int, width: int) -> tuple[Picture, Picture, NDArray[np.bool_]]:
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


@pytest.fixture(scope="session")
def small() -> TrainConfig:
    """Settings of a run of ten steps, a row of the log at each and a validation at every fourth."""
    return TrainConfig(
        width=4,
        enc_blk_nums=(1,),
        middle_blk_num=1,
        dec_blk_nums=(1,),
        steps=10,
        batch_size=2,
        crop_size=24,
        val_every=4,
        log_every=1,
        device="cpu",
    )


@pytest.fixture
def command(tmp_path: Path, store: MaskStore) -> Callable[[TrainConfig, Path], list[str]]:
    """(settings, folder) -> arguments of samdeblur-train for such a run on the four images."""

    def arguments(config: TrainConfig, folder: Path) -> list[str]:
        file = tmp_path / f"{folder.name}.yaml"
        file.write_text(config.to_yaml())
        return [str(store.path), "--config", str(file), "--out", str(folder)]

    return arguments


@pytest.fixture(scope="module")
def quick_curves() -> Iterator[None]:
    """Drawing takes longer than these runs; what would be drawn is written instead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "draw_curves", lambda history: repr(history).encode())
        yield


@pytest.fixture(scope="session")
def logged() -> Callable[[Path], list[dict[str, str]]]:
    """folder of a run -> the rows of its log."""
    return _logged


def _logged(folder: Path) -> list[dict[str, str]]:
    with open(folder / "log.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, Any]]:
    """folder of a run -> its files and their bytes: the state as tensors and numbers, rows without what differs in
    time, facts without the state of the code, which someone may be changing."""
    return _contents


def _contents(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    found["state.pt"] = torch.load(folder / "state.pt", weights_only=True)
    found["state.pt"]["history"] = _timeless(found["state.pt"]["history"])
    facts = json.loads(found["run.json"])
    del facts["code"]
    return found | {"log.csv": _timeless(_logged(folder)), "run.json": facts, "curves.png": None}


def _timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.fixture(scope="session")
def assert_same_run() -> Callable[[Path, Mapping[str, Any]], None]:
    """(folder of a run, contents of another) -> fails where they differ, if only in one bit of a weight."""
    return _assert_same_run


def _assert_same_run(folder: Path, expected: Mapping[str, Any]) -> None:
    found = _contents(folder)
    torch.testing.assert_close(found.pop("state.pt"), expected["state.pt"], rtol=0, atol=0)
    assert found.keys() == expected.keys() - {"state.pt"}
    for name, content in found.items():
        assert content == expected[name], name
