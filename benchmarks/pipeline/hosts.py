"""Several hosts and links that fail: a worker that is cut off in the middle of a block, goes on, and comes back late.

python -m benchmarks.pipeline.hosts

A scheduler, two workers and a client, each in a network and with a host name and a folder of its own, connected by a
switch; the disk is shared. Links are cut and mended as one pulls a cable. Whatever a worker wrote that was given up
meanwhile, no byte of it may be in the store: every file of it must be one that the block's winner staged, known by its
inode and time. The store must be that of an undisturbed job in one process, byte for byte. Prints a table, writes
results/hosts.json, and ends with 1 when anything was wrong. Needs Linux and the right to make networks (root).
"""

from __future__ import annotations

from benchmarks.pipeline import faults  # isort: skip  (first, for it sets thread counts before numpy is there)

import argparse
import asyncio
import ctypes
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import dask
from distributed import Future, Scheduler, Worker
from distributed.diagnostics.plugin import SchedulerPlugin

from benchmarks.common.figures import RESULTS
from samdeblur.pipeline.job import worker
from samdeblur.storage.writing.commits import Committer

HOSTS = {"scheduler": "10.77.0.1", "worker0": "10.77.0.2", "worker1": "10.77.0.3", "client": "10.77.0.4"}
ADDRESS = f"tcp://{HOSTS['scheduler']}:8786"
BLOCK_SECONDS = 1.0  # of the simulated stage
NEW_NETWORK, NEW_NAME = 0x40000000, 0x04000000  # of unshare(2)
DIE_WITH_PARENT = 1  # of prctl(2)

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Network:
    """A switch and hosts. Each has a process that keeps its namespaces, which go with it, whatever happens to this one.

    Raises:
        OSError: this cannot be done here, for want of the right, or of a program.
    """

    def __init__(self, folder: Path) -> None:
        self.keepers: dict[str, faults.Process] = {}
        try:
            for name in ("switch", *HOSTS):
                self.keepers[name] = self._keeper(folder, name)
            self._ip("switch", "link add switch type bridge", "link set switch up")
            for host, address in HOSTS.items():
                self._ip(
                    "switch",
                    f"link add {host} type veth peer name eth0 netns {self.keepers[host].pid}",
                    f"link set {host} master switch up",
                )
                self._ip(host, "link set lo up", f"address add {address}/24 dev eth0", "link set eth0 up")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _keeper(folder: Path, name: str) -> faults.Process:
        ready = folder / f"{name}-ready"

        def keep() -> None:
            libc.prctl(DIE_WITH_PARENT, signal.SIGKILL)
            checked(libc.unshare(NEW_NETWORK | NEW_NAME))
            socket.sethostname(name)
            ready.touch()
            signal.pause()

        process = faults.Process(folder, f"{name}-keeper", keep)
        while not ready.exists():
            if process.wait(0.01) is not None:
                raise OSError(process.log.read_text().splitlines()[-1])
        return process

    def _ip(self, where: str, *commands: str) -> None:
        for command in commands:
            enter = ["nsenter", f"--net=/proc/{self.keepers[where].pid}/ns/net", "ip", *command.split()]
            done = subprocess.run(enter, capture_output=True, text=True)
            if done.returncode != 0:
                raise OSError(f"ip {command}: {done.stderr.strip()}")

    def enter(self, host: str) -> None:
        """This process becomes one of a host."""
        libc.prctl(DIE_WITH_PARENT, signal.SIGKILL)
        for kind in ("net", "uts"):
            with open(f"/proc/{self.keepers[host].pid}/ns/{kind}") as namespace:
                checked(libc.setns(namespace.fileno(), 0))

    def cut(self, *hosts: str) -> None:
        for host in hosts:
            self._ip("switch", f"link set {host} down")

    def mend(self, *hosts: str) -> None:
        for host in hosts:
            self._ip("switch", f"link set {host} up")

    def close(self) -> None:
        for process in self.keepers.values():
            process.kill()
            process.wait()


