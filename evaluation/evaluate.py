"""Running a network over whole images and scoring what comes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from samdeblur.evaluation.journal import Journal
from samdeblur.evaluation.metrics.alignment import aligned_scores
from samdeblur.evaluation.metrics.perceptual import PerceptualMetrics
from samdeblur.evaluation.metrics.psnr_ssim import FIDELITY, compare
from samdeblur.evaluation.ranks import Ranks
from samdeblur.evaluation.report.pictures import forget_pictures, keep_pictures, keep_thumbnail
from samdeblur.evaluation.restore import Restored, Restorer
from samdeblur.evaluation.results import Conventions, Inference, Score, SetResult
from samdeblur.evaluation.sets import ImageSet, Sample, UnusableImage
from samdeblur.models import Deblurrer, deblur
from samdeblur.models.inference.tiles import OVERLAP
from samdeblur.storage import MaskStore
from samdeblur.storage.files import write_durably

Picture = NDArray[np.uint8]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Evaluation:
    """What is done with every set.

    Attributes:
        folder: where results, pictures and journals go.
        sha256: hex digest of the weights.
        conventions: what numbers mean.
        extra: metrics beside PSNR and SSIM.
        pictures: images of each set that the report shows in full, the worst ones; 0 keeps no pictures at all.
        save_images: whether all results are written as PNG files.
        say: takes one line for a person.
    """

    folder: Path
    sha256: str
    conventions: Conventions
    extra: PerceptualMetrics | None = None
    pictures: int = 24
    save_images: bool = False
    say: Callable[[str], None] = print


def evaluate(
    network: Deblurrer,
    images: ImageSet,
    inference: Inference,
    task: Evaluation,
    ranks: Ranks,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SetResult:
    """Score a network on a set, going on where an evaluation of the same kind was stopped.

    Args:
        network: as it was loaded; `inference` says what is done with it.
        progress: called with the number of images that are done, and of all, as far as this process knows.

    Raises:
        NotFinite, OutOfMemory, TileError: the network cannot do it; what was scored is kept.
    """
    about = SetResult(images.dataset, images.split, images.recipe, (), inference)
    identity = {
        "weights": task.sha256,
        "set": about.name,
        "recipe": images.recipe,
        "inference": asdict(inference),
        "conventions": asdict(task.conventions),
        "metrics": {metric.name: metric.library for metric in task.extra.metrics} if task.extra else {},
        "saved": task.save_images,
    }
    journal = Journal(task.folder, about.name, identity, ranks.rank)
    known, _ = journal.read()
    ranks.wait()  # all have read before any writes
    restorer = Restorer(network, inference, task.say if ranks.first else lambda line: None)
    unusable: list[str] = []
    device = next(network.parameters()).device
    mine = ranks.share([key for key in images.keys if key not in known])
    progress(len(known), len(images.keys))
    start = time.perf_counter()
    for number, (key, sample) in enumerate(_read_ahead(images, mine), 1):
        if isinstance(sample, UnusableImage):
            task.say(f"{about.name}: {key} is left out: {sample}")
            unusable.append(key)
            continue
        masks = images.masks(key, sample.blurred) if network.prior is not None else None
        restored = restorer(sample.blurred, masks.atoms if masks is not None else None)
        score = measure(key, sample, restored, task.conventions.align == "ecc", task.extra, device)
        if task.pictures:
            keep_thumbnail(task.folder, about.name, key, restored.picture)
        if task.save_images:
            write_png(restored_path(task.folder, about.name, key), restored.picture)
        seconds, start = time.perf_counter() - start, time.perf_counter()
        journal.add(score, seconds)
        progress(len(known) + number, len(images.keys))
    n_unusable = sum(ranks.gather([len(unusable)]))
    found, seconds = journal.read()
    scores = tuple(found[key] for key in images.keys if key in found)
    worst = worst_first(scores)[: task.pictures]
    if ranks.first:  # of other weights, or other images
        thumbnails = [score.key for score in scores] if task.pictures else []
        forget_pictures(task.folder, about.name, pictures=[score.key for score in worst], thumbnails=thumbnails)
    ranks.wait()
    for score in ranks.share(worst):
        sample = images.sample(score.key)
        masks = images.masks(score.key, sample.blurred)
        atoms, records = masks or (None, None)
        result = restorer(sample.blurred, atoms if network.prior is not None else None).picture
        keep_pictures(task.folder, about.name, score.key, sample.blurred, result, sample.sharp, atoms, records)
    ranks.wait()
    return SetResult(
        images.dataset,
        images.split,
        images.recipe,
        scores,
        inference,
        unready=images.unready + n_unusable,
        seconds=seconds,
        collapse_db=task.conventions.collapse_db,
    )


def score_images(
    network: Deblurrer, store: MaskStore, keys: Sequence[str], tile: int | None = None, overlap: int = OVERLAP
) -> Iterator[tuple[Score, Picture]]:
    """Deblur images of a store with its masks; yields the score and the result, (H, W, 3) uint8.

    `tile` and `overlap` as in `deblur`.
    """
    for key in keys:
        sample = Sample(store.image("blurred", key), store.image("sharp", key))
        atoms = store.atoms(key) if network.prior is not None else None
        result = deblur(network, sample.blurred, atoms, tile, overlap)
        yield measure(key, sample, Restored(result)), result


def measure(
    key: str,
    sample: Sample,
    restored: Restored,
    aligned: bool = False,
    extra: PerceptualMetrics | None = None,
    device: torch.device = CPU,
) -> Score:
    """The score of a result; without a sharp picture it has those metrics alone that need none.

    Args:
        aligned: bring blurred and result to the place and gain of the sharp picture first, as `align` does; the flag
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
        sides = [aligned_scores(picture, sharp) for picture in (blurred, result)]
        found += () if all(side.found for side in sides) else ("unaligned",)
        before, after = ({name: getattr(side, name) for name in FIDELITY} for side in sides)
    else:
        tensors = (
            torch.from_numpy(picture)[None].permute(0, 3, 1, 2).to(device) for picture in (sharp, blurred, result)
        )
        before, after = ({name: float(value) for name, value in one.items()} for one in compare(*tensors))
    fidelity = {
        f"{name}{side}": found[name] for name in FIDELITY for side, found in (("_blurred", before), ("", after))
    }
    return Score(key, fidelity | more, found, fallback)


