"""Preparation on Dask: how it scales with workers, what overlaps, and whether 100,000 blocks cost memory.

python -m benchmarks.pipeline.cluster [--blocks 100000] [--only PART]

1. Wall time with 1, 2 and 4 worker processes and a simulated GPU stage, a sleep of constant time per image; all else
   (reading, encoding, writing, committing) is real. Workers are warm: a first job has started them.
2. The same stage in one worker of one thread and of two: with two, a block is written while the next uses the device.
3. A job of many blocks whose workers only write small files: memory of client and scheduler on the way, and the time
   of commits per block. Dask's own cost per task is that of empty tasks.
4. A folder of 10,000 pairs: how long listing it, and a dry run, take.

Prints tables, writes benchmarks/results/cluster.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from benchmarks.common.figures import RESULTS, ROOT
from samdeblur.pipeline import (
    PrepSettings,
    Resources,
    StoreOptions,
    Workers,
    make_plan,
    open_source,
    prepare,
)
from samdeblur.pipeline.job import coordinator
from samdeblur.pipeline.job.blocks import BlockReport, BlockTask
from samdeblur.pipeline.job.cluster import Feed, OnDask
from samdeblur.storage.format.layout import DONE
from samdeblur.storage.writing.commits import Committer, ImageOutcome, StagedBlock, staged_shard

CPU = PrepSettings(device="cpu")
STAGE = 0.5  # seconds per image on the simulated device
PATIENCE = 60


def simulated_device(task: BlockTask) -> Any:
    """A block as ever, but masks come from a device that takes its time."""
    import numpy

    from samdeblur.pipeline.job import worker
    from samdeblur.storage import AtomMap

    def find(image: Any, stages: Any, clock: Any) -> Any:
        with clock("segment", image.key):
            time.sleep(STAGE)
        height, width = image.pixels.shape[:2]
        rows, columns = numpy.indices((height, width))
        masks = numpy.stack([(rows - 9 * n) ** 2 + (columns - 7 * n) ** 2 < 900 for n in range(20)])
        return lambda: (AtomMap.from_masks(masks), {})

    worker._find_masks = find
    return worker.run_block(task)


def scaling(folder: Path, images: int) -> list[dict[str, Any]]:
    pairs = write_pairs(folder / "pairs", images, 256)
    source = open_source(str(pairs), "test")
    coordinator.run_block = simulated_device
    rows: list[dict[str, Any]] = []
    for count in (1, 2, 4):
        with Workers(Resources(workers=count), "cpu") as workers:
            prepare(
                source.subset(source.keys[: 2 * count]),
                folder / f"warm{count}.zarr",
                CPU,
                StoreOptions(block_size=1),
                workers,
            )
            summary = prepare(source, folder / f"{count}.zarr", CPU, StoreOptions(block_size=4), workers)
        rows.append({"workers": count, "seconds": round(summary.seconds, 2), "images/s": round(summary.rate, 3)})
        rows[-1]["efficiency"] = round(rows[0]["seconds"] / count / summary.seconds, 3)
        print(rows[-1], flush=True)
    return rows


def overlap(folder: Path) -> dict[str, Any]:
    """Large images, whose writing takes long; one worker process of one or two threads, started by hand."""
    source = open_source(str(write_pairs(folder / "large", 24, 720)), "test")
    coordinator.run_block = simulated_device
    seconds = {}
    for threads in (1, 2):
        with (
            Processes(folder, workers=1, threads=threads) as address,
            Workers(Resources(address, patience=PATIENCE)) as workers,
        ):
            prepare(
                source.subset(source.keys[:2]),
                folder / f"warm-{threads}.zarr",
                CPU,
                StoreOptions(block_size=1),
                workers,
            )
            summary = prepare(source, folder / f"threads-{threads}.zarr", CPU, StoreOptions(block_size=4), workers)
        seconds[f"{threads} threads"] = round(summary.seconds, 2)
        stages = {name: round(spent, 2) for name, spent in summary.seconds_by_stage.items()}
        print(f"{threads} threads: {summary.seconds:.2f} s; by stage {stages}", flush=True)
    return {**seconds, "ratio": round(seconds["1 threads"] / seconds["2 threads"], 3), "device": STAGE * 24}


class Processes:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder: Path, workers: int, threads: int) -> None:
        self.folder, self.workers, self.threads = folder, workers, threads
        self.running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> str:
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        dask = [
            sys.executable,
            "-m",
            "distributed.cli.dask_scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
        ]
        self.running.append(subprocess.Popen([*dask, "--scheduler-file", file], stderr=subprocess.DEVNULL))
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", file, "--no-dashboard"]
        for _ in range(self.workers):
            command = [*worker, "--nthreads", str(self.threads), "--memory-limit", "0"]
            self.running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=self.folder))
        deadline = time.monotonic() + PATIENCE
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return str(file)

    @property
    def scheduler(self) -> psutil.Process:
        return psutil.Process(self.running[0].pid)

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait()


@dataclass(frozen=True)
class ManyImages:
    """A source of images that nobody ever reads."""

    names: tuple[str, ...]
    dataset: str = "many"
    split: str = "test"
    digest: str = "pixels"
    notes: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return self.names

    def shape(self, key: str) -> tuple[int, int]:
        return 16, 16

    def subset(self, keys: Any) -> ManyImages:
        return ManyImages(tuple(keys))


def no_work(task: BlockTask) -> BlockReport:
    """A block whose shards are as small as can be."""
    staging = f"{task.staging}-{uuid.uuid4().hex[:12]}"
    for name, spec in task.header.data_arrays().items():
        path = staged_shard(Path(staging), name) / Path(*Path(spec.part_path(task.block)).parts[2:])
        os.makedirs(os.path.dirname(path))
        with open(path, "wb") as file:
            file.write(bytes(64))
    outcomes = tuple(ImageOutcome(DONE, bytes([1] * 32)) for _ in task.source.keys)
    return BlockReport(StagedBlock(task.block, staging, outcomes, (bytes([1] * 32),) * 3), {"write": 0.0})


def nothing(task: object) -> None:
    return None


def many_blocks(folder: Path, blocks: int) -> dict[str, Any]:
    coordinator.run_block = no_work
    source = ManyImages(tuple(f"{number:07d}" for number in range(blocks)))
    spent = {"commit": 0.0}
    commit = Committer.commit

    def timed(self: Committer, staged: Any) -> None:
        start = time.perf_counter()
        commit(self, staged)
        spent["commit"] += time.perf_counter() - start

    Committer.commit = timed  # type: ignore[method-assign]
    processes = Processes(folder, workers=2, threads=8)  # many in flight, as with many workers
    memory: list[dict[str, float]] = []
    done = 0

    def progress(images: int, quarantined: int) -> None:
        nonlocal done
        done += images
        if done >= blocks * (len(memory) + 1) / 20:
            here, there = (process.memory_info().rss / 2**20 for process in (psutil.Process(), processes.scheduler))
            memory.append({"blocks": done, "client MB": round(here), "scheduler MB": round(there)})
            print(memory[-1], flush=True)

    with processes as address:
        runner = OnDask(address, PATIENCE)
        start = time.perf_counter()
        tasks = min(blocks, 2_000)
        for _ in runner.run(nothing, Feed(iter(range(tasks)))):
            pass
        dask_alone = (time.perf_counter() - start) / tasks
        runner.close()
        with Workers(Resources(address, patience=PATIENCE)) as workers:
            summary = prepare(source, folder / "many.zarr", CPU, StoreOptions(False, 1), workers, progress)
    Committer.commit = commit  # type: ignore[method-assign]
    return {
        "blocks": blocks,
        "ms per block, all": round(1e3 * summary.seconds / blocks, 2),
        "ms per block, commits": round(1e3 * spent["commit"] / blocks, 2),
        "ms per empty Dask task": round(1e3 * dask_alone, 2),
        "memory": memory,
    }


def folder_of_pairs(folder: Path, pairs: int) -> dict[str, Any]:
    root = write_pairs(folder / "ten-thousand", pairs, 32)
    start = time.perf_counter()
    source = open_source(str(root), "test")
    listed = time.perf_counter()
    plan = make_plan(source, folder / "none.zarr", CPU, StoreOptions())
    planned = time.perf_counter()
    assert plan.images == pairs
    return {
        "pairs": pairs,
        "listing, pairs/s": round(pairs / (listed - start)),
        "plan, pairs/s": round(pairs / (planned - listed)),
        "both, s": round(planned - start, 2),
    }


def write_pairs(folder: Path, count: int, side: int) -> Path:
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8), (side, side))
    encoded = cv2.imencode(".png", image)[1].tobytes()
    for kind in ("blur", "sharp"):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            (folder / kind / f"{number:05d}.png").write_bytes(encoded)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=160, help="of the scaling part")
    parser.add_argument("--only", help="one part, by its name; the others keep their results")
    options = parser.parse_args()
    parts = {
        "scaling": lambda folder: scaling(folder, options.images),
        "overlap": overlap,
        "10,000 pairs": lambda folder: folder_of_pairs(folder, 10_000),
        "many blocks": lambda folder: many_blocks(folder, options.blocks),
    }
    out = RESULTS / "cluster.json"
    results: dict[str, Any] = json.loads(out.read_text()) if options.only else {}
    results |= {"machine": platform.machine(), "device stage, s per image": STAGE}
    for name, part in parts.items():
        if options.only in (None, name):
            print(f"== {name}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                results[name] = part(Path(folder))
            print(results[name])
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    from benchmarks.pipeline import cluster  # under its name, by which workers import it

    cluster.main()
