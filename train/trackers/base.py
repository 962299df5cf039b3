"""What every tracker is, and all of a run behind one face: none of them can end a training."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage import MaskStore
from samdeblur.train.config import TRACKERS
from samdeblur.train.settings import ConfigError
from samdeblur.train.standing import CONFIG, LOG
from samdeblur.train.state import CURVES, RUN, Row

REPORT = (CONFIG, RUN, LOG, CURVES)  # of a run, what a tracker gets as files in the end


class TrackerFailed(UserWarning):
    """Said once of a tracker that raised; the run goes on without it."""


class Tracker(Protocol):
    """Opened with the folder of a run, its settings as plain values, and the step it goes on from."""

    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """(H, W, 3) RGB."""

    def files(self, paths: Sequence[Path]) -> None: ...

    def close(self) -> None: ...


def require(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker whose library is not installed, with the command that installs it."""
    for name in names:
        try:
            importlib.import_module({"tensorboard": "torch.utils.tensorboard"}.get(name, name))
        except ImportError as error:
            raise ConfigError(f"{name}: not installed; pip install samdeblur[{name}]") from error


class Trackers:
    """All trackers of a run; one that raises is said, and left out from then on."""

    def __init__(self, opened: Mapping[str, Tracker] | None = None) -> None:
        self._opened = dict(opened or {})

    @classmethod
    def open(cls, names: Sequence[str], folder: Path, config: Mapping[str, Any], step: int) -> Trackers:
        """Those of some names, going on after a step."""
        found = cls()
        for name in dict.fromkeys(names):
            assert name in TRACKERS
            module = importlib.import_module(f"samdeblur.train.trackers.{name}_tracker")
            opened = found._tried(name, module.open_tracker, folder, config, step)
            if opened is not None:
                found._opened[name] = opened
        return found

    def scalars(self, row: Row) -> None:
        values = {name: value for name, value in row.items() if name != "step"}
        self._each("scalars", int(row["step"]), values)

    def image(self, step: int, store: MaskStore, key: str, result: NDArray[np.uint8]) -> None:
        """Blurred, result and sharp beside each other."""
        if self._opened:
            strip = np.concatenate([store.image("blurred", key), result, store.image("sharp", key)], axis=1)
            self._each("image", step, f"blurred, result, sharp: {key}", strip)

    def close(self, folder: Path | None = None) -> None:
        """The end, with the files of the run where it is one that is done."""
        if folder is not None:
            self._each("files", [path for name in REPORT if (path := folder / name).exists()])
        self._each("close")
        self._opened.clear()

    def _each(self, what: str, *given: Any) -> None:
        for name, tracker in list(self._opened.items()):
            self._tried(name, getattr(tracker, what), *given)

    def _tried(self, name: str, call: Callable[..., Any], *given: Any) -> Any:
        try:
            return call(*given)
        except (Exception, SystemExit) as error:  # whatever a library raises at a full disk, a server, a key
            self._opened.pop(name, None)
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            message = f"tracker {name} failed, and the run goes on without it ({type(error).__name__}: {reason})"
            warnings.warn(message, TrackerFailed, stacklevel=2)
            return None
