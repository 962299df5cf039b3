"""trackio: a local database, in the folder `trackio` of a run unless TRACKIO_DIR says otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROJECT = "samdeblur"


class Trackio:
    """One run for a folder, gone on with when that is."""

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder.resolve() / "trackio"))  # read when it is imported
        import trackio

        self._trackio = trackio
        self._run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=folder.name,
            config=dict(config),
            resume="allow" if step else "never",
            embed=False,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._run.log({"validation": self._trackio.Image(pixels, caption=name)}, step=step)

    def files(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self._trackio.save(str(path))

    def close(self) -> None:
        self._run.finish()


open_tracker = Trackio
