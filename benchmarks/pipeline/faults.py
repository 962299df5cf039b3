"""Jobs that are killed, starved and lied to, at random moments: whatever happens, a later run ends with the same bytes.

python -m benchmarks.pipeline.faults [--kills 120] [--seed 0] [--slice]

Small jobs run on a scheduler, two workers and a client, each a process of its own with a folder of its own. After
every fault the store is opened and verified: what it calls done must equal an undisturbed store, and never gets less.
After a last run every file of the store must be the undisturbed one's, byte for byte. Prints a table, writes
results/faults.json, and ends with 1 when anything was lost or wrong. Needs fork (Linux).
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1"}  # before numpy is there

import argparse
import asyncio
import contextlib
import errno
import json
import platform
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import cv2
import dask
import numpy as np
from distributed import Scheduler, Worker
from PIL import Image

from benchmarks.common.figures import RESULTS
from samdeblur.cli import prep
from samdeblur.pipeline.job import coordinator, worker
from samdeblur.storage import files, open_store
from samdeblur.storage.format.layout import DONE
from samdeblur.storage.sharing.verify import verify_store
from samdeblur.storage.writing import lease

IMAGES = 24
HANGS = 120  # seconds after which a job counts as hung
TTL = 2.0  # seconds after which a silent worker counts as lost
OPTIONS = ["--split", "test", "--segmenter", "superpixels", "--block-size", "1", "--progress", "none"]


class Process:
    """A function in a forked process, with its output in a file. The parent itself never touches a store."""

    def __init__(self, folder: Path, name: str, work: Callable[[], object]) -> None:
        self.log = folder / f"{name}.log"
        self.code: int | None = None
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            home = folder / name
            home.mkdir(exist_ok=True)
            os.chdir(home)
            with open(self.log, "wb", buffering=0) as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            code = 70
            try:
                work()
                code = 0
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)

    def wait(self, seconds: float = HANGS) -> int | None:
        """The exit code, minus the signal that ended it; None when it still runs after so long."""
        deadline = time.monotonic() + seconds
        while self.code is None and time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.005)
        return self.code

    def kill(self, number: int = signal.SIGKILL) -> bool:
        """Whether it was there to be sent a signal."""
        if self.wait(0.001) is not None:
            return False
        os.kill(self.pid, number)
        return True


def run_prep(arguments: list[str], commit_seconds: float, before: Callable[[], None] = lambda: None) -> None:
    coordinator.COMMIT_SECONDS = commit_seconds
    before()
    sys.argv = ["samdeblur-prep", "run", *arguments]
    prep.main()


def run_scheduler(port: int) -> None:
    async def serve() -> None:
        async with Scheduler(host="127.0.0.1", port=port, dashboard=False) as scheduler:
            await scheduler.finished()

    dask.config.set({"distributed.scheduler.worker-ttl": f"{TTL}s", "distributed.scheduler.allowed-failures": 3})
    asyncio.run(serve())


def run_worker(port: int, before: Callable[[], None] = lambda: None) -> None:
    async def serve() -> None:
        address = f"tcp://127.0.0.1:{port}"
        async with Worker(address, nthreads=1, memory_limit=0, dashboard=False, death_timeout=30) as server:
            await server.finished()

    before()
    asyncio.run(serve())


class Campaign:
    """One folder with a dataset, the undisturbed store, and the stores of the trials."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.pairs, self.reference = folder / "pairs", folder / "undisturbed.zarr"
        self.rows: dict[str, dict[str, int]] = {}
        self.wrong: list[str] = []
        self.numbers = iter(range(10**6))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        write_pairs(self.pairs)
        start = time.monotonic()
        job = self.client(self.reference, on_cluster=False)
        assert job.wait() == 0, job.log.read_text()
        self.seconds = time.monotonic() - start  # of an undisturbed job
        self.expected = contents(self.reference)

    # Processes

    def client(self, store: Path, on_cluster: bool = True, before: Callable[[], None] = lambda: None,
               *options: str) -> Process:  # fmt: skip
        where = ["--scheduler", f"tcp://127.0.0.1:{self.port}", "--patience", "30"]
        arguments = [str(self.pairs), str(store), *OPTIONS, *(where if on_cluster else ["--workers", "1"]), *options]
        seconds = self.random.choice([0.0, 0.05, 0.3])
        return Process(self.folder, "client", lambda: run_prep(arguments, seconds, before))

    def scheduler(self) -> Process:
        return Process(self.folder, "scheduler", lambda: run_scheduler(self.port))

    def worker(self, number: int, before: Callable[[], None] = lambda: None) -> Process:
        return Process(self.folder, f"worker{number}", lambda: run_worker(self.port, before))

    # What must hold

    def check(self, kind: str, store: Path, before: set[str]) -> set[str]:
        """The images a store calls done; notes what is wrong with it."""
        answer = self.folder / "answer.json"
        answer.unlink(missing_ok=True)

        def look() -> None:
            found: dict[str, Any] = {"done": [], "problems": []}
            if (store / "zarr.json").exists():
                opened, reference = open_store(store), open_store(self.reference)
                found["problems"] = list(verify_store(store))
                found["done"] = [key for key, state in zip(opened.keys, opened.states, strict=True) if state == DONE]
                found["problems"] += [
                    f"{key}: other masks" for key in found["done"] if opened.atoms(key) != reference.atoms(key)
                ]
            answer.write_text(json.dumps(found))

        if Process(self.folder, "check", look).wait() != 0:
            self.blame(kind, f"{store.name}: cannot be opened ({(self.folder / 'check.log').read_text()[-300:]})")
            return before
        found = json.loads(answer.read_text())
        for problem in found["problems"]:
            self.blame(kind, f"{store.name}: {problem}")
        for key in sorted(before - {*found["done"]}):
            self.blame(kind, f"{store.name}: {key} was done, and is not any more")
        return {*found["done"]}

    def finish(self, kind: str, store: Path, *options: str) -> None:
        """The last run, by itself; the store must then be the undisturbed one."""
        job = self.client(store, False, lambda: None, *options)
        if job.wait() != 0:
            self.blame(kind, f"{store.name}: the last run ended with {job.code}: {job.log.read_text()[-300:]}")
        found = contents(store)
        if found != self.expected:
            names = sorted(name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name))
            self.blame(kind, f"{store.name}: {len(names)} files differ, such as {names[0]}")
        left = list(store.with_name(store.name + ".run").rglob("staging"))
        if left:
            self.blame(kind, f"{store.name}: staged shards were left behind")
        self.rows[kind]["stores"] += 1
        shutil.rmtree(store, ignore_errors=True)
        shutil.rmtree(store.with_name(store.name + ".run"), ignore_errors=True)

    def blame(self, kind: str, what: str) -> None:
        self.rows[kind]["wrong"] += 1
        self.wrong.append(f"{kind}: {what}")

    def new_store(self, kind: str) -> Path:
        self.rows.setdefault(kind, {"faults": 0, "stores": 0, "runs": 0, "wrong": 0})
        return self.folder / f"{next(self.numbers):03d}.zarr"

    # Trials. Each does at least `count` faults of its kind.

    def kill_alone(self, kind: str, count: int, number: int = signal.SIGKILL) -> None:
        """A job in one process gets a signal, again and again, until it is done."""
        while self.rows.get(kind, {}).get("faults", 0) < count:
            store, done = self.new_store(kind), set[str]()
            while True:
                job = self.client(store, on_cluster=False)
                self.rows[kind]["runs"] += 1
                if job.wait(self.random.uniform(0, 1.1 * self.seconds)) is not None:
                    self.seconds = min(self.seconds, time.monotonic() - job.started)
                    break
                job.kill(number)
                code = job.wait()
                if code not in (-number, 130, 0):
                    self.blame(kind, f"ended with {code}: {job.log.read_text()[-300:]}")
                self.rows[kind]["faults"] += 1
                done = self.check(kind, store, done)
            self.finish(kind, store)

    def kill_parts(self, kind: str, count: int, parts: tuple[str, ...], number: int = signal.SIGKILL) -> None:
        """A job on a cluster; parts of it get a signal, and come back, until it is done."""
        running = {"scheduler": self.scheduler(), "worker0": self.worker(0), "worker1": self.worker(1)}
        again = {"scheduler": self.scheduler, "worker0": lambda: self.worker(0), "worker1": lambda: self.worker(1)}
        try:
            while self.rows.get(kind, {}).get("faults", 0) < count:
                store, done = self.new_store(kind), set[str]()
                while True:
                    for name in again:  # workers leave with their scheduler
                        if running[name].wait(0.001) is not None:
                            running[name] = again[name]()
                    job = self.client(store)
                    self.rows[kind]["runs"] += 1
                    if job.wait(self.random.uniform(0, 1.5 * self.seconds)) is not None and job.code == 0:
                        self.seconds = min(self.seconds, time.monotonic() - job.started)
                        break
                    hit = [running.get(name, job).kill(number) for name in parts]
                    self.rows[kind]["faults"] += sum(hit)
                    deadline = time.monotonic() + HANGS
                    while job.wait(0.05) is None and time.monotonic() < deadline:
                        for name in again:
                            if running[name].wait(0.001) is not None:
                                running[name] = again[name]()
                    if job.code is None:
                        self.blame(kind, f"hung: {job.log.read_text()[-300:]}")
                        job.kill()
                        job.wait()
                    done = self.check(kind, store, done)
                    if job.code == 0:
                        break
                    if job.code not in (-number, 130):
                        self.blame(kind, f"ended with {job.code}: {job.log.read_text()[-300:]}")
                        break
                self.finish(kind, store)
        finally:
            for process in running.values():
                process.kill()
                process.wait()

    def stop_and_go(self, kind: str, count: int) -> None:
        """A worker falls silent, is given up, and comes back late with what it did."""
        while self.rows.get(kind, {}).get("faults", 0) < count:
            store = self.new_store(kind)
            running = [self.scheduler(), self.worker(0), self.worker(1)]
            job = self.client(store)
            self.rows[kind]["runs"] += 1
            if job.wait(self.random.uniform(0.3, 1.5 * self.seconds)) is None and running[1].kill(signal.SIGSTOP):
                self.rows[kind]["faults"] += 1
                job.wait(self.random.uniform(0.5 * TTL, 2 * TTL))
                running[1].kill(signal.SIGCONT)
            if job.wait() != 0:
                self.blame(kind, f"ended with {job.code}: {job.log.read_text()[-300:]}")
                job.kill()
            for process in running:
                process.kill()
                process.wait()
            self.check(kind, store, set())
            self.finish(kind, store)

    def patched(self, kind: str, count: int, spoil: Callable[[], None], where: str, codes: tuple[int, ...],
                *options: str) -> None:  # fmt: skip
        """A job in which something fails: `spoil` is called in the process `where` before it starts."""
        for _ in range(count):
            store = self.new_store(kind)
            self.rows[kind]["faults"] += 1
            self.rows[kind]["runs"] += 1
            running = []
            if where == "worker":
                running = [self.scheduler(), *(self.worker(n, spoil) for n in range(2))]
                job = self.client(store)
            else:
                job = self.client(store, False, spoil)
            if job.wait() not in codes:
                self.blame(kind, f"ended with {job.code}: {job.log.read_text()[-600:]}")
                job.kill()
            for process in running:
                process.kill()
                process.wait()
            self.check(kind, store, set())
            self.finish(kind, store, *options)

    def two_jobs(self, kind: str, count: int) -> None:
        """A job is held up until its lease is over; another takes the store; the first comes back."""

        def short_lease() -> None:
            lease.LEASE_SECONDS = 0.4

        for _ in range(count):
            store = self.new_store(kind)
            first = self.client(store, False, short_lease)
            if first.wait(self.random.uniform(0.1, 0.9) * self.seconds) is None:
                first.kill(signal.SIGSTOP)
                self.rows[kind]["faults"] += 1
            while True:
                second = self.client(store, False, short_lease)
                self.rows[kind]["runs"] += 1
                if self.random.random() < 0.5:
                    second.wait(self.random.uniform(0, self.seconds))
                    first.kill(signal.SIGCONT)
                if second.wait() == 0:
                    break
                if second.code != 1:
                    self.blame(kind, f"ended with {second.code}: {second.log.read_text()[-300:]}")
                time.sleep(0.2)
            first.kill(signal.SIGCONT)
            if first.wait() not in (0, 1):
                self.blame(kind, f"the first ended with {first.code}: {first.log.read_text()[-300:]}")
            self.check(kind, store, set())
            self.finish(kind, store)

    def full_disk(self, kind: str, count: int) -> None:
        """A small file system that gets full, and is enlarged later. Needs the right to mount."""
        for _ in range(count):
            self.new_store(kind)
            disk = self.folder / "disk"
            disk.mkdir(exist_ok=True)
            size = self.random.randrange(40, 700)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "samdeblur", str(disk)]
            if subprocess.run(mount, capture_output=True).returncode:
                print("full disk: no right to mount here, left out", flush=True)
                del self.rows[kind]
                return
            try:
                store = disk / "store.zarr"
                done: set[str] = set()
                for _ in range(2):
                    job = self.client(store, False)
                    self.rows[kind]["runs"] += 1
                    if job.wait() not in (0, 1):
                        self.blame(kind, f"ended with {job.code}: {job.log.read_text()[-300:]}")
                    self.rows[kind]["faults"] += job.code == 1
                    done = self.check(kind, store, done)
                subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
                self.finish(kind, store)
            finally:
                subprocess.run(["umount", "-l", str(disk)], check=True)


