"""A store of a million images, nearly all pending: opening it, finding a key, listing what is to be done, committing.

python -m benchmarks.storage.scale

Each is timed in a fresh process. Prints a table, writes benchmarks/results/scale.json.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.figures import RESULTS
from samdeblur.storage import AtomMap, open_store
from samdeblur.storage.format.layout import DONE, Header
from samdeblur.storage.writing.commits import (
    Committer,
    ImageContent,
    ImageOutcome,
    StagedBlock,
    geometry_records,
    stage_block,
)
from samdeblur.storage.writing.creation import create_store

IMAGES = 1_000_000
GROUP = 256  # blocks of a commit, the most the coordinator puts into one
REPEATS = 3


def create(path: Path) -> None:
    header = Header("SA-1B", "train", {"mode": "exact"}, "file", IMAGES, (512, 512), 64, 8, images=False)
    keys = [f"sa_{number // 11000:06}/sa_{number:08}" for number in range(IMAGES)]
    create_store(path, header, keys, np.full((IMAGES, 2), (500, 400), np.int32))


def commit(path: Path) -> float:
    """Seconds per block of a group commit; the blocks hold small masks, since only the index is of interest."""
    committer = Committer(path)
    header = committer.header
    mask = np.zeros((1, 500, 400), bool)
    mask[0, 100:200, 100:200] = True
    atoms = AtomMap.from_masks(mask)
    content = ImageContent(atoms, geometry_records(atoms))
    outcome = ImageOutcome(DONE, bytes(31) + b"\1", (1, 1, 1))
    blocks = []
    for block in range(1000, 1000 + GROUP):
        staging = committer.staging(block)
        digests = stage_block(path, header, staging, block, [content] * header.block_size)
        blocks.append(StagedBlock(block, str(staging), (outcome,) * header.block_size, digests))
    start = time.perf_counter()
    committer.commit(blocks)
    seconds = time.perf_counter() - start
    committer.close()
    return seconds / GROUP


def open_and_find(path: Path) -> dict[str, float]:
    before = peak_memory()
    start = time.perf_counter()
    store = open_store(path)
    opened = time.perf_counter()
    assert store.position("sa_000090/sa_00999999") == IMAGES - 1
    found = time.perf_counter()
    pending = Committer(path)
    n_blocks = len(pending.pending_blocks())
    listed = time.perf_counter()
    pending.close()
    assert n_blocks == IMAGES // 8 - GROUP
    return {
        "open s": opened - start,
        "first key s": found - opened,
        "pending blocks s": listed - found,
        "all three s": listed - start,
        "memory MB": peak_memory(),
        "of it libraries MB": before,
    }


def peak_memory() -> float:
    """MB this process has held at most."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(open_and_find(Path(sys.argv[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "million.zarr"
        start = time.perf_counter()
        create(path)
        created = time.perf_counter() - start
        per_block = commit(path)
        runs = []
        for _ in range(REPEATS):
            out = subprocess.run(
                [sys.executable, "-m", "benchmarks.storage.scale", str(path)],
                check=True,
                capture_output=True,
                text=True,
            )
            runs.append(json.loads(out.stdout))
        size = sum(file.stat().st_size for file in (path / "index").rglob("*") if file.is_file())
    rows: dict[str, Any] = {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
    rows |= {
        "create s": round(created, 1),
        "commit ms per block": round(1e3 * per_block, 2),
        "index MB": round(size / 1e6, 1),
    }
    for name, value in rows.items():
        print(f"{name:24} {value:>10}")
    out_file = RESULTS / "scale.json"
    out_file.write_text(json.dumps({"images": IMAGES, "machine": platform.machine(), **rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
