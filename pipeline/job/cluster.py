"""Where the tasks of a job run: in this process, on a Dask cluster of this machine, or on one that runs already."""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import signal
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import cloudpickle
import dask
import torch
from distributed import Client, Future, Nanny, Scheduler, SpecCluster
from distributed.client import ClosedClientError
from distributed.scheduler import KilledWorker
from distributed.system import MEMORY_LIMIT

Task = TypeVar("Task")
Result = TypeVar("Result")

# Each worker has a core to itself. Dask's own default here, MALLOC_TRIM_THRESHOLD_, is left out on purpose: it makes
# glibc map and return every large array, which slowed the rendering of worlds 2.4 times.
WORKER_ENVIRONMENT = {
    "OPENCV_FOR_THREADS_NUM": 1,
    "OMP_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
    "OPENBLAS_NUM_THREADS": 1,
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # with which cuBLAS repeats its results
}
WINDOW = 2  # tasks in flight per thread of a worker: one runs, one waits
TICK = 1.0  # seconds without a result after which `run` says so
FETCH = 30.0  # seconds to fetch a small result in
RENEWAL = 30.0  # seconds to wait for a process that replaces another
PATIENCE = 300.0  # seconds without a worker, or a scheduler, after which a run ends


class ClusterLost(ConnectionError):
    """No scheduler answers, or no worker is there."""


class WorkerKilled(RuntimeError):
    """A task whose workers died, every one of several that tried it: out of memory, most often."""


@dataclass(frozen=True)
class Resources:
    """Which workers a job asks for.

    Attributes:
        scheduler: address of a running Dask scheduler, or the path of its scheduler file; None for workers of our own.
        workers: processes of our own; None for one per GPU, or one per core. One without a GPU is this process.
        memory_limit: bytes after which a worker of our own is killed; None for an equal share of what is there.
        patience: seconds to wait for a scheduler, or for the first worker, before giving up.
    """

    scheduler: str | None = None
    workers: int | None = None
    memory_limit: int | None = None
    patience: float = PATIENCE


@dataclass
class Feed(Generic[Task]):
    """Tasks made when they are asked for, and those that are to be done again."""

    tasks: Iterator[Task]
    again: deque[tuple[Task, Collection[str]]] = field(default_factory=deque)
    first: int = 0  # fresh tasks that come before those to be done again

    def put_back(self, task: Task, avoid: Collection[str] = (), after: int = 0) -> None:
        """A task to be done again, if possible by a worker whose address is not in `avoid`, and after some others."""
        self.again.append((task, avoid))
        self.first = max(self.first, after)

    def next(self) -> tuple[Task, Collection[str]] | None:
        if self.again and self.first:
            self.first -= 1
            if (fresh := next(self.tasks, None)) is not None:
                return fresh, ()
        if self.again:
            return self.again.popleft()
        task = next(self.tasks, None)
        return None if task is None else (task, ())


class Runner(Protocol):
    """Runs tasks somewhere."""

    @property
    def distributed(self) -> bool:
        """Whether another worker may succeed where one failed."""
        ...

    @property
    def dashboard(self) -> str | None:
        """Address of Dask's dashboard."""
        ...

    @property
    def workers(self) -> int:
        """Processes at work."""
        ...

    def renew(self, worker: str) -> None:
        """Put a fresh process in the place of the one at an address; what else it had to do is done again."""
        ...

    def leave_out(self, worker: str) -> None:
        """Do without the process at an address."""
        ...

    def run(
        self, function: Callable[[Task], Result], feed: Feed[Task]
    ) -> Iterator[tuple[Task, Result | WorkerKilled] | None]:
        """Tasks with their results in the order in which they finish; None when nothing happened for a TICK.

        An exception of a task is raised here and ends the run. What is put back into the feed between two results is
        done as well.

        Raises:
            ClusterLost: no scheduler or no worker for longer than is patient.
        """
        ...


class InProcess:
    """One task after the other, here."""

    dashboard = None
    distributed = False
    workers = 1

    def renew(self, worker: str) -> None:
        raise RuntimeError("this process cannot replace itself")

    leave_out = renew

    def run(
        self, function: Callable[[Task], Result], feed: Feed[Task]
    ) -> Iterator[tuple[Task, Result | WorkerKilled] | None]:
        while (found := feed.next()) is not None:
            yield found[0], function(found[0])


