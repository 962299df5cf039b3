"""Running a network over whole images and scoring what comes out."""

from __future__ import annotations

import hashlib
import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from samdeblur.evaluation.journal import Entry, Journal
from samdeblur.evaluation.metrics.alignment import aligned_scores
from samdeblur.evaluation.metrics.perceptual import PerceptualError, PerceptualMetrics
from samdeblur.evaluation.metrics.psnr_ssim import FIDELITY, SMALLEST, compare
from samdeblur.evaluation.ranks import Ranks
from samdeblur.evaluation.report.images import (
    forget_images,
    keep_images,
    keep_strip,
    keep_thumbnail,
    kept_images,
    read_thumbnail,
)
from samdeblur.evaluation.restore import Restored, Restorer
from samdeblur.evaluation.results import Conventions, Inference, Score, SetResult, examples, worst_first
from samdeblur.evaluation.sets import ImageSet, Masks, Sample, UnusableImage
from samdeblur.models import Deblurrer, deblur
from samdeblur.models.inference.tiles import OVERLAP
from samdeblur.storage import AtomMap, MaskStore
from samdeblur.storage.files import file_stamp, write_durably
from samdeblur.storage.format.layout import pixel_digest
from samdeblur.storage.names import file_name, file_path
from samdeblur.storage.plurals import counted

Item = TypeVar("Item")
Found = TypeVar("Found")
ImageArray = NDArray[np.uint8]
CPU = torch.device("cpu")


class NoImages(ValueError):
    """A set of which no image can be used."""


def _without_bar(items: Iterable[Item], what: str) -> Iterable[Item]:
    return items


@dataclass(frozen=True)
class Evaluation:
    """What is done with every set.

    Attributes:
        folder: where results, images and journals go.
        sha256: hex digest of the weights.
        conventions: what numbers mean.
        extra: metrics beside PSNR and SSIM.
        shown_images: of each set that the report shows in full, the worst ones; 0 keeps none at all.
        save_images: whether all results are written as PNG files.
        say: takes one line for a person.
        bar: shows how far it is with some items of work.
    """

    folder: Path
    sha256: str
    conventions: Conventions
    extra: PerceptualMetrics | None = None
    shown_images: int = 24
    save_images: bool = False
    say: Callable[[str], None] = print
    bar: Callable[[Sequence[Any], str], Iterable[Any]] = _without_bar


