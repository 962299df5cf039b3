"""Where the tasks of a job run: in this process, on a Dask cluster of this machine, or on one that runs already."""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import cloudpickle
from dask.system import CPU_COUNT
from distributed import Client, Future
from distributed.client import ClosedClientError
from distributed.scheduler import KilledWorker

from samdeblur.pipeline.job.attendance import SILENT, Attendance
from samdeblur.pipeline.job.local import local_cluster, memory_of_each, most_workers, visible_gpus
from samdeblur.storage.processes import Note

Task = TypeVar("Task")
Result = TypeVar("Result")

WINDOW = 2  # tasks in flight per thread of a worker: one runs, one waits
TICK = 1.0  # seconds without a result after which `run` says so
FETCH = 30.0  # seconds to fetch a small result in
RENEWAL = 30.0  # seconds to wait for a process that replaces another
PATIENCE = 300.0  # seconds without a worker, or a scheduler, after which a run ends
UP = 60.0  # the same for processes of its own
LOOK = 5.0  # seconds between two looks at how workers are while nothing comes
SAY = 20.0  # seconds of waiting after which a run says what it waits for


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

    Memory does not grow with the number of tasks: what is in flight is two tasks per thread of the workers. Tasks of a
    worker that is not heard of any more are done by others as well; what comes back first counts.

    Args:
        own: how much memory workers have that were started for this; nothing for those of others.
    """

    distributed = True

    def __init__(self, address: str, patience: float = PATIENCE, own: str = "") -> None:
        self._address, self._patience, self._own = address, patience, own
        self._lines_said: set[str] = set()
        self._client = self._connect()
        self._threads: Mapping[str, int] = {}
        self._left_out: set[str] = set()
        self._refreshed_at = self._checked_at = -math.inf
        self._seen_worker = time.monotonic()
        self._attendance = Attendance()
        self._given_up: set[str] = set()

    @property
    def dashboard(self) -> str | None:
        return self._client.dashboard_link if find_spec("bokeh") else None

    @property
    def workers(self) -> int:
        return len(self._refresh_workers())

    def close(self) -> None:
        with suppress(OSError):  # nobody answers
            self._client.close()

    def renew(self, worker: str) -> None:
        with suppress(OSError, TimeoutError):  # one without a nanny ends, and is not there any more
            self._client.restart_workers([worker], timeout=RENEWAL, raise_for_error=False)
        self._refreshed_at = -math.inf

    def leave_out(self, worker: str) -> None:
        with suppress(OSError, TimeoutError):
            self._client.retire_workers([worker], close_workers=True)
        self._left_out.add(worker)  # Dask keeps the last one, which holds what it answered
        self._refreshed_at = -math.inf

    def run(
        self, function: Callable[[Task], Result], feed: Feed[Task]
    ) -> Iterator[tuple[Task, Result | WorkerKilled] | None]:
        running: dict[Future, Task] = {}
        done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._seen_worker = time.monotonic()
        while True:
            window = WINDOW * max(1, sum(self._refresh_workers().values()))
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
                self._check_silent_workers(running, feed)
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

    def _refresh_workers(self) -> Mapping[str, int]:
        """Threads of each worker by its address, asked for every TICK."""
        if time.monotonic() - self._refreshed_at > TICK:
            try:
                found = self._client.nthreads()
                self._threads = {worker: n for worker, n in found.items() if worker not in self._left_out}
            except (OSError, TimeoutError, AttributeError):  # between two schedulers
                self._threads = {}
            self._refreshed_at = time.monotonic()
            if self._threads:
                self._seen_worker = self._refreshed_at
        return self._threads

    def _require_workers(self) -> None:
        self._refresh_workers()
        waited = time.monotonic() - self._seen_worker
        if waited > self._patience and self._own:
            raise ClusterLost(
                f"worker processes ({self._own}) keep dying, usually for lack of memory; give them more with "
                "--memory-limit, or take fewer --workers"
            )
        if waited > self._patience:
            raise ClusterLost(f"{self._address}: no Dask worker for {self._patience:.0f} s; start some, and run again")
        if waited > SAY:
            self._warn_once(f"{self._address}: no Dask worker; waiting for one, for {self._patience:.0f} s")

    def _check_silent_workers(self, running: dict[Future, Task], feed: Feed[Task]) -> None:
        """While nothing comes: what silent workers are at goes to others. Raises ClusterLost where all are paused."""
        if time.monotonic() - self._checked_at < LOOK:
            return
        self._checked_at = time.monotonic()
        try:
            workers = self._identity()["workers"]
            silent = {*self._attendance.look(workers)}
            for worker in silent - self._given_up:
                self._warn_once(
                    f"Dask worker {worker} has not answered for {SILENT:.0f} s: it is suspended, or its host is "
                    "unreachable; its blocks go to other workers"
                )
                held = {*self._client.processing([worker]).get(worker, ())}
                for future in [future for future in running if future.key in held]:
                    feed.put_back(running.pop(future), (worker,))
                    future.cancel()
            self._given_up = silent
        except (OSError, TimeoutError, AttributeError):  # between two schedulers
            return
        if self._attendance.paused > self._patience:
            raise ClusterLost(
                f"{self._address}: all Dask workers are paused, over 80% of their memory, for {self._patience:.0f} s; "
                "start them with a higher --memory-limit, and run again"
            )
        if self._attendance.paused > SAY:
            self._warn_once(f"{self._address}: all Dask workers are paused, over 80% of their memory; waiting for them")

    def _identity(self) -> dict[str, Any]:
        """What `Client.scheduler_info` says, but of all workers: that of some versions says it of five."""
        found: dict[str, Any] = self._client.sync(self._client.scheduler.identity)
        return found

    def _warn_once(self, line: str) -> None:
        """A line, once."""
        if line not in self._lines_said:
            self._lines_said.add(line)
            warnings.warn(Note(line), stacklevel=2)

    def _start_over(self, running: dict[Future, Task], feed: Feed[Task]) -> None:
        """After the scheduler was lost: wait for it, or another in its place, and do again what was in flight."""
        for task in running.values():
            feed.put_back(task)
        running.clear()
        with suppress(OSError):  # it takes longer: nobody answers
            self._client.close(timeout=1)
        self._client = self._connect()
        self._refreshed_at = -math.inf

    def _connect(self) -> Client:
        for name in ("distributed", "distributed.client"):  # what they would say is said here, in one line
            logging.getLogger(name).setLevel(logging.CRITICAL)
        start = time.monotonic()
        while True:
            try:
                # Not the default client: what else the caller computes with Dask stays where it was.
                return Client(_address(self._address), timeout=min(10, self._patience), set_as_default=False)
            except (OSError, TimeoutError) as error:
                waited = time.monotonic() - start
                if waited > self._patience:
                    raise ClusterLost(f"{_why_no_scheduler(self._address)} for {self._patience:.0f} s") from error
                if waited > SAY:
                    self._warn_once(f"{_why_no_scheduler(self._address)}; waiting for one, for {self._patience:.0f} s")
                time.sleep(min(TICK, self._patience))
            except ValueError as error:
                raise ClusterLost(f"{self._address}: not the address of a Dask scheduler ({error})") from error


def _is_address(where: str) -> bool:
    return "://" in where or (os.sep not in where and not where.endswith(".json") and not os.path.isfile(where))


def _address(where: str) -> str:
    """An address, or the one in a scheduler file. Raises OSError while the file is missing, or not yet whole."""
    if _is_address(where):
        return where
    try:
        return str(json.loads(Path(where).read_text(encoding="utf-8"))["address"])
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"{where}: not a scheduler file, or not yet a whole one") from error


def _why_no_scheduler(where: str) -> str:
    """That nobody answers, at which address, and by whose word."""
    if _is_address(where):
        return f"{where}: no Dask scheduler answered"
    try:
        return f"{where}: names {_address(where)}, perhaps of a scheduler that has ended: no Dask scheduler answered"
    except FileNotFoundError:
        return f"{where}: no such scheduler file"
    except OSError as error:
        return str(error)


class Workers(AbstractContextManager["Workers"]):
    """The workers of one or several jobs: started when the first has something to do, kept until the context ends.

    Args:
        device: "cpu", "cuda" or "auto"; workers of our own take the GPUs in turn.

    Raises:
        MemoryTooSmall: for workers of our own.

    Attributes:
        on_start: called with the address of Dask's dashboard, or None, when workers were started.
    """

    def __init__(self, resources: Resources, device: str = "auto") -> None:
        self.resources = resources
        self.on_start: Callable[[str | None], None] = lambda dashboard: None
        self._gpus = visible_gpus() if device != "cpu" else []
        if resources.scheduler is None and resources.memory_limit is not None:
            memory_of_each(1, resources.memory_limit)
        self._stack = ExitStack()
        self._runner: Runner | None = None
        self._count = 0

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    @property
    def count(self) -> int:
        """Processes of our own that a job with enough to do gets."""
        return self.resources.workers or len(self._gpus) or min(CPU_COUNT, most_workers())

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
            limit = memory_of_each(count, self.resources.memory_limit)
            address = self._stack.enter_context(local_cluster(count, self._gpus, limit)).scheduler_address
            runner = OnDask(address, min(self.resources.patience, UP), f"{limit / 1e9:.2g} GB each")
        else:
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