class OnDask:
    """A bounded window of tasks on the workers of a Dask scheduler, whose loss it survives when another comes in time.

    Memory does not grow with the number of tasks: what is in flight is two tasks per thread of the workers.
    """

    distributed = True

    def __init__(self, address: str, patience: float = PATIENCE) -> None:
        self._address, self._patience = address, patience
        self._client = self._connect()
        self._threads: Mapping[str, int] = {}
        self._left_out: set[str] = set()
        self._looked = -math.inf
        self._seen_worker = time.monotonic()

    @property
    def dashboard(self) -> str | None:
        return self._client.dashboard_link if find_spec("bokeh") else None

    @property
    def workers(self) -> int:
        return len(self._look())

    def close(self) -> None:
        with suppress(OSError):  # nobody answers
            self._client.close()

    def renew(self, worker: str) -> None:
        with suppress(OSError, TimeoutError):  # one without a nanny ends, and is not there any more
            self._client.restart_workers([worker], timeout=RENEWAL, raise_for_error=False)
        self._looked = -math.inf

    def leave_out(self, worker: str) -> None:
        with suppress(OSError, TimeoutError):
            self._client.retire_workers([worker], close_workers=True)
        self._left_out.add(worker)  # Dask keeps the last one, which holds what it answered
        self._looked = -math.inf

    def run(
        self, function: Callable[[Task], Result], feed: Feed[Task]
    ) -> Iterator[tuple[Task, Result | WorkerKilled] | None]:
        running: dict[Future, Task] = {}
        done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._seen_worker = time.monotonic()
        while True:
            window = WINDOW * max(1, sum(self._look().values()))
            while len(running) < window and (found := feed.next()) is not None:
                task, avoid = found
                try:
                    future = self._submit(function, task, avoid)
                except ClosedClientError:
                    feed.put_back(task, avoid)
                    self._start_over(running, feed)
                    continue
                running[future] = task
                future.add_done_callback(done.put)
            if not running:
                return
            try:
                future = done.get(timeout=TICK)
            except queue.Empty:
                if self._client.status == "closed" or self._client.scheduler is None:
                    self._start_over(running, feed)
                self._require_workers()
                yield None
                continue
            if future not in running:  # of a scheduler that was lost
                continue
            try:
                result: Result | WorkerKilled = future.result(timeout=FETCH)
            except KilledWorker as error:
                result = WorkerKilled(str(error))
            except (CancelledError, OSError) as error:
                if future.status == "error":  # the task's own
                    raise
                if isinstance(error, TimeoutError):  # its worker died after it, and another is at it
                    future.add_done_callback(done.put)
                else:  # no scheduler answers
                    self._start_over(running, feed)
                continue
            task = running.pop(future)
            future.release()
            yield task, result

    def _submit(self, function: Callable[[Task], Result], task: Task, avoid: Collection[str]) -> Future:
        others = [worker for worker in self._threads if worker not in avoid] if avoid else None
        return self._client.submit(
            _sealed_call(),
            cloudpickle.dumps((function, task)),
            key=f"{getattr(function, '__name__', 'task')}-{uuid.uuid4().hex}",
            workers=others or None,
            allow_other_workers=bool(others),
        )

    def _look(self) -> Mapping[str, int]:
        """Threads of each worker by its address, asked for every TICK."""
        if time.monotonic() - self._looked > TICK:
            try:
                found = self._client.nthreads()
                self._threads = {worker: n for worker, n in found.items() if worker not in self._left_out}
            except (OSError, TimeoutError, AttributeError):  # between two schedulers
                self._threads = {}
            self._looked = time.monotonic()
            if self._threads:
                self._seen_worker = self._looked
        return self._threads

    def _require_workers(self) -> None:
        self._look()
        if time.monotonic() - self._seen_worker > self._patience:
            raise ClusterLost(f"{self._address}: no Dask worker for {self._patience:.0f} s; start some, and run again")

    def _start_over(self, running: dict[Future, Task], feed: Feed[Task]) -> None:
        """After the scheduler was lost: wait for it, or another in its place, and do again what was in flight."""
        for task in running.values():
            feed.put_back(task)
        running.clear()
        with suppress(OSError):  # it takes longer: nobody answers
            self._client.close(timeout=1)
        self._client = self._connect()
        self._looked = -math.inf

    def _connect(self) -> Client:
        for name in ("distributed", "distributed.client"):  # what they would say is said here, in one line
            logging.getLogger(name).setLevel(logging.CRITICAL)
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return Client(_address(self._address), timeout=min(10, self._patience))
            except (OSError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise ClusterLost(
                        f"{self._address}: no Dask scheduler answered for {self._patience:.0f} s"
                    ) from error
                time.sleep(min(TICK, self._patience))
            except ValueError as error:
                raise ClusterLost(f"{self._address}: not the address of a Dask scheduler ({error})") from error


def _address(where: str) -> str:
    """An address, or the one in a scheduler file. Raises OSError while the file is missing, or not yet whole."""
    if "://" in where or (os.sep not in where and not where.endswith(".json") and not os.path.isfile(where)):
        return where
    try:
        return str(json.loads(Path(where).read_text())["address"])
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"{where}: not a scheduler file, or not yet a whole one") from error