def evaluate(
    network: Deblurrer,
    images: ImageSet,
    inference: Inference,
    task: Evaluation,
    ranks: Ranks,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SetResult:
    """Score a network on a set, going on where an evaluation of the same kind was stopped.

    What was scored counts as long as the image is the same, in content; an image that was replaced is scored again.

    Args:
        network: as it was loaded; `inference` says what is done with it.
        progress: called with the number of images that are done, and of all, as far as this process knows.

    Raises:
        NotFinite, OutOfMemory, TileError: the network cannot do it; what was scored is kept.
        NoImages: none of the images can be used.
    """
    about = SetResult(images.dataset, images.split, images.recipe, (), inference)
    identity = {
        "journal": 2,
        "weights": task.sha256,
        "set": about.name,
        "recipe": images.recipe,
        "inference": asdict(inference),
        "conventions": asdict(task.conventions),
        "metrics": {metric.name: metric.library for metric in task.extra.metrics} if task.extra else {},
        "saved": task.save_images,
    }
    journal = Journal(task.folder, about.name, identity, ranks.rank)
    mine = _Scoring(network, images, inference, task, ranks, about.name)
    known = journal.read(mine.holds)
    ranks.wait()  # all have read before any writes
    for entry in ranks.share([entry for key, entry in known.items() if entry.stamp != images.stamp(key)]):
        journal.add(replace(entry, stamp=images.stamp(entry.score.key)))  # touched, and still the same
    keys = ranks.share([key for key in images.keys if key not in known])
    progress(len(known), len(images.keys))
    kept = _WorstImages(task.shown_images, (entry.score for entry in known.values()))
    unusable: dict[str, str] = {}
    start = time.perf_counter()
    for number, (key, read) in enumerate(_read_ahead(mine.read, keys), 1):
        try:
            if isinstance(read, UnusableImage):
                raise read
            score, result, masks = mine.score(key, read.sample)
        except UnusableImage as error:
            task.say(f"{about.name}: {key} is left out: {error}")
            unusable[key] = str(error)
            progress(len(known) + number, len(images.keys))
            continue
        mine.keep(score, read.sample, result, masks, kept.takes(score))
        seconds, start = time.perf_counter() - start, time.perf_counter()
        journal.add(Entry(score, seconds, read.stamp, read.content, mine.saved(key)))
        progress(len(known) + number, len(images.keys))
    for theirs in ranks.gather([unusable]):
        unusable |= theirs
    found = journal.read(lambda entry: entry.score.key not in unusable)
    ordered = [found[key] for key in images.keys if key in found]
    if not ordered:
        key, why = next(iter((unusable | dict(images.left_out)).items()))
        raise NoImages(f"{about.name}: none of {counted(len(images.keys), 'image')} can be used; {key}: {why}")
    scores = tuple(entry.score for entry in ordered)
    mine.complete(scores)
    left_out = dict(images.left_out) | unusable
    return replace(
        about,
        scores=scores,
        unready=len(left_out),
        left_out=left_out,
        seconds=sum(entry.seconds for entry in ordered),
        collapse_db=task.conventions.collapse_db,
        segmenter=images.segmenter if network.prior is not None else "",
        trained_on=bool(images.seal) and images.seal in _training_seals(network),
    )


class _ReadImage(NamedTuple):
    """An image, with what it went by just before it was read."""

    sample: Sample
    stamp: str
    content: str


class _Scoring:
    """A network at work on one set: what comes out of it is measured, and kept for the report."""

    def __init__(
        self, network: Deblurrer, images: ImageSet, inference: Inference, task: Evaluation, ranks: Ranks, name: str
    ) -> None:
        self.network, self.images, self.inference, self.task, self.ranks = network, images, inference, task, ranks
        self.name = name
        self.device = next(network.parameters()).device

    @cached_property
    def restorer(self) -> Restorer:
        """Made when there is something to do: local means take a pass of the network."""
        return Restorer(self.network, self.inference, self.task.say if self.ranks.first else lambda line: None)

    def holds(self, entry: Entry) -> bool:
        """Whether a score is still that of the image: by what the image goes by, in doubt by its content."""
        key = entry.score.key
        if key not in self._keys or entry.saved != self.saved(key):
            return False
        return entry.stamp == self.images.stamp(key) or entry.content == self.images.content(key)

    @cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(self.images.keys)

    def saved(self, key: str) -> str:
        return file_stamp(restored_path(self.task.folder, self.name, key)) if self.task.save_images else ""

    def read(self, key: str) -> _ReadImage:
        """Raises UnusableImage."""
        stamp, content = self.images.stamp(key), self.images.content(key)
        sample = self.images.sample(key)
        height, width = sample.blurred.shape[:2]
        if sample.sharp is not None and min(height, width) < SMALLEST:
            raise UnusableImage(f"{width}x{height} pixels, less than the {SMALLEST} of a window of SSIM")
        return _ReadImage(sample, stamp, content)

    def score(self, key: str, sample: Sample) -> tuple[Score, Restored, Masks | None]:
        """Raises UnusableImage."""
        masks = self.images.masks(key, sample.blurred) if self.network.prior is not None else None
        restored = self.restorer(sample.blurred, masks.atoms if masks is not None else None)
        aligned = self.task.conventions.align == "ecc"
        try:
            score = measure(key, sample, restored, aligned, self.task.extra, self.device)
        except PerceptualError as error:
            raise UnusableImage(str(error)) from error
        return replace(score, pixels=_pixels(sample)), restored, masks

    def keep(self, score: Score, sample: Sample, restored: Restored, masks: Masks | None, in_full: bool) -> None:
        """Write what the report shows of an image, and the result itself where that is wanted."""
        folder, key = self.task.folder, score.key
        if self.task.shown_images:
            keep_thumbnail(folder, self.name, key, restored.image)
            keep_strip(folder, self.name, key, sample.blurred, restored.image, sample.sharp)
        if self.task.save_images:
            write_png(restored_path(folder, self.name, key), restored.image)
        if in_full:
            if masks is None and self.images.stored:
                masks = self.images.masks(key, sample.blurred)
            atoms, records = masks or (None, None)
            keep_images(folder, self.name, key, sample.blurred, restored.image, sample.sharp, atoms, records)

    def complete(self, scores: Sequence[Score]) -> None:
        """Take away what the report does not show, and make what it lacks: where more images are asked for now."""
        folder, shown = self.task.folder, self.task.shown_images
        worst = worst_first(scores)[:shown]
        if self.ranks.first:
            thumbnails = [score.key for score in scores] if shown else []
            strips = [score.key for _, score in examples(scores)] if shown else []
            forget_images(folder, self.name, [score.key for score in worst], thumbnails, strips)
        self.ranks.wait()
        in_full = {score.key for score in worst}
        lacking = [
            score
            for score in (scores if shown else [])
            if read_thumbnail(folder, self.name, score.key) is None
            or (score.key in in_full and not kept_images(folder, self.name, score.key))
        ]
        for score in self.task.bar(self.ranks.share(lacking), f"{self.name}: images of the report"):
            sample = self.read(score.key).sample
            _, restored, masks = self.score(score.key, sample)
            self.keep(score, sample, restored, masks, score.key in in_full)
        self.ranks.wait()


class _WorstImages:
    """The worst images so far, as many as are shown."""

    def __init__(self, count: int, scores: Iterable[Score]) -> None:
        self.count = count
        self._gains: list[float] = []  # a heap, of negated gains: the best of the worst comes first
        for score in scores:
            self.takes(score)

    def takes(self, score: Score) -> bool:
        """Whether an image is among them, from now on."""
        if len(self._gains) < self.count:
            heapq.heappush(self._gains, -score.gain)
            return True
        if not self.count or score.gain > -self._gains[0]:
            return False
        heapq.heapreplace(self._gains, -score.gain)
        return True


def _pixels(sample: Sample) -> str:
    """The start of a digest of an image, decoded."""
    digest = hashlib.sha256(pixel_digest(sample.blurred))
    if sample.sharp is not None:
        digest.update(pixel_digest(sample.sharp))
    return digest.hexdigest()[:16]


def score_images(
    network: Deblurrer, store: MaskStore, keys: Sequence[str], tile: int | None = None, overlap: int = OVERLAP
) -> Iterator[tuple[Score, ImageArray]]:
    """Deblur images of a store with its masks; yields the score and the result, (H, W, 3) uint8.

    Scores are computed on the device of the network; the next image is read meanwhile. `tile` and `overlap` as in
    `deblur`.
    """
    device = next(network.parameters()).device

    def read(key: str) -> tuple[Sample, AtomMap | None]:
        sample = Sample(store.image("blurred", key), store.image("sharp", key))
        return sample, store.atoms(key) if network.prior is not None else None

    for key, found in _read_ahead(read, keys):
        if isinstance(found, UnusableImage):
            raise found
        sample, atoms = found
        result = deblur(network, sample.blurred, atoms, tile, overlap)
        yield measure(key, sample, Restored(result), device=device), result


def measure(
    key: str,
    sample: Sample,
    restored: Restored,
    aligned: bool = False,
    extra: PerceptualMetrics | None = None,
    device: torch.device = CPU,
) -> Score:
    """The score of a result; without a sharp image it has those metrics alone that need none.

    Args:
        aligned: bring blurred and result to the place and gain of the sharp image first, as `align` does; the flag
            "unaligned" says where that failed.
        extra: metrics beside PSNR and SSIM, of the result as it is.
        device: where PSNR and SSIM are computed.
    """
    blurred, sharp = sample
    result, found, fallback = restored
    more = extra(result, sharp) if extra is not None else {}
    if sharp is None:
        return Score(key, more, found, fallback)
    if aligned:
        sides = [aligned_scores(image, sharp) for image in (blurred, result)]
        found += () if all(side.found for side in sides) else ("unaligned",)
        before, after = ({name: getattr(side, name) for name in FIDELITY} for side in sides)
    else:
        tensors = (torch.from_numpy(image)[None].permute(0, 3, 1, 2).to(device) for image in (sharp, blurred, result))
        before, after = ({name: float(value) for name, value in one.items()} for one in compare(*tensors))
    fidelity = {
        f"{name}{side}": found[name] for name in FIDELITY for side, found in (("_blurred", before), ("", after))
    }
    return Score(key, fidelity | more, found, fallback)


def restored_path(folder: Path, name: str, key: str) -> Path:
    """Where the result of an image is saved: key as a path below a folder of the set."""
    return folder / "restored" / file_name(name) / file_path(key, ".png")


def write_png(path: Path, image: ImageArray) -> None:
    """An (H, W, 3) uint8 RGB image, whole or not there."""
    done, data = cv2.imencode(".png", image[..., ::-1])
    if not done:
        raise OSError(f"{path}: cannot be encoded as PNG")
    write_durably(path, data.tobytes())


def _read_ahead(read_one: Callable[[str], Found], keys: Sequence[str]) -> Iterator[tuple[str, Found | UnusableImage]]:
    """The images of each key, or why there are none; the next are read meanwhile."""

    def read(key: str) -> Found | UnusableImage:
        try:
            return read_one(key)
        except UnusableImage as error:
            return error

    with ThreadPoolExecutor(1, "read") as pool:
        ahead: Future[Found | UnusableImage] | None = pool.submit(read, keys[0]) if keys else None
        for position, key in enumerate(keys):
            assert ahead is not None
            now = ahead
            ahead = pool.submit(read, keys[position + 1]) if position + 1 < len(keys) else None
            yield key, now.result()


def _training_seals(network: Deblurrer) -> set[str]:
    """Of the images a network says it was trained on."""
    provenance = network.provenance or {}
    masks = provenance.get("masks")
    others = [used.get("seal") for used in masks if isinstance(used, Mapping)] if isinstance(masks, list) else []
    return {str(seal) for seal in (provenance.get("images"), *others) if seal}
