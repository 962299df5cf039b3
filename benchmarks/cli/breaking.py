"""Commands that are damaged, killed, doubled, suspended and starved: nothing wrong, nothing lost, nothing without end.

python -m benchmarks.cli.breaking [--times 1] [--only KIND] [--slice]     # -> benchmarks/results/breaking.json

Small stores and networks, each command a process in a session of its own. Figures are written after every kind, and
`--only` does some again, so that it may be stopped and gone on with. Ends with 1 where anything was wrong. Linux; a
small /dev/shm needs the right to mount. `faults` and `races` of benchmarks/pipeline do the same to preparations alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch

from benchmarks.common.figures import RESULTS
from samdeblur.models import load_network
from samdeblur.storage import open_store

IMAGES, SIZE = 6, 96
HANGS = 240.0  # seconds after which a command counts as hung
NAMED = 60.0  # seconds within which what hangs has to be named
ENDS = 12.0  # seconds within which a command ends that is told to
STEPS = 8
NETWORK = ["width=4", "enc_blk_nums=[1]", "middle_blk_num=1", "dec_blk_nums=[1]"]
RUN = ["crop_size=48", "batch_size=4", f"steps={STEPS}", "val_every=100", "save_every=2", "log_every=1", "device=cpu"]


@dataclass
class Row:
    """What was tried of one kind, how it ended, the longest it took, and what was wrong."""

    times: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def note(self, end: str, seconds: float = 0.0, *wrong: str) -> None:
        self.times += 1
        self.ends[end] += 1
        self.seconds = max(self.seconds, seconds)
        self.wrong += wrong


class Command:
    """A command of ours, with its output in a file."""

    def __init__(self, program: str, *arguments: object, before: tuple[str, ...] = ()) -> None:
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        call = f"import sys; from samdeblur.cli.programs import {program}; sys.argv[0] = 'samdeblur'; {program}()"
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", call, *map(str, arguments)],
            stdout=self.said, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.started = time.monotonic()

    def children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            return []

    def working(self) -> list[psutil.Process]:
        """Children that do the work, once there are any; waits for them."""
        while self.process.poll() is None and time.monotonic() - self.started < HANGS:
            found = [child for child in self.children() if _is_worker(child)]
            if found:
                return found
            time.sleep(0.05)
        return []

    def end(self, seconds: float = HANGS) -> tuple[int | None, str, float]:
        """Exit code, None for one that hung and was killed; what it said; seconds it took from now."""
        start = time.monotonic()
        try:
            code: int | None = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        taken = time.monotonic() - start
        self.said.seek(0)
        return code, self.said.read(), taken


def _is_worker(child: psutil.Process) -> bool:
    """Of Dask, or of a loader, whose parent is the fork server."""
    try:
        parent = child.parent()
        return "spawn_main" in " ".join(child.cmdline()) or (
            parent is not None and "multiprocessing.forkserver" in " ".join(parent.cmdline())
        )
    except psutil.Error:
        return False


def left(children: list[psutil.Process]) -> list[psutil.Process]:
    """Those that are still there some seconds later; they are ended."""
    _, alive = psutil.wait_procs(children, timeout=5)
    alive = [child for child in alive if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    for child in alive:
        child.kill()
    return alive


class Campaign:
    """A folder with images, their store, and a run trained on it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.pairs, self.store, self.run = folder / "pairs", folder / "store.zarr", folder / "run"
        write_pairs(self.pairs, 0)
        self.must(self.prepare(self.store))
        self.must(self.train(self.run))
        self.numbers = iter(range(10**6))

    @staticmethod
    def must(command: Command) -> str:
        code, said, _ = command.end()
        if code != 0:
            raise RuntimeError(f"ended with {code}: {said}")
        return said

    def new(self, what: str) -> Path:
        return self.folder / f"{what}-{next(self.numbers)}"

    def prepare(self, store: Path, *more: object, pairs: Path | None = None) -> Command:
        return Command("prep", "run", pairs or self.pairs, store, "--split", "test", "--segmenter", "superpixels",
                       "--block-size", 1, "--progress", "none", *(more or ("--workers", 1)))  # fmt: skip

    def train(self, out: Path, *more: str, store: Path | None = None, method: str = "map",
              before: tuple[str, ...] = ()) -> Command:  # fmt: skip
        settings = [word for value in (*NETWORK, *RUN, *more) for word in ("--set", value)]
        return Command("train", store or self.store, "--out", out, "--method", method, *settings, before=before)

    def evaluate(self, out: Path, store: Path | None = None) -> Command:
        return Command("evaluate", "run", self.run, store or self.store, "--out", out, "--report-images", 0)

    def same_weights(self, run: Path) -> list[str]:
        ours, theirs = (torch.load(folder / "state.pt", weights_only=True)["network"] for folder in (self.run, run))
        bad = [name for name, value in ours.items() if not bool((value == theirs[name]).all())]
        return [f"{run.name}: other weights than the undisturbed run, such as {bad[0]}"] if bad else []

    # What is tried. Each is called with the row to fill and how often.

    def flips(self, row: Row, times: int, swap: bool = False) -> None:
        """One bit of a store is flipped, or two of its files change places: masks are right, or an error is raised."""
        whole = open_store(self.store)
        expected = {key: (whole.atoms(key), whole.image("blurred", key)) for key in whole.keys}
        files = sorted(path.relative_to(self.store) for path in self.store.rglob("*") if path.is_file())
        for _ in range(times):
            copy = self.new("flipped")
            shutil.copytree(self.store, copy)
            if swap:
                first, second = self.random.sample(files, 2)
                what = f"{first} and {second} swapped"
                (copy / first).rename(copy / "aside")
                (copy / second).rename(copy / first)
                (copy / "aside").rename(copy / second)
            else:
                name = self.random.choice(files)
                content = bytearray((copy / name).read_bytes())
                bit = self.random.randrange(8 * len(content))
                content[bit // 8] ^= 1 << bit % 8
                (copy / name).write_bytes(content)
                what = f"bit {bit} of {name}"
            try:
                opened = open_store(copy)
                for key in opened.keys:
                    atoms, image = opened.atoms(key), opened.image("blurred", key)
                    if key not in expected or atoms != expected[key][0] or not np.array_equal(image, expected[key][1]):
                        row.note("read as something else", 0, f"{what}: {key} is read as something else")
                        break
                else:
                    row.note("of no consequence")
            except (ValueError, OSError, KeyError) as error:
                row.note("refused" if "\n" not in str(error) else "refused, at length")
            except Exception as error:
                row.note("raised", 0, f"{what}: {type(error).__name__}: {error}")
            shutil.rmtree(copy)

    def swaps(self, row: Row, times: int) -> None:
        self.flips(row, times, swap=True)

    def kills(self, row: Row, times: int) -> None:
        """A training is killed at random moments until it is done: its weights are those of one left alone."""
        while row.times < times:
            out, code = self.new("killed"), None
            while code != 0:
                command = self.train(out)
                try:
                    command.process.wait(self.random.uniform(2, 30))
                except subprocess.TimeoutExpired:
                    command.process.kill()
                code, said, _ = command.end()
                if code not in (0, -signal.SIGKILL):
                    row.note("failed", 0, f"ended with {code}: {said[-300:]}")
                    break
                if code:
                    row.note("killed")
            row.wrong += self.same_weights(out)

    def two_at_once(self, row: Row, times: int) -> None:
        """Two trainings of two methods in one folder: one of them has it, the other is told."""
        for _ in range(times):
            out = self.new("two")
            both = {method: self.train(out, method=method) for method in ("map", "none")}
            ends = {method: command.end() for method, command in both.items()}
            done = [method for method, (code, _, _) in ends.items() if code == 0]
            wrong = [] if len(done) == 1 else [f"{len(done)} of them ended with 0"]
            for method, (code, said, _) in ends.items():
                if method not in done and (code not in (1, 2) or "error: " not in said):
                    wrong.append(f"the other ended with {code}: {said[-300:]}")
            if len(done) == 1 and (load_network(out).prior is not None) != (done[0] == "map"):
                wrong.append(f"the weights are not those of {done[0]}")
            row.note("one has it, the other is told", max(seconds for _, _, seconds in ends.values()), *wrong)

    def replaced(self, row: Row, times: int) -> None:
        """A store gives way to one of the same names with other images: a run refuses it, scores are new."""
        for number in range(times):
            pairs, store = self.new("others"), self.new("replaced")
            write_pairs(pairs / "pairs", 100 + number)
            shutil.copytree(self.store, store)
            out, results = self.new("on-replaced"), self.new("results")
            command = self.train(out, "steps=100000", store=store)
            while command.process.poll() is None and not (out / "state.pt").exists():
                time.sleep(0.05)
            command.process.send_signal(signal.SIGTERM)
            stopped, said, _ = command.end()
            self.must(self.evaluate(results, store))
            before = json.loads((results / "results.json").read_text())
            shutil.rmtree(store)
            self.must(self.prepare(store, pairs=pairs / "pairs"))
            code, said, seconds = self.train(out, "steps=100000", store=store).end()
            wrong = [f"stopping ended with {stopped}"] if stopped != 75 else []
            if code != 2 or "Traceback" in said:
                wrong.append(f"the run ended with {code}: {said[-300:]}")
            row.note("refused by the run", seconds, *wrong)
            code, said, seconds = self.evaluate(results, store).end()
            after = json.loads((results / "results.json").read_text())
            wrong = [f"the evaluation ended with {code}: {said[-300:]}"] if code else []
            if _scores(before) == _scores(after):
                wrong.append("old scores were given for new images")
            row.note("scored anew", seconds, *wrong)

    def small_memory(self, row: Row, times: int) -> None:
        """Training with workers and a small /dev/shm: the weights are those of a run without."""
        for number in range(times):
            size = ("200k", "2m", "64m")[number % 3]
            mount = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={size} small /dev/shm && exec "$@"', "sh")
            if subprocess.run([*mount, "true"], capture_output=True).returncode:
                print("small /dev/shm: no right to mount here, left out", flush=True)
                return
            out = self.new("small")
            code, said, seconds = self.train(out, "loader_workers=2", before=mount).end()
            wrong = [f"{size}: ended with {code}: {said[-300:]}"] if code else self.same_weights(out)
            row.note("through pipes, and said" if "no room in shared memory" in said else "done", seconds, *wrong)

    def silent_loader(self, row: Row, times: int) -> None:
        """A worker that reads crops is suspended for good, or killed: the run names it, with its state saved."""
        for number in range(times):
            out = self.new("silent")
            command = self.train(out, "loader_workers=2", "steps=100000")
            workers = command.working()
            while command.process.poll() is None and not (out / "state.pt").exists():
                time.sleep(0.05)
            children = command.children()
            workers = [child for child in workers if child.is_running()]
            if not workers:
                row.note("no worker", 0, f"no worker was found: {command.end()[1][-300:]}")
                continue
            victim = self.random.choice(workers)
            victim.send_signal((signal.SIGSTOP, signal.SIGKILL)[number % 2])
            code, said, seconds = command.end()
            wrong = [f"{code} after {seconds:.0f} s: {said[-300:]}"] if code != 1 or seconds > NAMED else []
            if str(victim.pid) not in said:
                wrong.append(f"it was not named: {said[-300:]}")
            if there := left(children):
                wrong.append(f"{len(there)} children were left")
            row.note("named" if not wrong else "?", seconds, *wrong)

    def silent_dask(self, row: Row, times: int) -> None:
        """A Dask worker is suspended for good: it is named and replaced, and the store is the undisturbed one."""
        expected = contents(self.store)
        for _ in range(times):
            store = self.new("silent.zarr")
            command = self.prepare(store, "--workers", 2)
            workers = command.working()
            while command.process.poll() is None and not list(store.with_name(f"{store.name}.run").rglob("staging/*")):
                time.sleep(0.02)
            children = command.children()
            victim = self.random.choice(workers)
            victim.suspend()
            code, said, seconds = command.end()
            wrong = [f"ended with {code}: {said[-300:]}"] if code else []
            if not code and contents(store) != expected:
                wrong.append("the store has other bytes")
            if there := left(children):
                wrong.append(f"{len(there)} children were left")
            row.note("named and replaced" if str(victim.pid) in said else "done without it", seconds, *wrong)

    def told(self, row: Row, times: int) -> None:
        """SIGTERM or SIGHUP at any moment of a command: it ends within seconds, and its children with it."""
        self._signalled(row, times, [signal.SIGTERM, signal.SIGHUP], {0, 75, 130, -signal.SIGTERM, -signal.SIGHUP})

    def killed_whole(self, row: Row, times: int) -> None:
        """SIGKILL at any moment of a command: its children end."""
        self._signalled(row, times, [signal.SIGKILL], {0, -signal.SIGKILL})

    def _signalled(self, row: Row, times: int, numbers: list[signal.Signals], codes: set[int]) -> None:
        for number in range(times):
            out = self.new("told")
            name = ("prep", "prep with workers", "train", "train with workers", "eval")[number % 5]
            command = {
                "prep": lambda out=out: self.prepare(out),
                "prep with workers": lambda out=out: self.prepare(out, "--workers", 2),
                "train": lambda out=out: self.train(out),
                "train with workers": lambda out=out: self.train(out, "loader_workers=2"),
                "eval": lambda out=out: self.evaluate(out),
            }[name]()
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.process.wait(self.random.uniform(0.1, 20))
            children = command.children()
            which = self.random.choice(numbers)
            if command.process.poll() is None:
                command.process.send_signal(which)
            code, said, seconds = command.end()
            wrong = [f"{name}, {which.name}: {code} after {seconds:.0f} s: {said[-300:]}"] if code not in codes else []
            if seconds > ENDS:
                wrong.append(f"{name}, {which.name}: took {seconds:.0f} s to end: {said[-300:]}")
            if "Traceback" in said:
                wrong.append(f"{name}, {which.name}: {said[-300:]}")
            if there := left(children):
                wrong.append(f"{name}, {which.name}: {len(there)} children were left")
            row.note("done before" if code == 0 else "ended", seconds, *wrong)


def _scores(results: dict[str, Any]) -> Any:
    return [found["images"] for found in results["sets"]]


def contents(store: Path) -> dict[str, bytes]:
    return {str(f.relative_to(store)): f.read_bytes() for f in sorted(store.rglob("*")) if f.is_file()}


def write_pairs(folder: Path, seed: int) -> None:
    for number in range(IMAGES):
        rng = np.random.default_rng((seed, number))
        sharp = np.full((SIZE, SIZE, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(5):
            centre, colour = rng.integers(8, SIZE - 8, 2).tolist(), rng.integers(0, 256, 3).tolist()
            cv2.circle(sharp, centre, int(rng.integers(6, 30)), colour, -1)
        for side, image in (("sharp", sharp), ("blur", cv2.blur(sharp, (7, 3)))):
            (folder / side).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / side / f"{number}.png"), image)


KINDS: dict[str, tuple[Callable[[Campaign, Row, int], None], int, int]] = {  # how often, and how often in a slice
    "a bit of a store flipped": (Campaign.flips, 300, 30),
    "two files of a store swapped": (Campaign.swaps, 150, 15),
    "SIGKILL, a training": (Campaign.kills, 10, 0),
    "two trainings in one folder": (Campaign.two_at_once, 5, 0),
    "a store replaced by another of the same names": (Campaign.replaced, 3, 0),
    "a small /dev/shm": (Campaign.small_memory, 6, 1),
    "a loader worker suspended or killed": (Campaign.silent_loader, 4, 0),
    "a Dask worker suspended": (Campaign.silent_dask, 3, 0),
    "SIGTERM or SIGHUP, any command": (Campaign.told, 20, 1),
    "SIGKILL, any command, its children": (Campaign.killed_whole, 10, 1),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=float, default=1.0, help="as often, times this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slice", action="store_true", help="a minute of it")
    parser.add_argument("--only", default="", help="kinds whose name holds this; the others keep their figures")
    parser.add_argument("--out", type=Path, default=RESULTS / "breaking.json")
    options = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # not as nohup leaves it
    kinds: dict[str, Any] = json.loads(options.out.read_text())["kinds"] if options.out.exists() else {}
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), options.seed)
        for kind, (trial, often, few) in KINDS.items():
            times = few if options.slice else max(1, round(often * options.times))
            if options.only not in kind or not times:
                continue
            row = Row()
            trial(campaign, row, times)
            if not row.times:
                continue
            wrong += len(row.wrong)
            print(f"{kind:48} {row.times:4} times {row.seconds:6.1f} s at most {len(row.wrong):3} wrong  "
                  f"{dict(row.ends)}", *row.wrong, sep="\n    ", flush=True)  # fmt: skip
            kinds[kind] = {"times": row.times, "ends": row.ends, "seconds": round(row.seconds), "wrong": row.wrong}
            document = {
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "seed": options.seed,
                "kinds": kinds,
            }
            options.out.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
