"""Training samples per second and core: the store against the files that the released recipe reads, in one run.

python -m benchmarks.train.loader [--pairs FOLDER] [--data FOLDER]

A sample is a random 256 px crop of a blurred and a sharp image and of all masks, turned at random and joined into
batches of 8 that are float32 in [0, 1]; the store's come from the trainer's own loader. The released recipe keeps
crops of 512 px, 256 apart, the last ones flush with the border: two PNG files, and one compressed npz of the groups
of a grey image that the masks are summed up in. Its loader, written here from that description, decodes both PNG files
with OpenCV, loads the npz, and cuts before anything becomes floating point.

Both read the same images and masks: photographs of scikit-image brought to 1280x720 and blurred by a path of the
camera, and with --pairs also those of a folder such as one of GoPro; 24 of them, with the masks of dense_masks.py, all
or every fourth. The store holds each four times, so that hardly a chunk is found in the 64 MiB that its reader keeps.
All files lie in the page cache. The process is bound to one core, TensorStore's threads too; ways take turns, and a
rate is a median over the turns of samples per second of the processor time of all threads, a ratio a median of those of
each turn. DataLoader workers, and the share of a training step that is spent waiting for samples, are measured on the
clock with all cores. Prints Markdown tables, writes benchmarks/results/loader.json. The files are those of
loader_files.py; with --data they are kept, and used again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.common.figures import RESULTS
from benchmarks.train.loader_files import COPIES, DISTINCT, HEIGHT, OURS, THEIRS, TILE, WIDTH, write_sets
from samdeblur.pipeline import open_source
from samdeblur.pipeline.sources.external_images import with_dataset
from samdeblur.storage import MaskStore, open_store
from samdeblur.storage.access import readers
from samdeblur.train import ConfigError, TrainConfig, build_network
from samdeblur.train.data.crops import Batch, CropDataset, Cutting, Share
from samdeblur.train.data.loader import crop_loader
from samdeblur.train.losses import psnr_loss

SIDE, BATCH = 256, 8
TURNS = 15
ENDLESS = 1 << 40
WORKER_BATCHES, STRETCHES = 20, 5
STEP_SIDE, STEP_BATCH, STEPS, WARM_STEPS = 128, 2, 6, 2
BARE = ", without masks"


# The two loaders


class ReleasedFiles(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Samples as the released recipe reads them: blurred and sharp (3, h, w), masks (G, h, w), float32."""

    def __init__(self, folder: Path, side: int = SIDE, with_masks: bool = True) -> None:
        self.folder, self.side, self.with_masks = folder, side, with_masks
        self.names = sorted(file.stem for file in (folder / "sharp").iterdir())

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        name = self.names[number]
        top, left = torch.randint(TILE - self.side + 1, (2,)).tolist()
        window = (..., slice(top, top + self.side), slice(left, left + self.side))
        turn = int(torch.randint(8, ()))
        blurred, sharp = (
            turned(cv2.imread(str(self.folder / kind / f"{name}.png")).transpose(2, 0, 1)[::-1][window], turn).float()
            / 255
            for kind in ("blurred", "sharp")
        )
        if not self.with_masks:
            return blurred, sharp, torch.empty(0)
        with np.load(self.folder / "masks" / f"{name}.npz") as file:
            masks = file["masks"][:, 0]
        return blurred, sharp, turned(masks[window], turn).float()


def turned(planes: NDArray[Any], turn: int) -> Tensor:
    """One of the eight flips and rotations of (..., H, W)."""
    if turn & 1:
        planes = planes[..., ::-1, :]
    if turn & 2:
        planes = planes[..., ::-1]
    tensor = torch.from_numpy(np.ascontiguousarray(planes))
    return tensor.transpose(-1, -2) if turn & 4 else tensor