class Spoiled:
    """Ways to make a process fail. Each is called in that process before it starts its work."""

    number: ClassVar[int] = 0

    @classmethod
    def at_random(cls, seed: int, most: int) -> int:
        """A number of this process: the workers of a job fail at different moments."""
        return random.Random(f"{seed} {os.getpid()}").randrange(most)

    @staticmethod
    def writes(seed: int, code: int, most: int) -> Callable[[], None]:
        """A write to the disk fails once."""

        def spoil() -> None:
            count, at, durably = iter(range(10**6)), Spoiled.at_random(seed, most), files.write_durably

            def write(path: Path, data: bytes) -> None:
                if next(count) == at:
                    raise OSError(code, os.strerror(code), str(path))
                durably(path, data)

            files.write_durably = write

        return spoil

    @staticmethod
    def reads(seed: int, code: int) -> Callable[[], None]:
        """An image cannot be read, once."""

        def spoil() -> None:
            count, at, open_image = iter(range(10**6)), Spoiled.at_random(seed, IMAGES), Image.open

            def open_spoiled(path: Any, *arguments: Any, **more: Any) -> Any:
                if next(count) == IMAGES + at:  # the first look at all of them is the plan's
                    raise OSError(code, os.strerror(code), str(path))
                return open_image(path, *arguments, **more)

            Image.open = open_spoiled

        return spoil

    @staticmethod
    def file_size(limit: int) -> Callable[[], None]:
        """No file may grow beyond a size."""
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    @staticmethod
    def twice(seed: int) -> Callable[[], None]:
        """Every block is done twice at the same time; one of the two counts."""

        def spoil() -> None:
            once, choose = worker.run_block, random.Random(seed)
            worker._device = contextlib.nullcontext()

            def run_twice(task: Any) -> Any:
                with ThreadPoolExecutor(2) as pool:
                    return choose.choice(list(pool.map(once, [task, task])))

            worker.run_block = run_twice

        return spoil

    @staticmethod
    def deadly_image(key: str) -> Callable[[], None]:
        """A worker dies whenever it meets an image."""

        def spoil() -> None:
            find = worker._find_masks

            def deadly(image: Any, *more: Any) -> Any:
                if image.key == key and image.error is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return find(image, *more)

            worker._find_masks = deadly

        return spoil