class Events:
    """What happened, in a file that all processes append to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, what: str, **values: Any) -> None:
        line = json.dumps({"what": what, "time": time.monotonic(), **values}) + "\n"
        with open(self.path, "ab", buffering=0) as log:
            log.write(line.encode())

    def read(self, what: str, since: float = 0.0, **values: Any) -> list[dict[str, Any]]:
        lines = self.path.read_text().rpartition("\n")[0].splitlines() if self.path.exists() else []
        return [
            event
            for event in map(json.loads, lines)
            if event["what"] == what and event["time"] >= since and values.items() <= event.items()
        ]


def run_scheduler(events: Events, settings: dict[str, Any]) -> None:
    class Noting(SchedulerPlugin):
        def add_worker(self, scheduler: Scheduler, worker: str) -> None:
            events.note("joined", host=scheduler.workers[worker].name)

        def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **more: Any) -> None:
            name = next(name for name, address in HOSTS.items() if f"//{address}:" in worker)
            events.note("left", host=name, why="ttl" if "ttl" in stimulus_id else "connection")

    async def serve() -> None:
        async with Scheduler(host=HOSTS["scheduler"], port=8786, dashboard=False, plugins=[Noting()]) as scheduler:
            await scheduler.finished()

    dask.config.set(settings)
    asyncio.run(serve())


def run_worker(events: Events, settings: dict[str, Any], host: str, held: Path) -> None:
    """A worker whose blocks take BLOCK_SECONDS, or as long as the file `held` is there."""
    find, stage = worker._find_masks, worker.stage_block

    def find_slowly(image: Any, *more: Any) -> Any:
        events.note("began", host=host, key=image.key)
        time.sleep(BLOCK_SECONDS)
        while held.exists():
            time.sleep(0.02)
        return find(image, *more)

    def stage_and_note(store: Path, header: Any, staging: Path, block: int, *more: Any) -> Any:
        digests = stage(store, header, staging, block, *more)
        files = [identity(file) for file in staging.rglob("*") if file.is_file()]
        events.note("staged", host=host, block=block, folder=staging.name, files=files)
        return digests

    async def serve() -> None:
        async with Worker(
            ADDRESS, host=HOSTS[host], name=host, nthreads=1, memory_limit=0, dashboard=False, death_timeout=60
        ) as server:
            await server.finished()

    worker._find_masks, worker.stage_block = find_slowly, stage_and_note
    dask.config.set(settings)
    asyncio.run(serve())


def run_client(events: Events, settings: dict[str, Any], held: Path, arguments: list[str]) -> None:
    """A job that fetches no result for as long as the file `held` is there."""
    commit, fetch = Committer.commit, Future.result

    def fetch_held(self: Future, timeout: float | None = None) -> Any:
        if held.exists():
            events.note("fetching")
        while held.exists():
            time.sleep(0.02)
        return fetch(self, timeout)

    def commit_and_note(self: Committer, blocks: Any) -> None:
        commit(self, blocks)
        for block in blocks:
            events.note("committed", block=block.block, folder=Path(block.staging).name)

    Committer.commit, Future.result = commit_and_note, fetch_held  # type: ignore[method-assign]
    dask.config.set(settings)
    faults.run_prep(arguments, 0.2)


def identity(file: Path) -> list[int]:
    """Of a file, wherever it is moved: its inode and the time of its last change."""
    found = file.stat()
    return [found.st_ino, found.st_mtime_ns]


@dataclass
class Row:
    """What came of a trial; times in seconds.

    Attributes:
        cut: for how long links were cut.
        given_up: from the cut until the scheduler gave the worker up; `why`: what made it do so.
        late: blocks that a worker finished after it was cut off and given up.
        late_after_commit: of them after the block was committed.
        late_files, late_in_store: files that it staged of these blocks, and how many of them are in the store.
        twice: blocks that were staged more than once, by whomever.
        code: exit code of the job.
    """

    cut: float = 0.0
    given_up: float | None = None
    why: str = ""
    late: int = 0
    late_after_commit: int = 0
    late_files: int = 0
    late_in_store: int = 0
    twice: int = 0
    seconds: float = 0.0
    code: int | None = None
    same_bytes: bool = False
    wrong: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        values = {name: round(value, 1) if isinstance(value, float) else value for name, value in vars(self).items()}
        return values | {"wrong": len(self.wrong)}


class Hosts:
    """The network, a dataset, and what an undisturbed job in one process makes of it."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder, self.pairs = network, folder, folder / "pairs"
        faults.write_pairs(self.pairs)
        self.reference = folder / "undisturbed.zarr"
        self.prepare_alone(self.reference)

    def prepare_alone(self, store: Path) -> None:
        arguments = [str(self.pairs), str(store), *faults.OPTIONS, "--workers", "1"]
        job = faults.Process(self.folder, "alone", lambda: faults.run_prep(arguments, 1.0))
        if job.wait() != 0:
            raise RuntimeError(job.log.read_text())