def worst_first(scores: Sequence[Score]) -> list[Score]:
    """By dB won over the blurred input, the least first; as they come where there is no sharp picture."""
    return sorted(scores, key=lambda score: score.gain)


def restored_path(folder: Path, name: str, key: str) -> Path:
    """Where the result of an image is saved: key as a path below a folder of the set."""
    parts = [quote(part, safe="") if part not in ("", ".", "..") else f"_{part}" for part in key.split("/")]
    return folder.joinpath("restored", quote(name, safe=""), *parts[:-1], f"{parts[-1]}.png")


def write_png(path: Path, picture: Picture) -> None:
    """An (H, W, 3) uint8 RGB picture, whole or not there."""
    done, data = cv2.imencode(".png", picture[..., ::-1])
    if not done:
        raise OSError(f"{path}: cannot be encoded as PNG")
    write_durably(path, data.tobytes())


def _read_ahead(images: ImageSet, keys: Sequence[str]) -> Iterator[tuple[str, Sample | UnusableImage]]:
    """The pictures of each key, or why there are none; the next are read meanwhile."""

    def read(key: str) -> Sample | UnusableImage:
        try:
            return images.sample(key)
        except UnusableImage as error:
            return error

    with ThreadPoolExecutor(1, "read") as pool:
        ahead: Future[Sample | UnusableImage] | None = pool.submit(read, keys[0]) if keys else None
        for position, key in enumerate(keys):
            assert ahead is not None
            now = ahead
            ahead = pool.submit(read, keys[position + 1]) if position + 1 < len(keys) else None
            yield key, now.result()
