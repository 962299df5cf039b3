"""Where a store stands. Nothing here loads networks: it is asked for often, and answered at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samdeblur.storage import MaskStore, open_store
from samdeblur.storage.format.layout import DONE, QUARANTINED
from samdeblur.storage.writing.lease import lease_holder, run_folder


@dataclass(frozen=True)
class Status:
    """Where a store stands.

    Attributes:
        quarantined: key -> reason.
        job: host, pid and time of renewal of the job that holds the store; None when none does.
    """

    store: MaskStore
    done: int
    pending: int
    quarantined: dict[str, str]
    job: dict[str, Any] | None = None


def status(path: str | Path) -> Status:
    """Read where a store stands. Raises FileNotFoundError, StoreError."""
    store = open_store(path)
    bad = [store.keys[row] for row in np.flatnonzero(store.states == QUARANTINED)]
    done = int((store.states == DONE).sum())
    job = None if store.path.remote else lease_holder(run_folder(store.path.path))
    return Status(store, done, len(store) - done - len(bad), {key: store.error(key) for key in bad}, job)
