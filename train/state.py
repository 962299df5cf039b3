"""The folder of a training run: what it was asked to do, how far it is, and its weights.

config.yaml           the resolved settings
run.json              stores (with fingerprints), held-out images, versions
state.pt              everything needed to go on: step, weights, optimiser, history
initial|last|best.safetensors   weights that `load_network` reads
log.csv, curves.png   loss, learning rate and validation, for people
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import matplotlib
import torch

from samdeblur.models import CheckpointError, Deblurrer
from samdeblur.models.checkpoints import BEST_WEIGHTS, BUNDLED_NETWORK, encode_network, read_torch, resolve_checkpoint
from samdeblur.storage.files import write_durably
from samdeblur.train.config import ConfigError, TrainConfig, read_config

CONFIG, RUN, STATE, CURVES = "config.yaml", "run.json", "state.pt", "curves.png"
INITIAL_WEIGHTS, LAST_WEIGHTS = "initial.safetensors", "last.safetensors"
COLUMNS = ("step", "loss", "learning_rate", "val_psnr", "val_ssim", "val_mcr")

Row = dict[str, float]

# Settings that do not change the result; a run may go on with others.
_FREE = {"device", "loader_workers"}
# Facts that do.
_DATA = ("train", "validation")


def start_run(folder: Path, config: TrainConfig, facts: dict[str, Any]) -> dict[str, Any] | None:
    """Make the folder of a run, or find the state to resume from.

    Args:
        facts: `train` and `validation` (JSON values, compared on resume) and what else run.json is to say.

    Returns:
        The saved state, None for a new run.

    Raises:
        ConfigError: the folder holds a run with other settings or stores.
    """
    if (folder / STATE).exists():
        stored = TrainConfig.of(read_config(str(folder / CONFIG)))
        changed = [
            f"{name} {getattr(stored, name)} -> {getattr(config, name)}"
            for name in vars(config)
            if name not in _FREE and getattr(stored, name) != getattr(config, name)
        ]
        known = json.loads((folder / RUN).read_text())
        changed += [f"{name}: other images or masks" for name in _DATA if known.get(name) != facts[name]]
        if changed:
            raise ConfigError(f"{folder}: holds a run with other settings ({'; '.join(changed)}); use another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / RUN, json.dumps(facts, indent=1).encode())
    write_durably(folder / CONFIG, config.to_yaml().encode())
    if not (folder / STATE).exists():
        return None
    return read_torch(folder / STATE)


def save_state(folder: Path, network: Deblurrer, optimizer: torch.optim.Optimizer, history: list[Row]) -> None:
    """Save weights and log, then, in one file that is whole or the one before it, everything a resumed run needs.

    A kill in between leaves files of a step that the resumed run will reach, and write, again.
    """
    buffer = io.BytesIO()
    state = {
        "step": int(history[-1]["step"]),
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": history,
    }
    torch.save(state, buffer)
    weights = encode_network(network)
    write_durably(folder / LAST_WEIGHTS, weights)
    if history[-1]["step"] == 0:
        write_durably(folder / INITIAL_WEIGHTS, weights)
    if best_step(history) == history[-1]["step"]:
        write_durably(folder / BEST_WEIGHTS, weights)
    write_log(folder, history)
    write_durably(folder / STATE, buffer.getbuffer())


def best_step(history: list[Row]) -> float:
    """Step of the highest validation PSNR, the last of equals."""
    validated = [row for row in history if "val_psnr" in row]
    return max(validated, key=lambda row: (row["val_psnr"], row["step"]))["step"]


def write_log(folder: Path, history: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in history)
    write_durably(folder / "log.csv", text.getvalue().encode())
    write_durably(folder / CURVES, draw_curves(history))


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
