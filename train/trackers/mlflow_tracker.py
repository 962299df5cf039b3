"""MLflow: where MLFLOW_TRACKING_URI says, or a local store in the folder `mlruns` of a run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXPERIMENT = "samdeblur"
ID = "mlflow-run.txt"  # in the folder of a run: which run of the store it is
LONGEST = 500  # letters of a parameter


class MLflow:
    """One run for a folder, gone on with when that is."""

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else newer versions want a database
        from mlflow import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").resolve().as_uri()
        self._client: Any = MlflowClient(tracking_uri=place)
        note = folder / ID
        self._id = note.read_text(encoding="utf-8").strip() if step and note.exists() else ""
        if not self._id:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            there = self._client.get_experiment_by_name(name)
            experiment = there.experiment_id if there else self._client.create_experiment(name)
            self._id = self._client.create_run(experiment, run_name=folder.name).info.run_id
            note.write_text(f"{self._id}\n", encoding="utf-8")
            for setting, value in config.items():
                self._client.log_param(self._id, setting, str(value)[:LONGEST])
        else:
            self._client.set_terminated(self._id, "RUNNING")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, timestamp=now, step=step)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._client.log_image(self._id, pixels, artifact_file=f"validation/step-{step}.png")

    def files(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self._client.log_artifact(self._id, str(path), "report")

    def close(self) -> None:
        self._client.set_terminated(self._id, "FINISHED")


open_tracker = MLflow
