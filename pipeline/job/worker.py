"""One block of work: images in, shards in a staging folder and a small report out."""

from __future__ import annotations

import errno
import itertools
import os
import platform
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distributed import get_worker
from numpy.typing import NDArray

from samdeblur.models import NotFinite, deblur, device_facts, let_go, pick_device
from samdeblur.models.checkpoints.finding import SeveralNetworks
from samdeblur.pipeline.job.blame import Blame, Blamed, alike, as_sent, blame, is_out_of_gpu_memory
from samdeblur.pipeline.job.blocks import BlockFailure, BlockReport, BlockTask, Clock, NotShared
from samdeblur.pipeline.job.embeddings import kept_features
from samdeblur.pipeline.job.memory import require_room
from samdeblur.pipeline.job.recipe import PrepSettings, Stages, load_stages
from samdeblur.pipeline.segmenters.base import Embeds, Finds, Records, TrueMasks
from samdeblur.pipeline.segmenters.kept import pack
from samdeblur.pipeline.segmenters.plugins import checked, provider
from samdeblur.pipeline.segmenters.refine import refine
from samdeblur.pipeline.segmenters.sam import SamSegmenter
from samdeblur.pipeline.sources.base import BadImage, ImagePair
from samdeblur.storage import AtomMap, MaskStore, open_store
from samdeblur.storage.files import write_durably
from samdeblur.storage.format.layout import DONE, ERROR_BYTES, QUARANTINED, fingerprint
from samdeblur.storage.writing.commits import (
    ImageContent,
    ImageOutcome,
    StagedBlock,
    check_caps,
    geometry_records,
    stage_block,
)

WORKING = "working"  # in a staging folder: the key of the image a careful attempt is at
OUT_OF_MEMORY = "out of GPU memory; use a GPU with more, or a lower --points-per-batch"

Read = Callable[[], ImagePair]
Encode = Callable[[], tuple[AtomMap, Records]]
Finished = tuple[ImageContent | None, ImageOutcome, str]  # and the name of its error, if it may be another's

# Blocks of one process take turns with its device; while one is written, the next uses it.
_device = threading.Lock()


def run_block(task: BlockTask) -> BlockReport | BlockFailure:
    """Read, pre-deblur, segment, encode and stage the images of a block.

    An image that cannot be processed is quarantined with its reason. What is no fault of an image (`blame`) is
    returned, so that the block is done again, elsewhere if need be; what is wrong anywhere (a model that does not load)
    is raised. One thread computes, so that results do not depend on how many workers share the machine.
    """
    staging = Path(f"{task.staging}-{uuid.uuid4().hex[:12]}")
    try:
        if not (Path(task.store) / "zarr.json").is_file():
            raise NotShared(
                errno.ENOENT,
                "not there on this machine; workers need access to the file system of the store",
                task.store,
            )
        return _run_block(task, staging)
    except Exception as error:
        found = error if isinstance(error, Blamed) else Blamed(blame(error), error)
        shutil.rmtree(staging, ignore_errors=True)
        if found.blame is Blame.IMAGE:
            raise
        sent = as_sent(found.error, found.blame)
        let_go(error)
        return BlockFailure(worker_address(), sent, found.blame, place(task.settings.device), found.key)


def _run_block(task: BlockTask, staging: Path) -> BlockReport:
    clock = Clock()
    device = pick_device(task.settings.device)
    keys, read = task.source.keys, task.source.read
    reads = (partial(read, key) for key in keys) if task.careful else read_ahead(read, keys)
    with ThreadPoolExecutor(1, "encode") as pool:
        with _device, one_thread():
            start = time.perf_counter()
            with clock("load"):
                stages = _loaded_stages(task.settings, device)
            before = _splits(stages)
            finished = list(_find_all(task, staging, reads, stages, clock, pool))
            splits = _splits(stages) - before
        contents, outcomes, kinds = zip(*(future.result() for future in finished), strict=True)
        with clock("write"):
            digests = stage_block(Path(task.store), task.header, staging, task.block, contents)
    staged = StagedBlock(task.block, str(staging), outcomes, digests)
    return BlockReport(
        staged,
        dict(clock.seconds),
        time.perf_counter() - start,
        dict(clock.image_seconds),
        environment(device, task.settings.segmenter.name),
        splits,
        worker_address(),
        place(task.settings.device),
        kinds[0] if len(set(kinds)) == 1 else "",
    )


def read_ahead(read: Callable[[str], ImagePair], keys: Sequence[str]) -> Iterator[Read]:
    """For each key a function that gives its pair, or raises what reading raised; the next is read meanwhile."""
    pool = ThreadPoolExecutor(1, "read")
    first = pool.submit(read, keys[0])

    def reads() -> Generator[Read, None, None]:
        with pool:
            ahead = first
            for following in keys[1:]:
                now, ahead = ahead, pool.submit(read, following)
                yield now.result
            yield ahead.result

    return reads()


