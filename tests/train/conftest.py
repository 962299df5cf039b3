"""Runs that take a second."""

from __future__ import annotations

import csv
import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import samdeblur
from toy_stores import make_store, pair, store

from samdeblur.storage import MaskStore
from samdeblur.train import Stopped, TrainConfig, state, train
from samdeblur.train.state import TIMES

__all__ = ["make_store", "pair", "samdeblur", "store"]

# Commands and loader workers are forked from one process that has read the libraries, which takes seconds.
multiprocessing.set_forkserver_preload(["samdeblur.cli.train"])


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
    for name in ("config", "facts", "extended"):  # compared as plain values
        found[f"{name} of state.pt"] = found["state.pt"].pop(name)
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


@pytest.fixture
def assert_stop_changes_nothing(store: MaskStore, tmp_path: Path) -> Callable[[TrainConfig], None]:
    """A run that gets SIGTERM in step 2 and is started again ends as one that does not."""

    def stop(row: Mapping[str, Any]) -> None:
        if row["step"] == 2:
            signal.raise_signal(signal.SIGTERM)

    def check(config: TrainConfig) -> None:
        train(config, store, tmp_path / "undisturbed")
        with pytest.raises(Stopped):
            train(config, store, tmp_path / "run", progress=stop)
        train(config, store, tmp_path / "run")
        _assert_same_run(tmp_path / "run", _contents(tmp_path / "undisturbed"))

    return check
