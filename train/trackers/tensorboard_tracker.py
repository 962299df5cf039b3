"""TensorBoard: event files in the folder `tensorboard` of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray


class TensorBoard:
    """Goes on after `step`: what an interrupted run wrote beyond it is hidden."""

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        text = "\n".join(f"    {line}" for line in yaml.safe_dump(dict(config), sort_keys=False).splitlines())
        self._writer.add_text("config", text, step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def files(self, paths: Sequence[Path]) -> None:
        """It has no place for files; they lie in the folder above."""

    def close(self) -> None:
        self._writer.close()


open_tracker = TensorBoard