def _find_all(
    task: BlockTask, staging: Path, reads: Iterator[Read], stages: Stages, clock: Clock, pool: ThreadPoolExecutor
) -> Iterator[Future[Finished]]:
    """The images of a block, their masks becoming atoms in the pool while the next is segmented."""
    images = zip(task.source.keys, task.shapes, reads, strict=True)
    kept = open_store(task.settings.embeddings) if task.settings.embeddings is not None else None
    while group := list(itertools.islice(images, 1 if task.careful else task.settings.speed.batch)):
        if task.careful:
            write_durably(staging / WORKING, group[0][0].encode())
        opened = [_open(key, shape, read, task.skip.get(key), stages, clock) for key, shape, read in group]
        if task.settings.speed.batch > 1 and kept is None:
            opened = _embed_together(opened, stages, clock)
        for image in opened:
            if kept is not None or task.header.embeddings:
                image = _embed_crops(image, kept, stages, clock)
            found = _find_masks(image, stages, clock)
            if task.settings.refine and image.pixels is not None:
                found = partial(_refine, found, image.pixels, task.settings.refine)
            future = pool.submit(_finish, image, found, clock, task.header.images)
            if task.careful:
                future.result()
            yield future


def _splits(stages: Stages) -> int:
    return int(getattr(stages.segmenter, "splits", 0))


@dataclass(frozen=True)
class Opened:
    """An image on its way: read, pre-deblurred, perhaps embedded; or what went wrong with it."""

    key: str
    pair: ImagePair | None = None
    pixels: NDArray[np.uint8] | None = None
    embedding: Any = None
    features: Sequence[NDArray[np.float16]] = ()  # of the embedding, where they are to be kept
    error: Exception | None = None
    planned: bool = True  # whether its size was known when the store was planned


def _open(key: str, shape: tuple[int, int], read: Read, skip: str | None, stages: Stages, clock: Clock) -> Opened:
    pair: ImagePair | None = None
    try:
        if skip is not None:
            raise BadImage(skip)
        with clock("read", key):
            pair = read()
            if pair.blurred.shape[:2] != shape:
                planned = f"{shape[1]}x{shape[0]}" if any(shape) else "unreadable, or too large beside the others,"
                now = f"{pair.blurred.shape[1]}x{pair.blurred.shape[0]}"
                raise BadImage(
                    f"{key}: was {planned} when the store was planned, is {now} now; run again with --retry-quarantined"
                )
        require_room(pair.blurred, stages)
        if stages.network is None:
            return Opened(key, pair, pair.blurred)
        with clock("predeblur", key):
            return Opened(key, pair, deblur(stages.network, pair.blurred))
    except Exception as error:  # whatever is wrong with one image must not stop the others
        return Opened(key, pair, error=_image_error(error, key), planned=any(shape))


def _image_error(error: Exception, key: str) -> Exception:
    """The error of an image, without what it holds on to. Raises Blamed for one that is no image's."""
    if (found := blame(error)) is not Blame.IMAGE:
        raise Blamed(found, error, key) from error
    if is_out_of_gpu_memory(error):
        let_go(error)
    return error.with_traceback(None)


def _embed_together(images: list[Opened], stages: Stages, clock: Clock) -> list[Opened]:
    """Images that went through the image encoder in one batch; each by itself later, when one of them cannot."""
    inputs = [image.pixels for image in images if image.pixels is not None]
    if not isinstance(stages.segmenter, Embeds) or not inputs:
        return images
    try:
        with clock("segment"):
            embeddings = iter(stages.segmenter.embed(inputs))
    except Exception as error:
        _image_error(error, images[0].key)
        return images
    return [replace(image, embedding=next(embeddings)) if image.pixels is not None else image for image in images]


def _embed_crops(image: Opened, kept: MaskStore | None, stages: Stages, clock: Clock) -> Opened:
    """An image with the embeddings of all its crops: those that another store keeps, or those that are to be kept."""
    if image.pair is None or image.pixels is None:
        return image
    segmenter = stages.segmenter
    assert isinstance(segmenter, SamSegmenter)
    try:
        with clock("segment", image.key):
            if kept is None:
                crops = segmenter.embed_crops(image.pixels, image.embedding)
                return replace(image, embedding=crops, features=pack(crops))
            features = kept_features(kept, image.key, image.pair.digest, segmenter.recipe())
            return replace(image, embedding=segmenter.kept_crops(image.pair.blurred.shape[:2], features))
    except Exception as error:  # as above
        return replace(image, pixels=None, error=_image_error(error, image.key))