class Trial:
    """A job on the four hosts, and what is done to them while it runs."""

    def __init__(self, hosts: Hosts, number: int, ttl: float, tcp: float) -> None:
        self.hosts, self.network, self.row = hosts, hosts.network, Row()
        self.folder = hosts.folder / f"trial{number}"
        self.folder.mkdir()
        self.store = self.folder / "store.zarr"
        self.events = Events(self.folder / "events")
        self.settings = {
            "distributed.scheduler.worker-ttl": f"{ttl}s",
            "distributed.comm.timeouts.tcp": f"{tcp}s",
            "distributed.comm.timeouts.connect": f"{min(tcp, 10)}s",
        }
        self.running: dict[str, faults.Process] = {}
        self.cut_at: dict[str, float] = {}

    def __enter__(self) -> Trial:
        self.begun = time.monotonic()
        for host in HOSTS:
            self.start(host)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.network.mend(*HOSTS)
        for process in self.running.values():
            process.kill()
            process.wait()

    def start(self, host: str) -> None:
        def enter_and_work() -> None:
            self.network.enter(host)
            if host == "scheduler":
                run_scheduler(self.events, self.settings)
            elif host == "client":
                where = ["--scheduler", ADDRESS, "--patience", "60"]
                arguments = [str(self.hosts.pairs), str(self.store), *faults.OPTIONS, *where]
                run_client(self.events, self.settings, self.held(host), arguments)
            else:
                run_worker(self.events, self.settings, host, self.held(host))

        self.running[host] = faults.Process(self.folder, host, enter_and_work)

    def held(self, host: str) -> Path:
        return self.folder / f"{host}-held"

    def wait_for(self, what: str, condition: Callable[[], object]) -> float:
        """The time at which a condition became true. Workers that end meanwhile are started again."""
        deadline = time.monotonic() + faults.HANGS
        while not condition():
            for host in ("worker0", "worker1"):
                if self.running[host].wait(0.001) is not None:
                    self.start(host)
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited in vain for {what}")
            time.sleep(0.005)
        return time.monotonic()

    def wait_for_work(self, host: str) -> None:
        """Until a worker that did some blocks has just begun another."""
        self.wait_for("some blocks", lambda: len(self.events.read("staged", host=host)) >= 2)
        begun = len(self.events.read("began", host=host))
        self.wait_for("a block in work", lambda: len(self.events.read("began", host=host)) > begun)

    def cut(self, host: str) -> None:
        self.network.cut(host)
        self.cut_at[host] = time.monotonic()

    def wait_until_given_up(self, host: str) -> None:
        start = self.cut_at[host]
        self.wait_for(f"{host} to be given up", lambda: self.events.read("left", start, host=host))
        left = self.events.read("left", start, host=host)[0]
        self.row.given_up, self.row.why = left["time"] - start, left["why"]

    def wait_for_late_block(self, host: str) -> None:
        self.wait_for("a late block", lambda: self.events.read("staged", self.cut_at[host], host=host))

    def mend(self, host: str) -> None:
        self.network.mend(host)
        self.row.cut = time.monotonic() - self.cut_at[host]

    def wait_for_return(self, host: str) -> None:
        mended = self.cut_at[host] + self.row.cut
        self.wait_for(f"{host} to come back", lambda: self.events.read("joined", mended, host=host))

    def wait_for_end(self) -> None:
        job = self.running["client"]
        self.row.seconds = self.wait_for("the end of the job", lambda: job.wait(0.001) is not None) - self.begun

    def judge(self) -> None:
        """Note what does not hold."""
        row, job = self.row, self.running["client"]
        row.code = job.code
        if job.code != 0:
            row.wrong.append(f"the job ended with {job.code}: {job.log.read_text()[-500:]}")
            return
        row.same_bytes = faults.contents(self.store) == faults.contents(self.hosts.reference)
        if not row.same_bytes:
            row.wrong.append("the store differs from an undisturbed one")
        winners = {event["block"]: event["folder"] for event in self.events.read("committed")}
        commits = {event["block"]: event["time"] for event in self.events.read("committed")}
        staged = self.events.read("staged")
        blocks = [event["block"] for event in staged]
        row.twice = sum(blocks.count(block) > 1 for block in {*blocks})
        stored = {tuple(identity(file)) for file in self.store.rglob("*") if file.is_file()}
        data = [file for file in self.store.rglob("c/**/*") if file.relative_to(self.store).parts[0] != "index"]
        shards = {tuple(identity(file)) for file in data if file.is_file()}
        won: set[tuple[int, ...]] = set()
        for event in staged:
            files = {tuple(file) for file in event["files"]}
            if winners[event["block"]] == event["folder"]:
                won |= files
            elif files & stored:
                row.wrong.append(f"{len(files & stored)} files of an attempt that was not committed are in the store")
            if self.is_late(event):
                row.late += 1
                row.late_after_commit += event["time"] > commits[event["block"]]
                row.late_files += len(files)
                row.late_in_store += len(files & stored)
                self.tell(event, winners[event["block"]], commits[event["block"]], len(files & stored))
        if shards != won:
            row.wrong.append(f"{len(shards ^ won)} shards are not those of the attempts that were committed")
        if row.late_in_store:
            row.wrong.append(f"{row.late_in_store} late files are in the store")
        left = list(self.store.with_name(f"{self.store.name}.run").glob("staging/*"))
        if left:
            row.wrong.append(f"{len(left)} staging folders were left behind")

    def is_late(self, event: dict[str, Any]) -> bool:
        """Whether a staged block is one that a worker finished after it was cut off, and was given up."""
        host, cut = event["host"], self.cut_at.get(event["host"])
        if cut is None or not self.events.read("left", cut, host=host):
            return False
        back = [joined["time"] for joined in self.events.read("joined", cut, host=host)]
        return bool(cut < event["time"] < min(back, default=float("inf")))

    def tell(self, event: dict[str, Any], winner: str, committed: float, stored: int) -> None:
        (host,) = [other["host"] for other in self.events.read("staged") if other["folder"] == winner]
        after_cut, after_commit = event["time"] - self.cut_at[event["host"]], event["time"] - committed
        print(
            f"  late: {event['host']} finished block {event['block']} {after_cut:.1f} s after the cut, "
            f"{abs(after_commit):.1f} s {'after' if after_commit > 0 else 'before'} its commit, in staging folder "
            f"{shorten(event['folder'])}: {stored} of {len(event['files'])} files are in the store, "
            f"where the block is that of {host}, folder {shorten(winner)}",
            flush=True,
        )


