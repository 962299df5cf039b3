"""The folder of a training run: what it was asked to do, how far it is, and its weights.

config.yaml           the resolved settings
run.json              stores (with fingerprints), held-out images, versions, state of the code
state.pt              everything needed to go on: step, weights, optimiser, average of weights, scaler, history
initial|last|best.safetensors   weights that `load_network` reads, with their step in the head; `best` never of
                      step 0; step-N.safetensors where they are asked for
log.csv, curves.png   loss, learning rate, speed and validation, for people
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from samdeblur.evaluation.results import Trained
from samdeblur.models import CheckpointError, Deblurrer
from samdeblur.models.checkpoints.loading import (
    BEST_WEIGHTS,
    BUNDLED_NETWORK,
    LAST_WEIGHTS,
    encode_network,
    resolve_checkpoint,
    split_part,
    training_of,
)
from samdeblur.storage import folders
from samdeblur.storage.files import write_durably
from samdeblur.train.config import TrainConfig
from samdeblur.train.standing import CONFIG, LOG, draw_runs

RUN, STATE, CURVES = "run.json", "state.pt", "curves.png"
INITIAL_WEIGHTS = "initial.safetensors"
TIMES = ("samples_per_second", "loader_wait")  # columns of a row that differ from run to run
COLUMNS = ("step", "loss", "learning_rate", *TIMES, "val_psnr", "val_ssim", "val_mcr")

Row = dict[str, float]


def write_facts(folder: Path, config: TrainConfig, facts: Mapping[str, Any]) -> None:
    """Say in the folder what is run."""
    folders.claim(folder, folders.RUN)
    write_durably(folder / RUN, (json.dumps(facts, indent=1, allow_nan=False) + "\n").encode())
    write_durably(folder / CONFIG, config.to_yaml().encode())


def save_state(folder: Path, state: dict[str, Any], network: Deblurrer, keep: bool) -> None:
    """Save weights and log, then, in one file that is whole or the one before it, everything a resumed run needs.

    A kill in between leaves files of a step that the resumed run will reach, and write, again.

    Args:
        state: what `read_run` of `resuming` is to give, with the rows of the log as `history`.
        network: what the weights are written from.
        keep: write them under the number of their step too, not to be written over.
    """
    content = encode_state(state)
    history: list[Row] = state["history"]
    step: int = state["step"]
    network.provenance = {**(network.provenance or {}), "step": step}
    weights = encode_network(network)
    names = {LAST_WEIGHTS: True, INITIAL_WEIGHTS: step == 0, BEST_WEIGHTS: best_step(history) == step}
    for name, wanted in (names | {f"step-{step}.safetensors": keep}).items():
        if wanted:
            write_durably(folder / name, weights)
    write_log(folder, history)
    write_durably(folder / STATE, content)


def encode_state(state: Mapping[str, Any]) -> bytes:
    """A state as the bytes of its file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()  # shares the memory with the buffer, which is not written to any more


def best_step(history: list[Row]) -> float | None:
    """Step of the highest validation PSNR after step 0, the last of equals; None before there is one."""
    validated = [row for row in history if "val_psnr" in row and row["step"]]
    return max(validated, key=lambda row: (row["val_psnr"], row["step"]))["step"] if validated else None


def write_log(folder: Path, history: list[Row]) -> None:
    """The whole log, and its curves."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_cells(row) for row in history)
    write_durably(folder / LOG, text.getvalue().encode())
    write_durably(folder / CURVES, draw_curves(history))


def add_to_log(folder: Path, row: Row) -> None:
    """One row at the end of the log, for who watches; `write_log` writes it again with the next state."""
    with open(folder / LOG, "a", newline="") as file:
        csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n").writerow(_cells(row))


def _cells(row: Row) -> dict[str, str]:
    return {name: str(int(value)) if name == "step" else f"{value:.6g}" for name, value in row.items()}


def draw_curves(history: list[Row]) -> bytes:
    """Loss and validation PSNR over steps, as a PNG."""
    return draw_runs({"": history})


def read_curves(folder: Path) -> bytes:
    """The image of a run's curves, PNG. Raises FileNotFoundError."""
    path = folder / CURVES
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image; is {folder} the folder of a training run?")
    return path.read_bytes()


def run_weights(folder: Path, which: str | None = None) -> Path:
    """Path of the weights of a run; `folder` may be a checkpoint file itself, or "bundled".

    Args:
        which: best, last, initial or step-N; by default best, or last where nothing was validated yet.

    Raises:
        FileNotFoundError, CheckpointError: no such run or weights.
    """
    if split_part(folder)[0].is_file() or str(folder) == "bundled":
        return resolve_checkpoint(folder, BUNDLED_NETWORK)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such run or checkpoint")
    names = [f"{which}.safetensors"] if which else [BEST_WEIGHTS, LAST_WEIGHTS]
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is not None:
        return found
    there = sorted(path.stem for path in folder.glob("*.safetensors"))
    if not there:
        what = folders.kind_of(folder)
        other = f" It holds {folders.WORDS[what]}; swapped?" if what not in (None, folders.RUN) else ""
        raise CheckpointError(f"{folder}: no {names[0]}; is this the folder of a training run?{other}")
    why = ", as nothing was validated after step 0" if which == "best" else ""
    raise CheckpointError(f"{folder}: no {names[0]}{why}; there are {', '.join(there)}")


def trained(path: Path, training: Mapping[str, Any] | None) -> Trained | None:
    """Of which step weights are, and how far their run has come.

    Args:
        path: of the weights; beside them lie those of the last step, if they are still in the folder of the run.
        training: what they say of themselves.
    """
    if training is None or not all(isinstance(training.get(name), int) for name in ("step", "of")):
        return None
    last = path.with_name(LAST_WEIGHTS)
    latest = (training_of(last) if last.exists() else None) or {}
    of = max(training["of"], latest.get("of", 0))  # a run may have been extended since
    return Trained(training["step"], of, latest.get("step", of), str(training.get("segmenter", "")))