def deadly(campaign: Campaign, kind: str, count: int) -> None:
    """Workers that die at one image, and come back as those of a nanny do; the image alone is given up."""
    for _ in range(count):
        store = campaign.new_store(kind)
        campaign.rows[kind]["runs"] += 1
        spoil = Spoiled.deadly_image(f"{campaign.random.randrange(IMAGES):03d}")
        running = [campaign.scheduler(), campaign.worker(0, spoil), campaign.worker(1, spoil)]
        job = campaign.client(store)
        deadline = time.monotonic() + HANGS
        while job.wait(0.05) is None and time.monotonic() < deadline:
            for number in (1, 2):
                if running[number].wait(0.001) is not None:
                    campaign.rows[kind]["faults"] += 1
                    running[number] = campaign.worker(number - 1, spoil)
        if job.code != 3:
            campaign.blame(
                kind, f"ended with {job.code}, not with one image in quarantine: {job.log.read_text()[-300:]}"
            )
            job.kill()
            job.wait()
        for process in running:
            process.kill()
            process.wait()
        campaign.check(kind, store, set())
        campaign.finish(kind, store, "--retry-quarantined")


def write_pairs(folder: Path) -> None:
    for number in range(IMAGES):
        rng = np.random.default_rng(number)
        sharp = np.full((48 + number, 64, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(4):
            centre, colour = rng.integers(8, 40, 2).tolist(), rng.integers(0, 256, 3).tolist()
            cv2.circle(sharp, centre, int(rng.integers(5, 14)), colour, -1)
        for side, image in (("sharp", sharp), ("blur", cv2.blur(sharp, (5, 3)))):
            (folder / side).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / side / f"{number:03d}.png"), image)