def shorten(folder: str) -> str:
    """BLOCK-JOB-ATTEMPT of a staging folder, still to be told apart."""
    return "-".join(part[:6] for part in folder.split("-"))


# What is done to the hosts while a job runs


def nothing(trial: Trial) -> None:
    trial.wait_for_end()


def worker_late(trial: Trial) -> None:
    """A worker finishes its block while it is cut off, is given up, and its link is mended."""
    trial.wait_for_work("worker0")
    trial.cut("worker0")
    trial.wait_until_given_up("worker0")
    trial.wait_for_late_block("worker0")
    trial.mend("worker0")
    trial.wait_for_return("worker0")
    trial.wait_for_end()


def worker_after_commit(trial: Trial) -> None:
    """A worker finishes its block when its link is mended and another has done it."""
    trial.wait_for_work("worker0")
    trial.held("worker0").touch()
    trial.cut("worker0")
    block = int(trial.events.read("began", host="worker0")[-1]["key"])
    trial.wait_until_given_up("worker0")
    trial.mend("worker0")
    trial.wait_for("the commit", lambda: trial.events.read("committed", block=block))
    trial.held("worker0").unlink()
    trial.wait_for_late_block("worker0")
    trial.wait_for_return("worker0")
    trial.wait_for_end()


def worker_after_job(trial: Trial) -> None:
    """A worker finishes its block, and its link is mended, when the job is over; another run finds its folder."""
    trial.wait_for_work("worker0")
    trial.held("worker0").touch()
    trial.cut("worker0")
    trial.wait_until_given_up("worker0")
    trial.wait_for_end()
    trial.mend("worker0")
    trial.held("worker0").unlink()
    trial.wait_for_late_block("worker0")
    trial.hosts.prepare_alone(trial.store)