def _find_masks(image: Opened, stages: Stages, clock: Clock) -> Encode:
    """What is left to do for the masks of an image; it raises what went wrong with it so far."""
    try:
        if image.error is not None:
            raise image.error
        assert image.pair is not None
        assert image.pixels is not None
        if isinstance(stages.segmenter, TrueMasks):
            masks = image.pair.masks
            if masks is None:
                raise BadImage(f"{image.key}: its source has no true masks")
            return lambda: (masks, {})
        with clock("segment", image.key):
            if isinstance(stages.segmenter, Finds):
                finish = stages.segmenter.find(image.pixels, image.embedding)
            else:
                found = stages.segmenter.segment(image.pixels)
                finish = lambda: found  # noqa: E731
        if stages.plugin is None:
            return finish
        name, shape = stages.plugin, image.pixels.shape[:2]
        return lambda: checked(name, finish(), shape)
    except Exception as error:  # as above
        return partial(_fail, _image_error(error, image.key))


def _refine(find: Encode, pixels: NDArray[np.uint8], reach: int) -> tuple[AtomMap, Records]:
    atoms, records = find()
    return refine(atoms, pixels, reach), records


def _fail(error: Exception) -> tuple[AtomMap, Records]:
    raise error


def _finish(image: Opened, encode: Encode, clock: Clock, with_images: bool) -> Finished:
    pair = image.pair
    try:
        with clock("encode", image.key):
            atoms, records = encode()
            check_caps(atoms)
            records = records | geometry_records(atoms)
    except Exception as error:  # as above
        kind = alike(error, image.planned)
        error = _image_error(error, image.key)
        reason = OUT_OF_MEMORY if is_out_of_gpu_memory(error) else f"{type(error).__name__}: {error}"
        if isinstance(error, BadImage | NotFinite):
            reason = last_bytes(str(error), ERROR_BYTES)  # after a long path comes what is wrong
        digest = pair.digest if pair is not None else bytes(32)
        return None, ImageOutcome(QUARANTINED, digest, error=reason), kind
    assert pair is not None
    blurred, sharp = (pair.blurred, pair.sharp) if with_images else (None, None)
    counts = (atoms.n_masks, atoms.n_atoms, len(atoms.pairs))
    content = ImageContent(atoms, records, blurred, sharp, image.features)
    return content, ImageOutcome(DONE, pair.digest, counts), ""


def _loaded_stages(settings: PrepSettings, device: torch.device) -> Stages:
    """The models of a recipe. Raises Blamed where this worker cannot take them, else what is wrong with them."""
    try:
        return cached_stages(settings, device)
    except Exception as error:
        found = blame(error, loading=True)
        if found in (Blame.DEVICE, Blame.MEMORY, Blame.ENVIRONMENT):
            raise Blamed(found, error) from error
        raise


_loaded: dict[str, Stages] = {}


def cached_stages(settings: PrepSettings, device: torch.device) -> Stages:
    """The models of a recipe; a process keeps those of the last one."""
    key = f"{device} {fingerprint(settings.recipe())}"
    if key not in _loaded:
        _loaded.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SeveralNetworks)  # said when the job was planned
            _loaded[key] = load_stages(settings, device)
    return _loaded[key]


def last_bytes(text: str, size: int) -> str:
    """The end of a text when all of it takes more bytes as UTF-8."""
    raw = text.encode()
    mark = "..."
    return text if len(raw) <= size else mark + raw[len(mark) - size :].decode(errors="ignore")


def worker_address() -> str:
    """Of this Dask worker; empty outside one."""
    try:
        return str(get_worker().address)
    except ValueError:
        return ""


def place(device: str) -> str:
    """Where this process is: the host and its GPU, or its number among the workers; a process that replaces it says
    the same.
    """
    host, visible = platform.node(), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if device != "cpu" and (visible or torch.cuda.is_available()):
        return f"{host}, GPU {visible or 0}"
    try:
        name = str(get_worker().name)
    except ValueError:
        return host
    return host if "://" in name else f"{host}, worker {name}"


def working_on(staging: str) -> list[str]:
    """The keys that the attempts at a block whose worker died were at, of those that were careful."""
    path = Path(staging)
    return [file.read_text() for file in sorted(path.parent.glob(f"{path.name}-*/{WORKING}"))]


@contextmanager
def one_thread() -> Iterator[None]:
    """Thread counts change float results, so exact mode fixes them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def environment(device: torch.device, segmenter: str = "") -> dict[str, str]:
    """Versions and hardware, kept beside the store: within one environment results are the same to the byte."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **device_facts(device),
        "machine": platform.machine(),
        **({"segmenter": of} if (of := provider(segmenter)) else {}),
    }