def contents(store: Path) -> dict[str, bytes]:
    return {str(f.relative_to(store)): f.read_bytes() for f in sorted(store.rglob("*")) if f.is_file()}


def run_campaign(folder: Path, kills: int, seed: int, slice_only: bool, only: str) -> Campaign:
    campaign = Campaign(folder, seed)
    draw = campaign.random.randrange
    share = max(1, kills // 12)  # of each kind
    dead = ("client", "worker0")
    trials: list[tuple[str, Callable[[str], None]]] = [
        ("SIGKILL, job in one process", lambda kind: campaign.kill_alone(kind, 2 * share)),
        ("SIGKILL, a worker", lambda kind: campaign.kill_parts(kind, 2 * share, ("worker0",))),
        ("SIGKILL, the scheduler", lambda kind: campaign.kill_parts(kind, share, ("scheduler",))),
        ("SIGKILL, client of a cluster", lambda kind: campaign.kill_parts(kind, share, ("client",))),
        ("SIGKILL, all", lambda kind: campaign.kill_parts(kind, 2 * share, ("scheduler", "worker1", *dead))),
        ("SIGKILL, client and worker", lambda kind: campaign.kill_parts(kind, 2 * share, dead)),
        ("SIGTERM, job in one process", lambda kind: campaign.kill_alone(kind, share, signal.SIGTERM)),
        ("SIGINT, client of a cluster", lambda kind: campaign.kill_parts(kind, share, ("client",), signal.SIGINT)),
        ("a worker silent, late back", lambda kind: campaign.stop_and_go(kind, max(1, share // 3))),
        ("a deadly image", lambda kind: deadly(campaign, kind, max(1, share // 6))),
        ("two jobs, a lease runs out", lambda kind: campaign.two_jobs(kind, share)),
    ]
    for name, where, spoil, codes, options in (
        ("write fails, one process", "client", lambda: Spoiled.writes(draw(999), errno.EIO, 150), (0, 1), ()),
        ("write fails, workers", "worker", lambda: Spoiled.writes(draw(999), errno.EIO, 40), (0, 1), ()),
        ("disk full once, workers", "worker", lambda: Spoiled.writes(draw(999), errno.ENOSPC, 40), (0, 1), ()),
        ("read fails", "client", lambda: Spoiled.reads(draw(999), errno.EIO), (0, 3), ("--retry-quarantined",)),
        ("mount lost, one process", "client", lambda: Spoiled.reads(draw(999), errno.ESTALE), (0, 1), ()),
        ("mount lost, workers", "worker", lambda: Spoiled.reads(draw(999), errno.ESTALE), (0, 1), ()),
        ("file-size limit", "client", lambda: Spoiled.file_size(draw(1500, 12000)), (0, 1), ()),
        ("every block twice", "worker", lambda: Spoiled.twice(draw(999)), (0,), ()),
    ):

        def spoiled(
            kind: str, where: str = where, spoil: Any = spoil, codes: Any = codes, options: Any = options
        ) -> None:
            for _ in range(max(1, share // 2)):
                campaign.patched(kind, 1, spoil(), where, codes, *options)

        trials.append((name, spoiled))
    trials.append(("full disk", lambda kind: campaign.full_disk(kind, max(1, share // 3))))
    for kind, trial in trials:
        if only not in kind:
            continue
        if slice_only and sum(row["faults"] for row in campaign.rows.values()) >= kills:
            break
        start = time.monotonic()
        trial(kind)
        if kind in campaign.rows:
            row = campaign.rows[kind]
            print(
                f"{kind:30} {row['faults']:6} faults {row['runs']:5} runs {row['stores']:5} stores "
                f"{row['wrong']:5} wrong   {time.monotonic() - start:6.1f} s",
                flush=True,
            )
    return campaign


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=120, help="at least so many faults in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slice", action="store_true", help="stop after so many; not every kind gets its turn")
    parser.add_argument("--only", default="", help="kinds whose name holds this; the others keep their results")
    parser.add_argument("--out", type=Path, default=RESULTS / "faults.json")
    options = parser.parse_args()
    assert threading.active_count() == 1  # or forks would be unsafe
    with tempfile.TemporaryDirectory() as folder:
        campaign = run_campaign(Path(folder), options.kills, options.seed, options.slice, options.only)
    kinds = json.loads(options.out.read_text())["kinds"] if options.only else {}
    kinds |= campaign.rows
    total = {name: sum(row[name] for row in kinds.values()) for name in ("faults", "runs", "stores", "wrong")}
    print(f"{'all':30} " + "  ".join(f"{number} {name}" for name, number in total.items()))
    for line in campaign.wrong:
        print(line)
    document = {"seed": options.seed, "machine": platform.machine(), "total": total, "kinds": kinds}
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(1 if campaign.wrong or total["faults"] < options.kills else 0)


if __name__ == "__main__":
    main()
