"""Jobs that begin at the same instant, and jobs that are suspended in the middle of a commit while another finishes.

python -m benchmarks.pipeline.races [--races 100]      # -> benchmarks/results/races.json; some minutes

Each race: processes that create and fill one new store at once. Each suspension: a process that stops itself (SIGSTOP)
before one of its changes, every one in turn; its lease is let expire, another process does all there is to do, then the
first goes on. A store must end with the bytes of an undisturbed one, and verify. Ends with 1 where not. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from skimage.data import astronaut

from benchmarks.common.figures import RESULTS
from samdeblur.storage import AtomMap, StoreError
from samdeblur.storage.format.layout import Header, pixel_digest
from samdeblur.storage.sharing.verify import verify_store
from samdeblur.storage.writing import lease
from samdeblur.storage.writing.bulk import Row, fill_store, key_bytes, new_extent
from samdeblur.storage.writing.commits import (
    Committer,
    ImageContent,
    StagedBlock,
    geometry_records,
    run_folder,
    stage_block,
)
from samdeblur.storage.writing.creation import create_store
from samdeblur.storage.writing.fence import StoreBusy

JOBS = 3  # in a race
SIZE = 96
KEYS = [f"{number}" for number in range(5)]


def content(position: int) -> ImageContent:
    image = np.ascontiguousarray(astronaut()[position * 40 :][:SIZE, 64 : 64 + SIZE])
    rows, columns = np.indices((SIZE, SIZE))
    masks = [(rows - 20 * n) ** 2 + (columns - 15 * n - position) ** 2 < 600 for n in range(5)]
    atoms = AtomMap.from_masks(masks)
    return ImageContent(atoms, geometry_records(atoms), image, image)


CONTENTS = [content(position) for position in range(len(KEYS))]
SHAPES = np.full((len(KEYS), 2), SIZE, np.int32)
HEADER = Header(
    "toy", "train", {"segmenter": "circles"}, "pixels", len(KEYS), new_extent(SHAPES), key_bytes(KEYS), 2, True
)


def row(position: int) -> Row:
    found = CONTENTS[position]
    assert found.blurred is not None
    return Row.done(found, pixel_digest(found.blurred))


def fill(path: Path) -> None:
    fill_store(path, HEADER, KEYS, SHAPES, row)


def prepare(path: Path) -> None:
    """As the coordinator of a preparation: a commit per block, then a block that is done again."""
    committer = Committer(path)

    def staged(block: int) -> StagedBlock:
        rows = [row(position) for position in HEADER.block_range(block)]
        folder = committer.staging(block)
        digests = stage_block(path, HEADER, folder, block, [found.content for found in rows])
        return StagedBlock(block, str(folder), tuple(found.outcome for found in rows), digests)

    for block in committer.pending_blocks():
        committer.commit([staged(block)])
    committer.reopen([1], SHAPES[1:2])
    committer.commit([staged(block) for block in committer.pending_blocks()])
    committer.close()


def bytes_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def start(work: Callable[[], None]) -> int:
    """A process; ends with 0 when it did its work, 3 when told that another has the store, 1 for anything else."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except (StoreBusy, StoreError):
        code = 3
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def race(folder: Path, expected: dict[str, bytes]) -> tuple[list[int], list[str]]:
    path, at = folder / "new.zarr", time.time() + 0.05

    def work() -> None:
        while time.time() < at:  # all at the same instant
            pass
        fill(path)

    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in [start(work) for _ in range(JOBS)]]
    wrong = [f"a job ended with {code}" for code in codes if code not in (0, 3)]
    if 0 not in codes:
        wrong.append("no job got the store")
    return codes, wrong + compared(path, expected)


def compared(path: Path, expected: dict[str, bytes]) -> list[str]:
    wrong = [] if bytes_of(path) == expected else ["the store has other bytes"]
    return wrong + list(verify_store(path)) + ([f"{run_folder(path)} was left"] if run_folder(path).exists() else [])


def suspended(folder: Path, at: int, expected: dict[str, bytes]) -> tuple[bool, int, list[str]]:
    """Whether there is such a change; how the job ended that woke; what was wrong."""
    path = folder / "store.zarr"
    create_store(path, HEADER, KEYS, SHAPES)

    def work() -> None:
        count = 0

        def stopping(rename: Callable[..., None]) -> Callable[..., None]:
            def call(source: Any, target: Any) -> None:
                nonlocal count
                count += "owner-" in f"{source}{target}"
                if count == at:
                    count += 1
                    os.kill(os.getpid(), signal.SIGSTOP)
                rename(source, target)

            return call

        os.rename, os.replace = stopping(os.rename), stopping(os.replace)
        prepare(path)

    pid = start(work)
    status = os.waitpid(pid, os.WUNTRACED)[1]
    if not os.WIFSTOPPED(status):
        return False, os.waitstatus_to_exitcode(status), []
    document = run_folder(path) / "lease.json"
    if document.exists():  # its time is over
        document.write_text(json.dumps(json.loads(document.read_text()) | {"renewed": time.time() - 600}))
    other = os.waitstatus_to_exitcode(os.waitpid(start(lambda: prepare(path)), 0)[1])
    wrong = [f"the other job ended with {other}"] if other else []
    os.kill(pid, signal.SIGCONT)
    woken = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    wrong += [f"the job that woke ended with {woken}"] if woken not in (0, 3) else []
    return True, woken, wrong + compared(path, expected)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--races", type=int, default=100)
    parser.add_argument("--every", type=int, default=1, help="of the changes, one in so many is stopped at")
    parser.add_argument("--out", type=Path, default=RESULTS / "races.json")
    options = parser.parse_args()
    lease.LOCK_TRIES = 4  # a process may be stopped while it holds the lock of the folder
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder / "alone.zarr")
        expected = bytes_of(folder / "alone.zarr")
        for number in range(options.races):
            (folder / f"r{number}").mkdir()
            codes, found = race(folder / f"r{number}", expected)
            ends[f"{codes.count(0)} of {JOBS} did the work or found it done"] += 1
            wrong += [f"race {number}: {problem}" for problem in found]
        stops, woken, at = 0, Counter(), 1
        while True:
            (folder / f"s{at}").mkdir()
            there, code, found = suspended(folder / f"s{at}", at, expected)
            if not there:
                break
            stops, at = stops + 1, at + options.every
            woken[
                "told that another has the store" if code == 3 else "had nothing left to do" if code == 0 else "?"
            ] += 1
            wrong += [f"stopped at change {at}: {problem}" for problem in found]
    document = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "races": {"times": options.races, "jobs": JOBS, "ends": ends},
        "suspended": {"changes stopped at": stops, "when it woke": woken},
        "wrong": wrong,
    }
    print(json.dumps(document, indent=1))
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