class Workers(AbstractContextManager["Workers"]):
    """The workers of one or several jobs: started when the first has something to do, kept until the context ends.

    Args:
        device: "cpu", "cuda" or "auto"; workers of our own take the GPUs in turn.

    Attributes:
        on_start: called with the address of Dask's dashboard, or None, when workers were started.
    """

    def __init__(self, resources: Resources, device: str = "auto") -> None:
        self.resources = resources
        self.on_start: Callable[[str | None], None] = lambda dashboard: None
        self._gpus = visible_gpus() if device != "cpu" else []
        self._stack = ExitStack()
        self._runner: Runner | None = None
        self._count = 0

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def count(self) -> int:
        """Processes of our own that a job with enough to do gets."""
        return self.resources.workers or len(self._gpus) or cores()

    def runner(self, n_tasks: int) -> Runner:
        """Something to run so many tasks on; beside a GPU always another process, which can be replaced and writes one
        block while it computes the next. Raises ClusterLost.
        """
        count = min(self.count, max(1, n_tasks))
        if self._runner is None or (self.resources.scheduler is None and count > self._count):
            self._stack.close()
            self._count = count
            self._runner = self._start(count)
            self.on_start(self._runner.dashboard)
        return self._runner

    def _start(self, count: int) -> Runner:
        address = self.resources.scheduler
        if address is None and count == 1 and not self._gpus:
            return (
                InProcess()
            )  # beside a GPU one block is written while the next is computed, by a process that can end
        if address is None:
            limit = self.resources.memory_limit or MEMORY_LIMIT // count
            address = self._stack.enter_context(_local_cluster(count, self._gpus, limit)).scheduler_address
        runner = OnDask(address, self.resources.patience)
        self._stack.callback(runner.close)
        return runner


def _sealed_call() -> Callable[[bytes], Any]:
    """A function that unpacks another and its task, and calls it: only workers look into what is sent.

    A scheduler unpacks what it is given. Made here, inside a function, this one travels as code, not as the name of
    this module, which would make the scheduler import torch: 700 MB, for nothing.
    """

    def call(packed: bytes) -> Any:
        import pickle

        function, task = pickle.loads(packed)
        return function(task)

    return call


@contextmanager
def _local_cluster(count: int, gpus: list[str], memory_limit: int) -> Generator[SpecCluster, None, None]:
    """A scheduler in this process and `count` workers, each with a GPU (two threads: one writes) or a core."""
    options = {
        "nthreads": 2 if gpus else 1,
        "memory_limit": memory_limit,
        "silence_logs": logging.CRITICAL,
    }
    workers = {
        number: {
            "cls": Nanny,
            "options": options
            | {"env": {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}, "name": number},
        }
        for number in range(count)
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}}
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT}),
        _workers_deaf_to_interrupts(),
    ):
        cluster = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
    with cluster:
        yield cluster


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


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
