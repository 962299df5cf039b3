"""Scalars and pictures for TensorBoard, where it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage import MaskStore
from samdeblur.train.config import ConfigError
from samdeblur.train.state import Row


def summary_writer() -> Any:
    """The class that writes. Raises ConfigError when tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("tensorboard: not installed; pip install samdeblur[tensorboard]") from error
    return SummaryWriter


class Board:
    """Writes to the folder `tensorboard` of a run; does nothing when it is off."""

    def __init__(self, writer: Any = None) -> None:
        self._writer = writer

    @classmethod
    def open(cls, folder: Path, wanted: bool, step: int = 0) -> Board:
        """A board that goes on after `step`: what an interrupted run wrote beyond it is hidden.

        Raises ConfigError when tensorboard is not installed.
        """
        writer = summary_writer() if wanted else None
        return cls(writer(str(folder / "tensorboard"), purge_step=step + 1 if step else None) if writer else None)

    def scalars(self, row: Row) -> None:
        if self._writer is not None:
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name, value, int(row["step"]))

    def picture(self, step: int, store: MaskStore, key: str, result: NDArray[np.uint8]) -> None:
        """Blurred, result and sharp beside each other."""
        if self._writer is not None:
            strip = np.concatenate([store.image("blurred", key), result, store.image("sharp", key)], axis=1)
            self._writer.add_image(f"blurred, result, sharp: {key}", strip, step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
