"""Perceptual metrics of other libraries: LPIPS and DISTS by torchmetrics, NIQE and many more by pyiqa.

torchmetrics (Apache 2.0) is the extra `perceptual`. pyiqa, which is licensed for noncommercial use only and brings a
gigabyte of packages along, is for its users to install: `pip install pyiqa`.

Most of these metrics are networks. Their libraries fetch the weights from the internet when a metric is first asked
for, and keep them in the cache of torch (`TORCH_HOME`).
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samdeblur.evaluation.metrics.psnr_ssim import ImageArray, check_images

# name -> class of torchmetrics.image, its options, whether lower is better
TORCHMETRICS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "lpips": ("LearnedPerceptualImagePatchSimilarity", {"net_type": "alex", "normalize": True}, True),
    "lpips-vgg": ("LearnedPerceptualImagePatchSimilarity", {"net_type": "vgg", "normalize": True}, True),
    "lpips-squeeze": ("LearnedPerceptualImagePatchSimilarity", {"net_type": "squeeze", "normalize": True}, True),
    "dists": ("DeepImageStructureAndTextureSimilarity", {}, True),
    "ms-ssim": ("MultiScaleStructuralSimilarityIndexMeasure", {"data_range": 1.0}, False),
}
# What people ask pyiqa for, so that the names are known where it is not installed; it has about a hundred.
PYIQA = ("niqe", "ilniqe", "piqe", "brisque", "musiq", "maniqa", "topiq_nr", "topiq_fr", "fsim", "gmsd")
# Metrics of pyiqa that are of whole sets or of texts, and those that `metrics` has.
NOT_OF_ONE_IMAGE = frozenset({"fid", "sfid", "fid_dinov2", "inception_score", "clipscore", "psnr", "ssim", "ssimc"})


class PerceptualError(ValueError):
    """A metric that is not known, not installed, or does not work."""


@dataclass(frozen=True)
class PerceptualMetric:
    """One metric.

    Attributes:
        lower_is_better: its direction.
        needs_sharp: whether it compares with the sharp image; else it looks at the result alone.
        library: what computes it, with its version.
        measure: takes the result and the sharp image, (1, 3, H, W) float32 in [0, 1], and gives one value; the sharp
            one may be missing where the metric needs none.
    """

    name: str
    lower_is_better: bool
    needs_sharp: bool
    library: str
    measure: Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class PerceptualMetrics:
    """Several metrics on one device; call them with images."""

    metrics: tuple[PerceptualMetric, ...]
    device: torch.device

    @property
    def lower_is_better(self) -> dict[str, bool]:
        """The direction of each."""
        return {metric.name: metric.lower_is_better for metric in self.metrics}

    @torch.inference_mode()
    def __call__(self, result: ImageArray, sharp: ImageArray | None) -> dict[str, float]:
        """Values by name for two (H, W, 3) uint8 RGB images; nan where a metric finds none.

        Without a sharp image the metrics that need one are left out.

        Raises:
            ValueError: the images differ in shape, or are not (H, W, 3) uint8.
            PerceptualError: a metric refuses them; some need images of a certain size.
        """
        check_images(result, result if sharp is None else sharp)
        result_tensor = self._tensor(result)
        sharp_tensor = None if sharp is None else self._tensor(sharp)
        values = {}
        for metric in self.metrics:
            if metric.needs_sharp and sharp is None:
                continue
            try:
                values[metric.name] = float(metric.measure(result_tensor, sharp_tensor))
            except torch.OutOfMemoryError:
                raise
            except (ValueError, RuntimeError, AssertionError) as error:
                size = f"{result.shape[1]}x{result.shape[0]}"
                raise PerceptualError(f"metric {metric.name} of an image of {size}: {_first_line(error)}") from error
        return values

    def _tensor(self, image: ImageArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(image)).to(self.device).permute(2, 0, 1)[None].float() / 255


def perceptual_metrics(names: Sequence[str], device: torch.device) -> PerceptualMetrics:
    """Metrics by name: "lpips" (AlexNet, as papers report it), "lpips-vgg", "lpips-squeeze", "dists", "ms-ssim" of
    torchmetrics, and all metrics of single images that pyiqa has under its own names, "niqe" for instance.

    Weights that are not in torch's cache yet are fetched from the internet by the library.

    Raises:
        PerceptualError: an unknown name, a library that is not installed, weights that cannot be fetched.
    """
    return PerceptualMetrics(tuple(_load(name, device) for name in dict.fromkeys(names)), device)


def _load(name: str, device: torch.device) -> PerceptualMetric:
    load = _from_torchmetrics if name in TORCHMETRICS else _from_pyiqa
    try:
        return load(name, device)
    except (PerceptualError, torch.OutOfMemoryError):
        raise
    except (OSError, RuntimeError) as error:
        raise PerceptualError(f"metric {name} or its weights could not be loaded: {_first_line(error)}") from error


def _from_torchmetrics(name: str, device: torch.device) -> PerceptualMetric:
    kind, options, lower_is_better = TORCHMETRICS[name]
    try:
        torchmetrics = importlib.import_module("torchmetrics")
        image = importlib.import_module("torchmetrics.image")
    except ImportError as error:
        advice = "pip install samdeblur[perceptual]"
        raise PerceptualError(f"metric {name} needs torchmetrics, which is not installed; {advice}") from error
    # Values are those of one image; by default the processes of a run would average them in `compute`.
    metric = getattr(image, kind)(**options, sync_on_compute=False).to(device)

    def measure(result: Tensor, sharp: Tensor | None) -> Tensor:
        metric.update(result, sharp)
        try:
            return metric.compute()
        finally:
            metric.reset()

    library = f"torchmetrics {torchmetrics.__version__}, of each image"  # journals without these words may hold means
    return PerceptualMetric(name, lower_is_better, True, library, measure)


def _from_pyiqa(name: str, device: torch.device) -> PerceptualMetric:
    try:
        pyiqa = importlib.import_module("pyiqa")
    except ImportError as error:
        if name not in PYIQA:
            raise _unknown(name, PYIQA, "those of pyiqa, which is not installed") from error
        advice = "pip install pyiqa (for noncommercial use only)"
        raise PerceptualError(f"metric {name} needs pyiqa, which is not installed; {advice}") from error
    known = set(pyiqa.list_models()) - NOT_OF_ONE_IMAGE
    if name not in known:
        raise _unknown(name, sorted(known), "those of pyiqa.list_models() that are of single images")
    metric = pyiqa.create_metric(name, device=device)
    needs_sharp = metric.metric_mode == "FR"

    def measure(result: Tensor, sharp: Tensor | None) -> Tensor:
        return metric(result, sharp) if needs_sharp else metric(result)

    return PerceptualMetric(name, bool(metric.lower_better), needs_sharp, f"pyiqa {pyiqa.__version__}", measure)


def _unknown(name: str, of_pyiqa: Sequence[str], rest: str) -> PerceptualError:
    near = difflib.get_close_matches(name, [*TORCHMETRICS, *of_pyiqa], n=1)
    meant = f", did you mean {near[0]}?" if near else "."
    return PerceptualError(f"unknown metric {name!r}{meant} There are {', '.join(TORCHMETRICS)}, and {rest}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
