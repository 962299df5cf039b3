"""One block of work: images in, shards in a staging folder and a small report out."""

from __future__ import annotations

import itertools
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from distributed import get_worker
from numpy.typing import NDArray

from samdeblur.models import deblur, pick_device
from samdeblur.pipeline.masks import Crop, Records
from samdeblur.pipeline.recipe import PrepSettings, Stages, load_stages
from samdeblur.pipeline.segment import SamSegmenter
from samdeblur.pipeline.sources import BadImage, ImagePair, Source
from samdeblur.storage import AtomMap
from samdeblur.storage.commits import (
    ImageContent,
    ImageOutcome,
    StagedBlock,
    check_caps,
    geometry_records,
    stage_block,
)
from samdeblur.storage.layout import DONE, QUARANTINED, Header, fingerprint

Encode = Callable[[], tuple[AtomMap, Records]]


@dataclass(frozen=True)
class BlockTask:
    """What a worker needs to know. `source` holds the images of this block alone, `shapes` their planned sizes."""

    store: str
    header: Header
    block: int
    staging: str
    source: Source
    shapes: tuple[tuple[int, int], ...]
    settings: PrepSettings


@dataclass(frozen=True)
class BlockReport:
    """What a worker did: the staged block, seconds spent by stage, and the environment it ran in."""

    staged: StagedBlock
    seconds: dict[str, float]
    environment: dict[str, str] = field(default_factory=dict)


class Clock:
    """Adds up wall time by stage."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


def run_block(task: BlockTask) -> BlockReport:
    """Read, pre-deblur, segment, encode and stage the images of a block.

    An image that cannot be processed is quarantined with its reason; only what concerns every image (a model that
    does not load, a disk that does not take the shards) raises. One thread, so that results do not depend on how many
    workers share the machine.
    """
    clock = Clock()
    device = pick_device(task.settings.device, worker_index())
    with one_thread():
        with clock("load"):
            stages = cached_stages(task.settings, device)
        finished: list[Future[tuple[ImageContent | None, ImageOutcome]]] = []
        reads = read_ahead(task.source.read, task.source.keys)
        images = zip(task.source.keys, task.shapes, reads, strict=True)
        with ThreadPoolExecutor(1, "encode") as pool:  # masks become atoms while the next image is segmented
            while group := list(itertools.islice(images, task.settings.speed.batch)):
                opened = [_open(key, shape, read, stages, clock) for key, shape, read in group]
                for image in _embed_together(opened, stages, clock) if task.settings.speed.batch > 1 else opened:
                    encode = _find_masks(image, stages, clock)
                    finished.append(pool.submit(_finish, image, encode, clock, task.header.images))
        contents, outcomes = zip(*(future.result() for future in finished), strict=True)
        with clock("write"):
            digests = stage_block(Path(task.store), task.header, Path(task.staging), task.block, contents)
    staged = StagedBlock(task.block, task.staging, outcomes, digests)
    return BlockReport(staged, dict(clock.seconds), environment(device))


def read_ahead(read: Callable[[str], ImagePair], keys: Sequence[str]) -> Generator[Callable[[], ImagePair], None, None]:
    """For each key a function that gives its pair, or raises what reading raised; the next is read meanwhile."""
    with ThreadPoolExecutor(1, "read") as pool:
        ahead = pool.submit(read, keys[0])
        for following in keys[1:]:
            now, ahead = ahead, pool.submit(read, following)
            yield now.result
        yield ahead.result


@dataclass(frozen=True)
class Opened:
    """An image on its way: read, pre-deblurred, perhaps embedded; or what went wrong with it."""

    key: str
    pair: ImagePair | None = None
    picture: NDArray[np.uint8] | None = None
    embedding: Crop | None = None
    error: Exception | None = None


def _open(key: str, shape: tuple[int, int], read: Callable[[], ImagePair], stages: Stages, clock: Clock) -> Opened:
    pair: ImagePair | None = None
    try:
        with clock("read"):
            pair = read()
            if pair.blurred.shape[:2] != shape:
                planned = f"{shape[1]}x{shape[0]}" if any(shape) else "unreadable"
                now = f"{pair.blurred.shape[1]}x{pair.blurred.shape[0]}"
                raise BadImage(f"{key}: was {planned} when the store was planned and is {now}; prepare a new store")
        if stages.network is None:
            return Opened(key, pair, pair.blurred)
        with clock("predeblur"):
            return Opened(key, pair, deblur(stages.network, pair.blurred))
    except Exception as error:  # whatever is wrong with one image must not stop the others
        return Opened(key, pair, error=error)


def _embed_together(images: list[Opened], stages: Stages, clock: Clock) -> list[Opened]:
    """Images that went through the image encoder in one batch; each by itself later, when one of them cannot."""
    pictures = [image.picture for image in images if image.picture is not None]
    if not isinstance(stages.segmenter, SamSegmenter) or not pictures:
        return images
    try:
        with clock("segment"):
            embeddings = iter(stages.segmenter.embed(pictures))
    except ValueError:
        return images
    return [replace(image, embedding=next(embeddings)) if image.picture is not None else image for image in images]


def _find_masks(image: Opened, stages: Stages, clock: Clock) -> Encode:
    """What is left to do for the masks of an image; it raises what went wrong with it so far."""
    try:
        if image.error is not None:
            raise image.error
        assert image.pair is not None
        assert image.picture is not None
        if stages.segmenter is None:
            masks = image.pair.masks
            if masks is None:
                raise BadImage(f"{image.key}: its source knows no true masks")
            return lambda: (masks, {})
        with clock("segment"):
            if isinstance(stages.segmenter, SamSegmenter):
                return stages.segmenter.find(image.picture, image.embedding)
            found = stages.segmenter.segment(image.picture)
            return lambda: found
    except Exception as error:  # as above
        return partial(_fail, error)


def _fail(error: Exception) -> tuple[AtomMap, Records]:
    raise error


def _finish(
    image: Opened, encode: Encode, clock: Clock, with_pictures: bool
) -> tuple[ImageContent | None, ImageOutcome]:
    pair = image.pair
    try:
        with clock("encode"):
            atoms, records = encode()
            check_caps(atoms)
            records = records | geometry_records(atoms)
    except Exception as error:  # as above
        reason = str(error) if isinstance(error, BadImage) else f"{type(error).__name__}: {error}"
        digest = pair.digest if pair is not None else bytes(32)
        return None, ImageOutcome(QUARANTINED, digest, error=reason)
    assert pair is not None
    pictures = (pair.blurred, pair.sharp) if with_pictures else (None, None)
    counts = (atoms.n_masks, atoms.n_atoms, len(atoms.pairs))
    return ImageContent(atoms, records, *pictures), ImageOutcome(DONE, pair.digest, counts)


_loaded: dict[str, Stages] = {}


def cached_stages(settings: PrepSettings, device: torch.device) -> Stages:
    """The models of a recipe; a process keeps those of the last one."""
    key = f"{device} {fingerprint(settings.recipe())}"
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = load_stages(settings, device)
    return _loaded[key]


def worker_index() -> int:
    """The number of this Dask worker, by its name; 0 outside one."""
    try:
        return int(get_worker().name)
    except ValueError:
        return 0


@contextmanager
def one_thread() -> Iterator[None]:
    """Thread counts change float results, so exact mode fixes them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware, kept beside the store: within one environment results are the same to the byte."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": name,
        "machine": platform.machine(),
    }
