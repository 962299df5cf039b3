"""The batches of a run, read by processes of their own: none is lost, and none is waited for without end."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import queue
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from samdeblur.models import AtomBatch
from samdeblur.storage import ImageNotReady, StoreError
from samdeblur.storage.access.files import Unreachable
from samdeblur.storage.processes import Note, Pulse, end_with, how_it_ended, without_script
from samdeblur.train.data.cache import SHARED
from samdeblur.train.data.crops import Batch, Crop, Share, collate
from samdeblur.train.stopping import SIGNALS

PREFETCH = 4  # batches ahead of each worker: a validation, or a slow disk, is bridged
TICK = 1.0  # seconds between two looks at whether a batch still comes
SILENT = 45.0  # seconds that a worker which is waited for may do nothing
SLOW = 60.0  # seconds after which workers that are at work are called slow
ENDING = 2.0  # seconds that the end of a worker may take to be known
ALIGNED = 64  # bytes


class LoaderFailed(RuntimeError):
    """A worker that reads crops has ended, or does nothing."""


def crop_loader(
    dataset: Dataset[Crop],
    share: Share,
    workers: int,
    dropout: float = 0.0,
    waiting: Callable[[], None] = lambda: None,
) -> Generator[Batch, None, None]:
    """The batches of a process; its workers are started afresh, since TensorStore does not survive a fork.

    Args:
        waiting: called now and then while there is no batch; what it raises is raised here.

    Raises what reading a crop raises, also in a worker. LoaderFailed: a worker has ended or does nothing.
    """
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload([__name__])  # libraries are imported once, not by every worker
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more processes than cores, as it was told
    loader: DataLoader[Any] = DataLoader(
        _CropsOrErrors(dataset),
        batch_sampler=share,
        collate_fn=partial(_collate_or_error, dropout=dropout, packed=workers > 0),
        num_workers=workers,
        multiprocessing_context=forkserver if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(_start_worker, os.getpid()),
        prefetch_factor=PREFETCH if workers else None,
        generator=torch.Generator(),  # that of the run is not for what happens in a thread
    )
    for batch in _fetch_ahead(loader, waiting) if workers else loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def _start_worker(process: int, worker: int) -> None:
    """What a worker begins with: a signal that asks the run to stop may come to all its processes, and is left to the
    one they work for, with which they end. Their parent, the fork server, lives on while they do.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with(process)


@dataclass(frozen=True)
class _CropsOrErrors(Dataset[Any]):
    """Crops, or the error of reading one: torch would wrap it in the traceback of a worker."""

    crops: Dataset[Crop]

    def __getitem__(self, sample: int) -> Crop | Exception:
        try:
            return self.crops[sample]
        except (StoreError, ImageNotReady, Unreachable, OSError, MemoryError) as error:
            return error


def _collate_or_error(crops: Sequence[Crop | Exception], dropout: float, packed: bool) -> Batch | Parcel | Exception:
    errors = [crop for crop in crops if isinstance(crop, Exception)]
    if errors:
        return errors[0]
    batch = collate(crops, dropout)  # type: ignore[arg-type]
    return Parcel.of(batch) if packed else batch


@dataclass(frozen=True)
class Parcel:
    """A batch on its way out of a worker: its bytes in shared memory, or, where that has no room, with the parcel.

    The worker packs it itself. Left to torch, a thread of the worker does, whose errors lose the batch.

    Attributes:
        content: a pickled tensor of bytes.
        tensors: type, shape, strides and place in it of each tensor of the batch.
        trouble: why shared memory could not be used, or nothing.
    """

    content: bytes
    tensors: tuple[tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int], ...]
    trouble: str

    @classmethod
    def of(cls, batch: Batch) -> Parcel:
        tensors = [batch.blurred, batch.sharp, *(batch.atoms or ())]
        places, end = [], 0
        for tensor in tensors:
            places.append((tensor.dtype, tuple(tensor.shape), tensor.stride(), end))
            end += -(-tensor.nbytes // ALIGNED) * ALIGNED
        try:
            whole = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(end))
            content, trouble = bytes(ForkingPickler.dumps(whole)), ""
        except (RuntimeError, OSError) as error:
            whole, content = torch.empty(end, dtype=torch.uint8), b""
            trouble = str(error)
        for tensor, (*_, start) in zip(tensors, places, strict=True):
            in_order = torch.as_strided(tensor, (tensor.numel(),), (1,))  # tensors of a batch have no gaps
            whole[start : start + tensor.nbytes] = in_order.view(torch.uint8)
        return cls(content or pickle.dumps(whole.numpy()), tuple(places), trouble)

    def open(self) -> Arrived:
        """Raises OSError where its memory cannot be had."""
        return self._unpacked(torch.as_tensor(pickle.loads(self.content)))

    def pin_memory(self) -> Arrived:
        """As torch calls it, for a GPU."""
        return self._unpacked(torch.as_tensor(pickle.loads(self.content)).pin_memory())

    def _unpacked(self, whole: Tensor) -> Arrived:
        tensors = []
        for dtype, shape, strides, start in self.tensors:
            size = math.prod(shape) * dtype.itemsize
            tensors.append(torch.as_strided(whole[start : start + size].view(dtype), shape, strides))
        blurred, sharp, *atoms = tensors
        return Arrived(Batch(blurred, sharp, AtomBatch(*atoms) if atoms else None), self.trouble)