def worker_in_time(trial: Trial) -> None:
    """A worker is cut off for less than it takes to be given up."""
    trial.wait_for_work("worker0")
    trial.cut("worker0")
    trial.wait_for_late_block("worker0")
    trial.mend("worker0")
    trial.wait_for_end()


def cut_for(host: str, seconds: float) -> Callable[[Trial], None]:
    def disturb(trial: Trial) -> None:
        trial.wait_for_work("worker0")
        trial.cut(host)
        time.sleep(seconds)
        trial.mend(host)
        trial.wait_for_end()

    return disturb


def client_fetching(trial: Trial) -> None:
    """The client's link is cut as it is about to fetch a result."""
    trial.wait_for_work("worker0")
    trial.held("client").touch()
    trial.wait_for("a fetch", lambda: trial.events.read("fetching"))
    trial.cut("client")
    trial.held("client").unlink()
    time.sleep(20)
    trial.mend("client")
    trial.wait_for_end()


def scheduler_restarted(trial: Trial) -> None:
    """The scheduler's host goes down, without a word to anyone, and comes back with a new scheduler."""
    trial.wait_for_work("worker0")
    trial.cut("scheduler")
    trial.running["scheduler"].kill()
    trial.running["scheduler"].wait()
    time.sleep(3)
    trial.mend("scheduler")
    trial.start("scheduler")
    trial.wait_for_end()


LONG = 300.0
TRIALS: list[tuple[str, float, float, Callable[[Trial], None]]] = [  # seconds: worker-ttl, TCP timeout
    ("undisturbed", LONG, 60, nothing),
    ("worker cut off, back in time", LONG, 60, worker_in_time),
    ("worker cut off, silent", 5, 60, worker_late),
    ("worker cut off, connection closed", LONG, 12, worker_late),
    ("worker late, after the commit", 5, 60, worker_after_commit),
    ("worker late, after the job", 5, 60, worker_after_job),
    ("client cut off for a while", LONG, 60, cut_for("client", 4)),
    ("client cut off for long", LONG, 12, cut_for("client", 20)),
    ("client cut off at a fetch", LONG, 12, client_fetching),
    ("scheduler cut off for long", LONG, 12, cut_for("scheduler", 20)),
    ("scheduler's host restarted", LONG, 60, scheduler_restarted),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="trials whose name has this in it")
    parser.add_argument("--out", type=Path, default=RESULTS / "hosts.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    assert threading.active_count() == 1  # or forks would be unsafe
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            network = Network(Path(folder))
        except OSError as error:
            print(f"left out, networks cannot be made here: {error}")
            return
        try:
            hosts = Hosts(network, Path(folder))
            titles = f"{'':36} {'cut':>5} {'given up after':>18} {'late blocks':>12} {'in store':>10}"
            print(f"{titles}  twice  exit     took  store")
            for number, (name, ttl, tcp, disturb) in enumerate(TRIALS):
                if options.only in name:
                    rows[name] = run_trial(Trial(hosts, number, ttl, tcp), name, disturb)
        finally:
            network.close()
    for name, row in rows.items():
        for line in row.wrong:
            print(f"WRONG: {name}: {line}")
    results = {name: row.as_json() for name, row in rows.items()}
    document = {
        "machine": platform.machine(),
        "images": faults.IMAGES,
        "block_seconds": BLOCK_SECONDS,
        "trials": results,
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(1 if any(row.wrong for row in rows.values()) else 0)


def run_trial(trial: Trial, name: str, disturb: Callable[[Trial], None]) -> Row:
    row = trial.row
    try:
        with trial:
            disturb(trial)
    except (TimeoutError, RuntimeError) as error:
        row.wrong.append(str(error))
    else:
        trial.judge()
    given_up = f"{row.given_up:.1f} s, {row.why}" if row.given_up is not None else "-"
    late = f"{row.late}, {row.late_after_commit} after" if row.late else "-"
    files = f"{row.late_in_store} of {row.late_files}" if row.late else "-"
    print(
        f"{name:34} {row.cut:5.1f} s {given_up:>18} {late:>12} {files:>10} {row.twice:6} {row.code!s:>5} "
        f"{row.seconds:6.1f} s  {'same bytes' if row.same_bytes else 'OTHER BYTES'}",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