def join(samples: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A batch; the masks stay apart, as each sample has another number of them."""
    blurred, sharp, masks = zip(*samples, strict=True)
    return torch.stack(blurred), torch.stack(sharp), list(masks)


def released_batches(folder: Path, with_masks: bool = True, side: int = SIDE, batch: int = BATCH) -> Iterator[Any]:
    loader = DataLoader(ReleasedFiles(folder, side, with_masks), batch, shuffle=True, collate_fn=join, drop_last=True)
    return itertools.chain.from_iterable(itertools.repeat(loader))


def our_batches(
    store: MaskStore,
    per_image: int = 1,
    with_atoms: bool = True,
    cache: int = 0,
    workers: int = 0,
    side: int = SIDE,
    batch: int = BATCH,
) -> Iterator[Batch]:
    """As the trainer makes them, bytes still."""
    dataset = CropDataset(store, store.ready_keys, Cutting(side, per_image=per_image), 0, with_atoms, cache)
    return iter(crop_loader(dataset, Share(batch, 1, ENDLESS), workers))


def as_float(batches: Iterator[Batch]) -> Iterator[Batch]:
    cpu = torch.device("cpu")
    return (batch.to(cpu) for batch in batches)


def with_pngs(folder: Path) -> MaskStore:
    return with_dataset(open_store(folder / "store.zarr"), open_source(str(folder / "images"), "train"), "images")


# Turns on one core


def ways_of(folder: Path) -> dict[str, tuple[Iterator[Any], int]]:
    """Name -> batches, and how many of them are a turn."""
    path, released = folder / "store.zarr", folder / "released"
    ways: dict[str, tuple[Iterator[Any], int]] = {
        OURS: (as_float(our_batches(open_store(path))), 4),
        THEIRS: (released_batches(released), 2),
        OURS + BARE: (as_float(our_batches(open_store(path), with_atoms=False)), 4),
        THEIRS + BARE: (released_batches(released, with_masks=False), 2),
    }
    if not (folder / "images").exists():
        return ways
    ways["store, images left as bytes"] = our_batches(open_store(path)), 4
    kept, readers.CACHE_BYTES = readers.CACHE_BYTES, 1 << 20  # the indices of the shards, and hardly a chunk
    uncached = as_float(our_batches(open_store(path)))
    next(uncached)
    readers.CACHE_BYTES = kept
    ways["store, no chunk kept"] = uncached, 4
    for per_image in (2, 4, 8):
        ways[f"store, {per_image} crops of an image"] = as_float(our_batches(open_store(path), per_image)), 4
    for per_image in (1, 4):
        name = f"PNG folder with the store's masks, {per_image} crop{'s' * (per_image > 1)} of an image"
        ways[name] = as_float(our_batches(with_pngs(folder), per_image)), 2 if per_image == 1 else 3
    for name in ("zip", "h5"):
        ways[f"store exported as {name}"] = as_float(our_batches(open_store(folder / f"small.{name}"))), 4
    try:
        pixels = DISTINCT * COPIES * 2 * HEIGHT * WIDTH * 3
        cached = as_float(our_batches(open_store(path), cache=pixels))
    except ConfigError as error:
        print(f"no cache: {error}", file=sys.stderr)
    else:
        for _ in range(DISTINCT * COPIES // BATCH):  # the first epoch decodes
            next(cached)
        ways["store, images cached, second epoch on"] = cached, 4
    return ways


def take_turns(ways: dict[str, tuple[Iterator[Any], int]]) -> dict[str, Any]:
    """Name -> rates and how they vary.

    Ratios are medians of those of each turn, over the released recipe, without masks where the way has none.
    """
    processor: dict[str, list[float]] = {name: [] for name in ways}
    clock: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(-1, TURNS):  # the first one fills caches
        for place in np.random.default_rng(turn + 1).permutation(len(names)):
            batches, number = ways[names[place]]
            start, start_clock = time.process_time(), time.perf_counter()
            for _ in range(number):
                next(batches)
            if turn >= 0:
                processor[names[place]].append((time.process_time() - start) / number / BATCH)
                clock[names[place]].append((time.perf_counter() - start_clock) / number / BATCH)
    found = {}
    for name in names:
        seconds = statistics.median(processor[name])
        peer = THEIRS + BARE if name.endswith(BARE) else THEIRS
        ratios = np.array(processor[peer]) / processor[name]
        found[name] = {
            "samples/s per core": round(1 / seconds, 1),
            "ms per sample": round(1e3 * seconds, 2),
            "quartiles ms": np.round(1e3 * np.quantile(processor[name], (0.25, 0.75)), 2).tolist(),
            "ms on the clock": round(1e3 * statistics.median(clock[name]), 2),
            "over the released recipe": round(float(np.median(ratios)), 1),
            "quartiles of that": np.round(np.quantile(ratios, (0.25, 0.75)), 1).tolist(),
        }
    return found


def median_masks(path: Path) -> float:
    """Masks of a crop of the store."""
    batches = our_batches(open_store(path))
    return statistics.median(
        itertools.chain.from_iterable(
            torch.bincount(next(batches).atoms.mask_image, minlength=BATCH).tolist()  # type: ignore[union-attr]
            for _ in range(12)
        )
    )


# Worker processes and training steps, with all cores


def rates_with_workers(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for workers in (0, 1, 2):
        batches = as_float(our_batches(open_store(folder / "store.zarr"), workers=workers))
        for _ in range(WORKER_BATCHES):  # processes start, and what they read ahead is used up
            next(batches)
        seconds, processor = [], []
        for _ in range(STRETCHES):
            start, start_processor = time.perf_counter(), family_seconds()
            for _ in range(WORKER_BATCHES):
                next(batches)
            seconds.append(time.perf_counter() - start)
            processor.append(family_seconds() - start_processor)
        samples = WORKER_BATCHES * BATCH
        rows.append(
            {
                "workers": workers,
                "samples/s": round(samples / statistics.median(seconds), 1),
                "cores in use": round(sum(processor) / sum(seconds), 2),
                "samples/s per core": round(samples / statistics.median(processor), 1),
            }
        )
        del batches
    return rows


def family_seconds() -> float:
    """Processor time of this process and its workers."""
    total = time.process_time()
    for child in active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def training_steps(folder: Path) -> list[dict[str, Any]]:
    """NAFNet of width 32 with MAP and dropout, as the trainer steps it, on one thread; and how long it waits."""
    config = TrainConfig(method="map-dropout", batch_size=STEP_BATCH, crop_size=STEP_SIDE)
    network = build_network(config).train()
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, config.betas)  # type: ignore[arg-type]

    def step(batch: Batch) -> None:
        psnr_loss(network(batch.blurred, batch.atoms), batch.sharp).backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    rows = []
    ours = open_store(folder / "store.zarr")
    loaders: dict[str, Iterator[Any]] = {
        f"store, worker processes: {workers}": our_batches(ours, workers=workers, side=STEP_SIDE, batch=STEP_BATCH)
        for workers in (0, 1)
    }
    loaders["released recipe, worker processes: 0"] = released_batches(
        folder / "released", side=STEP_SIDE, batch=STEP_BATCH
    )
    kept = next(loaders["store, worker processes: 0"]).to(torch.device("cpu"))
    for name, batches in loaders.items():
        waits, steps = [], []
        for _ in range(WARM_STEPS + STEPS):
            start = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - start)
            start = time.perf_counter()
            step(batch.to(torch.device("cpu")) if isinstance(batch, Batch) else kept)
            steps.append(time.perf_counter() - start)
        wait, work = (statistics.median(seconds[WARM_STEPS:]) for seconds in (waits, steps))
        rows.append(
            {
                "loader": name,
                "waiting ms": round(1e3 * wait, 2),
                "step ms": round(1e3 * work, 1),
                "waiting, percent": round(100 * wait / (wait + work), 2),
            }
        )
    return rows


# Tables


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    print(flush=True)


def print_set(name: str, found: dict[str, Any]) -> None:
    facts = found["facts"]
    groups, masks = facts["groups per npz"], facts["masks per image"]
    print(
        f"\n{name}: {masks['mean']} masks per image ({masks['least']} to {masks['most']}), "
        f"{found['masks per crop']:.0f} per crop; {groups['mean']} groups per npz "
        f"({groups['least']} to {groups['most']})"
    )
    columns = ("samples/s per core", "ms per sample", "over the released recipe")
    print_table(("way", *columns), [(way, *(row[c] for c in columns)) for way, row in found["ways"].items()])
    print("MB per image:")
    for way, sizes in facts["bytes per image"].items():
        print(f"- {way}: " + ", ".join(f"{part} {size / 1e6:.2f}" for part, size in sizes.items()), flush=True)


def measure(folder: Path) -> dict[str, Any]:
    """A set, on one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # and with it every thread that is started from here on
    facts = json.loads((folder / "facts.json").read_text())
    return {"facts": facts, "masks per crop": median_masks(folder / "store.zarr"), "ways": take_turns(ways_of(folder))}


PARTS: dict[str, Callable[[Path], Any]] = {"set": measure, "workers": rates_with_workers, "steps": training_steps}


def in_own_process(part: str, folder: Path) -> Any:
    """What a part finds, in a process that has not read anything."""
    command = [sys.executable, "-m", "benchmarks.train.loader", "--part", part, "--data", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=Path, help="a folder of pairs, blur/ and sharp/, of 1280x720")
    parser.add_argument("--data", type=Path, help="a folder to keep the files in")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if options.part:
        print(json.dumps(PARTS[options.part](options.data)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = options.data or Path(temporary)
        names = write_sets(root, options.pairs)
        sets = {}
        for name in names:
            sets[name] = in_own_process("set", root / name)
            print_set(name, sets[name])
        others = {part: in_own_process(part, root / names[0]) for part in ("workers", "steps")}
    for part, rows in others.items():
        print(f"\n{part}, all cores:")
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    out = RESULTS / "loader.json"
    result = {"machine": machine, "turns": TURNS, "batch": BATCH, "crop": SIDE, "sets": sets, **others}
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
