"""Doing one piece of the study: a store, or a training with its evaluation. Each goes on where it was stopped."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from oracle import prepare_oracle
from plan import CONTROLS, Cell, Size, Store, crossed_sets, test_sets, train_store
from priors import tried

from samdeblur.evaluation.evaluate import Evaluation, evaluate
from samdeblur.evaluation.ranks import Ranks
from samdeblur.evaluation.results import Conventions, Inference, Results, write_results
from samdeblur.evaluation.sets import Masks, StoreSet
from samdeblur.models import load_network, pick_device
from samdeblur.storage import AtomMap, open_store
from samdeblur.storage.files import sha256_file
from samdeblur.train import TrainConfig, train


def end_with_parent() -> None:
    """Let this process end as soon as the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def prepare(store: Store, size: Size, out: Path) -> None:
    """A store by samdeblur-prep run, in this process. Raises RuntimeError where that fails."""
    from samdeblur.cli.prep import cli

    source, split = store.source(size)
    path = out / "stores" / store.place
    options = size.options(store.masks)
    if options is None:
        prepare_oracle(source, split, store.masks, path)
        return
    usual = ["--workers", "1", "--progress", "none"]
    if code := cli.main(["run", source, str(path), "--split", split, *options, *usual], standalone_mode=False):
        raise RuntimeError(f"{path}: samdeblur-prep run ended with {code}")


class Named(StoreSet):
    """A store under the name it has in the tables of the study."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(open_store(path))
        self.split = name


class Lied(Named):
    """A store whose images come with no masks, or with those of the next image, which is of the same size."""

    def __init__(self, path: Path, name: str, control: str) -> None:
        super().__init__(path, f"{name}-{control}")
        self.control = control

    def masks(self, key: str, blurred: NDArray[np.uint8]) -> Masks:
        if self.control == "no-masks":
            return Masks(AtomMap.from_masks([], blurred.shape[:2]), {})
        return super().masks(self.keys[(self.keys.index(key) + 1) % len(self.keys)], blurred)


def train_and_evaluate(cell: Cell, size: Size, out: Path) -> None:
    """One network, trained and scored on every set, and with masks that lie to it."""
    torch.set_num_threads(1)
    config = TrainConfig.of(size.settings | cell.variant.settings | {"seed": cell.seed})
    images_with_masks = open_store(out / "stores" / train_store(cell.variant, size).place)
    with tried(cell.variant.candidate):
        train(config, images_with_masks, out / "runs" / cell.place)
    stores = [(out / "stores" / store.place, store.images) for store in test_sets(size, cell.variant.masks)]
    images = [Named(path, name) for path, name in stores]
    if cell.variant.masks:
        images += [Lied(*stores[0], control) for control in CONTROLS]
    score(cell, images, out, "results")


def evaluate_in_practice(cell: Cell, size: Size, out: Path) -> None:
    """A network that was trained with masks of an oracle, scored with others, which SAM finds in the blurred images."""
    torch.set_num_threads(1)
    tested = [
        Named(out / "stores" / store.place, store.masks if size.axes or size.priors else store.images)
        for store in crossed_sets(size)
    ]
    score(cell, tested, out, "in-practice")


def score(cell: Cell, images: Sequence[StoreSet], out: Path, kind: str) -> None:
    """Score the network of a training; `kind` is the folder of the results."""
    weights, folder = out / "runs" / cell.place / "last.safetensors", out / kind / cell.place
    device = pick_device("auto")
    network, sha256 = load_network(weights).to(device), sha256_file(weights).hex()
    task = Evaluation(folder, sha256, Conventions(), shown_images=0)
    with tried(cell.variant.candidate):
        sets = [evaluate(network, given, Inference(), task, Ranks(device)) for given in images]
    write_results(Results(cell.variant.name, str(weights), sha256, tuple(sets), task.conventions), folder)
