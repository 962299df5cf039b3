"""Where a run stands, and the curves of several, from the files for people in their folders."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samdeblur.storage import folders
from samdeblur.storage.writing.lease import duration, lease_holder
from samdeblur.train.config import TrainConfig, read_config
from samdeblur.train.schedules import phases_of
from samdeblur.train.settings import ConfigError

CONFIG, LOG, ERROR = "config.yaml", "log.csv", "error.json"


@dataclass(frozen=True)
class Standing:
    """A run as its files have it.

    Attributes:
        step, steps: the last one that was logged, and how many were asked for.
        rate: steps per second, of the last rows; None where nothing was logged.
        best: validation PSNR and its step, after step 0.
        holder: host and pid of the process that trains; None when none does.
        error: what the last process ended with, and when; None for a good end.
    """

    folder: Path
    what: str
    step: int
    steps: int
    loss: float | None
    rate: float | None
    best: tuple[float, int] | None
    latest: tuple[float, int] | None
    logged: float | None
    holder: Mapping[str, Any] | None
    error: Mapping[str, Any] | None

    @property
    def state(self) -> str:
        if self.holder is not None:
            return f"training: process {self.holder['pid']} on {self.holder['host']}"
        if self.step >= self.steps:
            return "done"
        return "failed" if self.error is not None else "not running; the same command goes on with it"

    def lines(self) -> list[str]:
        share = f"{self.step / self.steps:.0%}" if self.steps else ""
        found = [
            f"{self.folder}: {self.what}",
            f"state   {self.state}",
            f"step    {self.step:,} of {self.steps:,} ({share})",
        ]
        if self.best is not None:
            latest = f", latest {self.latest[0]:.2f} dB at step {self.latest[1]:,}" if self.latest else ""
            found.append(f"best    {self.best[0]:.2f} dB at step {self.best[1]:,}{latest}")
        if self.loss is not None:
            found.append(f"loss    {self.loss:.4g}")
        if self.rate:
            left = (self.steps - self.step) / self.rate
            eta = f", {duration(left)} left" if self.step < self.steps else ""
            found.append(f"speed   {self.rate:.3g} steps/s{eta}")
        if self.logged is not None:
            found.append(f"logged  {duration(max(0.0, time.time() - self.logged))} ago")
        if self.error is not None:
            found.append(f"error   {self.error['error']} (step {self.error['step']}, {self.error['when']})")
        return found


def standing(folder: Path) -> Standing:
    """Raises ConfigError, FileNotFoundError for a folder that is none of a run, or whose settings cannot be read."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such run")
    if (kind := folders.kind_of(folder)) != folders.RUN:
        there = f"holds {folders.WORDS[kind]}, not" if kind is not None else "not the folder of"
        raise ConfigError(f"{folder}: {there} a training run")
    if not (folder / CONFIG).is_file() or not (folder / CONFIG).stat().st_size:
        raise ConfigError(f"{folder / CONFIG}: gone or empty; going on with the run writes it again")
    config = TrainConfig.of(read_config(str(folder / CONFIG)))
    rows = read_log(folder)
    last = next((row for row in reversed(rows) if "loss" in row), None)
    validated = [(row["val_psnr"], int(row["step"])) for row in rows if "val_psnr" in row and row["step"]]
    rate = None
    if last is not None:
        rate = last["samples_per_second"] / phases_of(config).at_step(int(last["step"])).batch_size
    error = None
    with suppress(OSError, ValueError):
        found = json.loads((folder / ERROR).read_text(encoding="utf-8"))
        error = found if isinstance(found, dict) and {"error", "step", "when"} <= found.keys() else None
    return Standing(
        folder,
        f"{config.network}, method {config.method}",
        int(rows[-1]["step"]) if rows else 0,
        config.steps,
        last["loss"] if last else None,
        rate,
        max(validated, default=None),
        validated[-1] if validated else None,
        (folder / LOG).stat().st_mtime if rows else None,
        lease_holder(folder / ".lease"),
        error,
    )


def read_log(folder: Path) -> list[dict[str, float]]:
    """The rows of a log; a last one that is being written is left out. None of no log."""
    rows = []
    with suppress(FileNotFoundError), open(folder / LOG, newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            with suppress(ValueError, TypeError):
                rows.append({name: float(value) for name, value in row.items() if value})
    return [row for row in rows if "step" in row]


def note_error(folder: Path, step: int, error: BaseException | None) -> None:
    """Say in the folder what a process ended with; None takes back what was said. A disk that is full says nothing."""
    with suppress(OSError):
        if error is None:
            (folder / ERROR).unlink(missing_ok=True)
        else:
            text = " ".join(str(error).split()) or type(error).__name__
            report = {"error": text[:2000], "step": step, "when": time.strftime("%Y-%m-%d %H:%M:%S")}
            (folder / ERROR).write_text(json.dumps(report) + "\n", encoding="utf-8")


def draw_runs(runs: Mapping[str, Sequence[Mapping[str, float]]], label: str = "training loss (dB)") -> bytes:
    """Loss and validation PSNR over steps, of runs by name, as a PNG."""
    import io

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(8, 3), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 2)
        for axis, column, name in zip(axes, ("loss", "val_psnr"), (label, "validation PSNR (dB)"), strict=True):
            for run, rows in runs.items():
                points = [(row["step"], row[column]) for row in rows if column in row]
                marker = "." if column == "val_psnr" else ""
                axis.plot(*zip(*points, strict=True) if points else ([], []), marker=marker, label=run)
            axis.set(xlabel="step", ylabel=name)
            axis.grid(alpha=0.3)
        if len(runs) > 1:
            axes[1].legend(fontsize="small")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()
