"""Weights & Biases. Offline, in the folder `wandb` of a run, unless WANDB_MODE or WANDB_API_KEY say otherwise."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class WandB:
    """One run for a folder, gone on with when that is."""

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self._wandb = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "samdeblur"),
            name=folder.name,
            id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
            resume="allow" if step and mode == "online" else None,
            dir=str(folder),
            config=dict(config),
            mode=mode,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True),
        )
        # The step is a value of its own: a validation says more of a step that was logged.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._run.log({"step": step, "validation": self._wandb.Image(pixels, caption=name)})

    def files(self, paths: Sequence[Path]) -> None:
        artefact = self._wandb.Artifact(f"run-{self._run.id}", type="report")
        for path in paths:
            artefact.add_file(str(path))
        self._run.log_artifact(artefact)

    def close(self) -> None:
        self._run.finish()


open_tracker = WandB
