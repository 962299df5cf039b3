"""Running tasks on workers: in this process, or on a local Dask cluster with a bounded window of tasks in flight."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import dask
import torch
from distributed import Client, LocalCluster, as_completed

Task = TypeVar("Task")
Result = TypeVar("Result")

# Each worker has a core to itself. Dask's own default here, MALLOC_TRIM_THRESHOLD_, is left out on purpose: it makes
# glibc map and return every large array, which slowed the rendering of worlds 2.4 times.
WORKER_ENVIRONMENT = {
    "OPENCV_FOR_THREADS_NUM": 1,
    "OMP_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
    "OPENBLAS_NUM_THREADS": 1,
}
WINDOW = 2  # tasks in flight per worker: one runs, one waits


def default_workers(device: str) -> int:
    """One worker per GPU, or one per core without GPUs."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(function: Callable[[Task], Result], tasks: Iterator[Task], workers: int) -> Iterator[Result]:
    """Results in the order in which tasks finish. With one worker everything runs in this process.

    An exception of a task is raised here and ends the run.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT}),
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        Client(cluster) as client,
    ):

        def submit(task: Task) -> object:
            return client.submit(function, task, pure=False)

        first = [submit(task) for _, task in zip(range(WINDOW * workers), tasks, strict=False)]
        running = as_completed(first)
        for future in running:
            result = future.result()
            future.release()
            task = next(tasks, None)
            if task is not None:
                running.add(submit(task))
            yield result