class Arrived(NamedTuple):
    """A batch out of its parcel, and the trouble there was with it."""

    batch: Batch
    trouble: str


def _fetch_ahead(loader: DataLoader[Any], waiting: Callable[[], None]) -> Iterator[Batch | Exception]:
    """What workers read, in its order, fetched by a thread: workers may hold it up, and cannot hold up this one."""
    workers: list[BaseProcess] = []
    others = {*multiprocessing.active_children()}
    line: queue.Queue[Arrived | Exception | None] = queue.Queue(1)
    closed = threading.Event()

    def fetch() -> None:
        try:
            with without_script():
                source = iter(loader)
            workers.extend(source._workers)  # type: ignore[attr-defined]
        except (OSError, EOFError) as error:  # no place for their semaphores and sockets, or too many processes
            why = getattr(error, "strerror", None) or error
            line.put(LoaderFailed(
                f"the workers that read crops cannot be started: {why} (they need room in {SHARED} and in "
                f"{tempfile.gettempdir()}); set loader_workers=0 to do without"
            ))  # fmt: skip
            return
        try:
            for found in source:
                line.put(found.open() if isinstance(found, Parcel) else found)
                if closed.is_set():
                    return
            line.put(None)
        except Exception as error:
            # Asked here and nowhere else: where two threads ask how a worker ended, one of them hears 255.
            line.put(_how_a_worker_died(workers) or error)

    fetching = threading.Thread(target=fetch, name="batches", daemon=True)
    fetching.start()
    try:
        noted, number = False, 0
        while (found := _next_batch(line, workers, number, waiting)) is not None:
            if isinstance(found, Exception):
                yield found
                return
            if found.trouble and not noted:
                noted = True
                _say(f"no room in shared memory ({SHARED}) for batches, which come through pipes now, and slower: give "
                    "it more (docker run --shm-size 2g), or take fewer loader_workers")  # fmt: skip
            yield found.batch
            number += 1
    finally:
        closed.set()
        with suppress(queue.Empty):
            line.get_nowait()
        for _ in range(2):  # the second time those that were just being started
            for worker in {*multiprocessing.active_children()} - others:
                worker.kill()  # they leave all other signals alone
            fetching.join(ENDING / 2)


def _next_batch(
    line: queue.Queue[Arrived | Exception | None],
    workers: Sequence[BaseProcess],
    number: int,
    waiting: Callable[[], None],
) -> Arrived | Exception | None:
    """The next in line, which is batch `number`. Raises LoaderFailed when a worker it depends on does nothing."""
    pulses: list[Pulse] = []
    starting: list[Pulse] = []  # those that start them
    looks = 0
    while True:
        try:
            return line.get(timeout=TICK)
        except queue.Empty:
            waiting()
        pulses = pulses or [Pulse(worker.pid) for worker in workers if worker.pid]
        silence = [pulse.silence() for pulse in pulses]
        looks += 1
        if not pulses:
            starting = starting or [Pulse(child.pid) for child in psutil.Process().children()]
            if starting and min([pulse.silence() for pulse in starting]) > SILENT:
                raise LoaderFailed(
                    f"the workers that read crops have not started for {looks * TICK:.0f} s; run again, or set "
                    "loader_workers=0 to do without"
                )
            continue
        suspended = [place for place, pulse in enumerate(pulses) if pulse.suspended]
        late = (suspended or [number % len(workers)])[0]  # they take turns; but one may hold up all others
        if silence[late] > SILENT:
            what = "is suspended" if suspended else "does nothing: usually its disk or server does not answer"
            raise LoaderFailed(
                f"no batch for {looks * TICK:.0f} s: worker {late} of {len(workers)} that read crops (process "
                f"{pulses[late].process}) {what}"
            )
        if looks * TICK % SLOW == 0:
            _say(f"no batch for {looks * TICK:.0f} s; the workers that read crops are at work, and slow")


def _say(line: str) -> None:
    warnings.warn(Note(line), stacklevel=2)


def _how_a_worker_died(workers: Sequence[BaseProcess]) -> LoaderFailed | None:
    """What to say where a worker has ended as it should not, or is about to: what it sent fails before that shows."""
    wait([worker.sentinel for worker in workers], ENDING)
    for place, worker in enumerate(workers):
        if not worker.is_alive() and worker.exitcode:
            return LoaderFailed(
                f"worker {place} of {len(workers)} that read crops (process {worker.pid}) "
                f"{how_it_ended(worker.exitcode)}; take fewer loader_workers, or a smaller batch_size or cache_mb"
            )
    return None
