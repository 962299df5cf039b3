"""The folder of a training run: what it was asked to do, how far it is, and its weights.

config.yaml           the resolved settings
run.json              stores (with fingerprints), held-out images, versions, state of the code
state.pt              everything needed to go on: step, weights, optimiser, average of weights, scaler, history
initial|last|best.safetensors   weights that `load_network` reads; step-N.safetensors where they are asked for
log.csv, curves.png   loss, learning rate, speed and validation, for people
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import torch

from samdeblur.models import CheckpointError, Deblurrer
from samdeblur.models.checkpoints.loading import (
    BEST_WEIGHTS,
    BUNDLED_NETWORK,
    encode_network,
    read_torch,
    resolve_checkpoint,
)
from samdeblur.storage.files import write_durably
from samdeblur.train.config import ConfigError, TrainConfig, read_config

CONFIG, RUN, STATE, LOG, CURVES = "config.yaml", "run.json", "state.pt", "log.csv", "curves.png"
INITIAL_WEIGHTS, LAST_WEIGHTS = "initial.safetensors", "last.safetensors"
TIMES = ("samples_per_second", "loader_wait")  # columns of a row that differ from run to run
COLUMNS = ("step", "loss", "learning_rate", *TIMES, "val_psnr", "val_ssim", "val_mcr")

Row = dict[str, float]

# Settings that do not change the result; a run may go on with others.
_FREE = {"device", "loader_workers", "cache_mb", "save_every", "keep_every", "tensorboard"}
# Facts that do.
_DATA = ("train", "validation", "weights")


def read_run(folder: Path, config: TrainConfig, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state to go on from, None when the folder holds no run yet.

    Args:
        facts: `train`, `validation` and `weights` (JSON values, compared) and what else run.json is to say.

    Raises:
        ConfigError: the folder holds a run with other settings or stores.
        CheckpointError: its state cannot be read.
    """
    if not (folder / STATE).exists():
        return None
    stored = TrainConfig.of(read_config(str(folder / CONFIG)))
    changed = [
        f"{name} {getattr(stored, name)} -> {getattr(config, name)}"
        for name in vars(config)
        if name not in _FREE and getattr(stored, name) != getattr(config, name)
    ]
    known = json.loads((folder / RUN).read_text())
    changed += [f"{name}: other images, masks or weights" for name in _DATA if known.get(name) != facts[name]]
    if changed:
        raise ConfigError(f"{folder}: holds a run with other settings ({'; '.join(changed)}); use another --out")
    return read_torch(folder / STATE)


def write_facts(folder: Path, config: TrainConfig, facts: Mapping[str, Any]) -> None:
    """Say in the folder what is run."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / RUN, json.dumps(facts, indent=1).encode())
    _write(folder / CONFIG, config.to_yaml().encode())


def save_state(folder: Path, state: dict[str, Any], network: Deblurrer, keep: bool) -> None:
    """Save weights and log, then, in one file that is whole or the one before it, everything a resumed run needs.

    A kill in between leaves files of a step that the resumed run will reach, and write, again.

    Args:
        state: what `read_run` is to give, with the rows of the log as `history`.
        network: what the weights are written from.
        keep: write them under the number of their step too, not to be written over.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    history: list[Row] = state["history"]
    step: int = state["step"]
    weights = encode_network(network)
    names = {LAST_WEIGHTS: True, INITIAL_WEIGHTS: step == 0, BEST_WEIGHTS: best_step(history) == step}
    for name, wanted in (names | {f"step-{step}.safetensors": keep}).items():
        if wanted:
            _write(folder / name, weights)
    write_log(folder, history)
    _write(folder / STATE, buffer.getbuffer())


def _write(path: Path, data: bytes | memoryview) -> None:
    """`write_durably`, with the name in its error: a full disk does not say which file."""
    try:
        write_durably(path, data)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def best_step(history: list[Row]) -> float | None:
    """Step of the highest validation PSNR, the last of equals; None before the first validation."""
    validated = [row for row in history if "val_psnr" in row]
    return max(validated, key=lambda row: (row["val_psnr"], row["step"]))["step"] if validated else None


def write_log(folder: Path, history: list[Row]) -> None:
    """The whole log, and its curves."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(_cells(row) for row in history)
    _write(folder / LOG, text.getvalue().encode())
    _write(folder / CURVES, draw_curves(history))


def add_to_log(folder: Path, row: Row) -> None:
    """One row at the end of the log, for who watches; `write_log` writes it again with the next state."""
    with open(folder / LOG, "a", newline="") as file:
        csv.DictWriter(file, COLUMNS, restval="").writerow(_cells(row))


def _cells(row: Row) -> dict[str, str]:
    return {name: f"{value:.6g}" for name, value in row.items()}


def draw_curves(history: list[Row]) -> bytes:
    """Loss and validation PSNR over steps, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(8, 3), layout="constrained")
        FigureCanvasAgg(figure)
        for axis, name, label in zip(
            figure.subplots(1, 2), ("loss", "val_psnr"), ("training loss (dB)", "validation PSNR (dB)"), strict=True
        ):
            points = [(row["step"], row[name]) for row in history if name in row]
            axis.plot(*zip(*points, strict=True) if points else ([], []), marker="." if name == "val_psnr" else "")
            axis.set(xlabel="step", ylabel=label)
            axis.grid(alpha=0.3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def read_curves(folder: Path) -> bytes:
    """The picture of a run's curves, PNG. Raises FileNotFoundError."""
    path = folder / CURVES
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such picture; is {folder} the folder of a training run?")
    return path.read_bytes()


def run_weights(folder: Path, which: str) -> Path:
    """Path of the `best`, `last` or `initial` weights of a run; `folder` may be a checkpoint file itself, or "bundled".

    Raises:
        FileNotFoundError, CheckpointError: no such run or weights.
    """
    if folder.is_file() or str(folder) == "bundled":
        return resolve_checkpoint(folder, BUNDLED_NETWORK)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such run or checkpoint")
    path = folder / f"{which}.safetensors"
    if not path.exists():
        raise CheckpointError(f"{folder}: no {path.name}; is this the folder of a training run?")
    return path
