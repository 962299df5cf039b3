"""Worker processes of our own, on a Dask cluster of this machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress

import dask
import psutil
import torch
from distributed import Nanny, Scheduler, SpecCluster
from distributed.system import MEMORY_LIMIT

from samdeblur.storage.plurals import counted
from samdeblur.storage.processes import Note, Pulse, without_script

# Each worker has a core to itself. Dask's own default here, MALLOC_TRIM_THRESHOLD_, is left out on purpose: it makes
# glibc map and return every large array, which slowed the rendering of worlds 2.4 times.
WORKER_ENVIRONMENT = {
    "OPENCV_FOR_THREADS_NUM": 1,
    "OMP_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
    "OPENBLAS_NUM_THREADS": 1,
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # with which cuBLAS repeats its results
}
# A worker over its limit is ended, and what it was at is judged. One that pauses might wait for ever.
MEMORY = {"target": False, "spill": False, "pause": False, "terminate": 0.95}
ROOM = 1.25  # of what the libraries take, for a small image
LOOK = 1.0  # seconds between two looks at the workers
SILENT = 45.0  # seconds after which a worker that does nothing at all, not even say that it is there, is replaced
OURS = "Dask Worker process"


class MemoryTooSmall(ValueError):
    """Less memory for a worker than its libraries take."""


def memory_of_each(count: int, asked: int | None) -> int:
    """Bytes for each of so many workers; an equal share of what there is where nothing is asked for.

    Raises MemoryTooSmall.
    """
    libraries = psutil.Process().memory_info().rss  # of this process, which has loaded the same
    least = int(ROOM * libraries)
    limit = MEMORY_LIMIT // count if asked is None else asked
    if limit >= least:
        return limit
    takes = f"a worker takes {libraries / 1e9:.1f} GB for its libraries alone, and its models and images come on top"
    if asked is None:
        raise MemoryTooSmall(
            f"{counted(count, 'worker')} would have {limit / 1e9:.2g} GB each, and {takes}; --workers "
            f"{max(1, MEMORY_LIMIT // least)} at most"
        )
    raise MemoryTooSmall(f"--memory-limit: {asked / 1e9:.2g} GB, and {takes}; give {least / 1e9:.1f} GB at least")


def most_workers() -> int:
    """How many have room in the memory of this machine."""
    return max(1, MEMORY_LIMIT // int(ROOM * psutil.Process().memory_info().rss))


@contextmanager
def local_cluster(count: int, gpus: list[str], memory_limit: int) -> Generator[SpecCluster, None, None]:
    """A scheduler in this process and `count` workers, each with a GPU (two threads: one writes) or a core.

    Raises OSError when they do not start.
    """
    options = {"nthreads": 2 if gpus else 1, "memory_limit": memory_limit, "silence_logs": logging.CRITICAL}
    workers = {
        number: {
            "cls": Nanny,
            "options": options
            | {"env": {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}, "name": number},
        }
        for number in range(count)
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}}
    settings: dict[str, object] = {f"distributed.worker.memory.{name}": value for name, value in MEMORY.items()}
    settings["distributed.nanny.pre-spawn-environ"] = WORKER_ENVIRONMENT
    with dask.config.set(settings), without_script(), _silent_ones_replaced():
        try:
            with _workers_deaf_to_interrupts():
                cluster = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
        except RuntimeError as error:
            raise OSError(f"worker processes do not start: {error.__cause__ or error}") from error
        with cluster:
            try:
                yield cluster
            except BaseException:
                for nanny in cluster.workers.values():
                    nanny.auto_restart = False
                for process in _processes():
                    process.kill()  # what they are at is not waited for
                raise


def _processes() -> list[multiprocessing.process.BaseProcess]:
    return [child for child in multiprocessing.active_children() if child.name.startswith(OURS)]


@contextmanager
def _silent_ones_replaced() -> Iterator[None]:
    """Workers that do nothing, such as those that someone has suspended, are ended. Their nannies start others."""
    over = threading.Event()
    pulses: dict[int, Pulse] = {}

    def watch() -> None:
        while not over.wait(LOOK):
            for number in [process.pid for process in _processes() if process.pid]:
                pulse = pulses.setdefault(number, Pulse(number))
                if pulse.silence() > SILENT:
                    why = "it is suspended" if pulse.suspended else "it does not answer"
                    warnings.warn(Note(f"a worker (process {number}) has done nothing for {SILENT:.0f} s, since {why}; "
                                       "another takes its place"), stacklevel=1)  # fmt: skip
                    del pulses[number]
                    with suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)

    watching = threading.Thread(target=watch, name="workers", daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


@contextmanager
def _workers_deaf_to_interrupts() -> Generator[None, None, None]:
    """Processes started in here, and by threads started in here, never see Ctrl-C: this process tells them to end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def visible_gpus() -> list[str]:
    """What to write into CUDA_VISIBLE_DEVICES for each GPU this process may use."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
