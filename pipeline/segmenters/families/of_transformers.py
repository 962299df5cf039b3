"""Folders of the library transformers: a config.json beside weights, loaded by the class that the config names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn import functional as F

from samdeblur.models import CheckpointError
from samdeblur.pipeline.segmenters.families.base import Adapter, Embedding
from samdeblur.pipeline.segmenters.families.original import longest_side
from samdeblur.pipeline.segmenters.families.sam2 import PIXEL_MEAN, PIXEL_STD, Stretching
from samdeblur.pipeline.segmenters.speed import EXACT, Speed


@dataclass(frozen=True)
class Kind:
    """Of the classes of the library: which family, by which class, and what is read off its config where."""

    family: str
    cls: str
    stretches: bool
    mean: Sequence[float] = PIXEL_MEAN
    std: Sequence[float] = PIXEL_STD


HALF = (0.5, 0.5, 0.5)
KINDS = {  # by `model_type`
    "sam": Kind("sam", "SamModel", False),
    "sam_hq": Kind("sam-hq", "SamHQModel", False),
    "sam2": Kind("sam2", "Sam2Model", True),
    "sam2_video": Kind("sam2", "Sam2Model", True),
    "sam3_tracker": Kind("sam3", "Sam3TrackerModel", True, HALF, HALF),
    "sam3_tracker_video": Kind("sam3", "Sam3TrackerModel", True, HALF, HALF),
    "sam3_video": Kind("sam3", "Sam3TrackerModel", True, HALF, HALF),
}


def kind_of(folder: Path) -> Kind:
    """Of which kind the model in a folder is. Raises CheckpointError."""
    config = _read(folder / "config.json")
    name = config.get("model_type")
    if name not in KINDS:
        raise CheckpointError(
            f"{folder}: config.json says model_type {name!r}, which is not supported here; those "
            f"that are: {', '.join(KINDS)}"
        )
    return KINDS[name]


def load_folder(folder: Path, device: torch.device, speed: Speed = EXACT) -> Adapter:
    """The model in a folder. Raises CheckpointError, ImportError."""
    kind = kind_of(folder)
    import transformers

    cls = getattr(transformers, kind.cls, None)
    if cls is None:
        raise ImportError(f"transformers {transformers.__version__} has no {kind.cls}; install a newer one")
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what is wrong is said here
    transformers.logging.disable_progress_bar()
    try:
        model, told = cls.from_pretrained(folder, dtype=torch.float32, local_files_only=True, output_loading_info=True)
    except Exception as error:  # the library raises whatever it stumbles over
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder}: not a {kind.cls} of transformers ({type(error).__name__}: {said})") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    wrong = [*told["missing_keys"], *(each[0] for each in told["mismatched_keys"])]
    if wrong:
        raise CheckpointError(
            f"{folder}: weights of {kind.cls} are missing or of another shape: {', '.join(wrong[:3])}"
        )
    mean, std = _statistics(folder, kind)
    adapter = StretchingModel if kind.stretches else PaddingModel
    return adapter(model.eval().to(device), kind.family, mean, std, speed)


class _OfTransformers(Adapter):
    """What all models of the library have in common."""

    _model: Any
    speed: Speed

    @property
    def device(self) -> torch.device:
        found: torch.device = self._model.device
        return found

    def _compiled(self, model: Any, speed: Speed) -> Any:
        if speed.compile:
            model.vision_encoder.forward = torch.compile(model.vision_encoder.forward)
        return model

    def _masks(self, points: Tensor, prompts: Tensor | None, several: bool, **embeddings: Any) -> tuple[Tensor, Tensor]:
        """Of (N, 2) points at the size of the model."""
        with self.speed.context(points.device):
            if prompts is None:
                given = {"input_points": points[None, :, None], **embeddings}
            else:  # every point as an image of its own, since the library knows one mask to an image
                count = len(points)
                many = {
                    name: [each.expand(count, -1, -1, -1) for each in value]
                    if isinstance(value, list)
                    else value.expand(count, -1, -1, -1)
                    for name, value in embeddings.items()
                }
                given = {"input_points": points[:, None, None], "input_masks": prompts[:, None], **many}
            found = self._model(**given, multimask_output=several)
        return found.pred_masks.float().flatten(0, 2), found.iou_scores.float().flatten()


class StretchingModel(_OfTransformers, Stretching):
    """Sam2Model, Sam3TrackerModel."""

    def __init__(self, model: Any, family: str, mean: Sequence[float], std: Sequence[float], speed: Speed) -> None:
        Stretching.__init__(self, model.prompt_encoder.input_image_size, mean, std)
        self._model, self.family, self.speed = self._compiled(model, speed), family, speed

    def encode(self, pieces: Sequence[NDArray[np.uint8]]) -> list[Embedding]:
        batch = self._inputs(pieces)
        with self.speed.context(batch.device):
            # One by one behind the encoder, since the library reshapes the maps of several wrongly.
            maps = self._model.get_image_embeddings(batch)
        return [
            self._embedding(piece, tuple(each[number][None].float() for each in maps))
            for number, piece in enumerate(pieces)
        ]

    def decode(
        self, embedding: Embedding, points: NDArray[np.float64], prompts: Tensor | None = None, several: bool = True
    ) -> tuple[Tensor, Tensor]:
        at = self._at_model_size(points, embedding.size, embedding.features[0].device)
        return self._masks(at, prompts, several, image_embeddings=list(embedding.features))


class PaddingModel(_OfTransformers):
    """SamModel, SamHQModel: the longer side is brought to the size of the model, and the rest padded."""

    def __init__(self, model: Any, family: str, mean: Sequence[float], std: Sequence[float], speed: Speed) -> None:
        self._model, self.family, self.speed = self._compiled(model, speed), family, speed
        self._resize = ResizeLongestSide(model.config.vision_config.image_size)
        self._mean, self._std = (torch.tensor([255 * each for each in of]).reshape(3, 1, 1) for of in (mean, std))

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return longest_side(self._resize, size)

    def encode(self, pieces: Sequence[NDArray[np.uint8]]) -> list[Embedding]:
        inputs, sizes, side = [], [], self._resize.target_length
        for piece in pieces:
            sizes.append(self.input_size((piece.shape[0], piece.shape[1])))
            planes = torch.as_tensor(self._resize.apply_image(piece)).permute(2, 0, 1).contiguous()
            normal = (planes - self._mean) / self._std
            inputs.append(F.pad(normal, (0, side - sizes[-1][1], 0, side - sizes[-1][0])))
        batch = torch.stack(inputs).to(self.device)
        with self.speed.context(batch.device):
            found = self._model.get_image_embeddings(batch)
        whole, between = found if isinstance(found, tuple) else (found, [])
        return [
            Embedding(
                (piece.shape[0], piece.shape[1]),
                sizes[number],
                tuple(each[number][None].float() for each in (whole, *between)),
            )
            for number, piece in enumerate(pieces)
        ]

    def decode(
        self, embedding: Embedding, points: NDArray[np.float64], prompts: Tensor | None = None, several: bool = True
    ) -> tuple[Tensor, Tensor]:
        whole, *between = embedding.features
        at = torch.as_tensor(self._resize.apply_coords(points, embedding.size), device=whole.device)
        more = {"intermediate_embeddings": between} if between else {}
        return self._masks(at, prompts, several, image_embeddings=whole, **more)

    def full_size(self, logits: Tensor, embedding: Embedding) -> Tensor:
        side, (height, width) = self._resize.target_length, embedding.input_size
        square = F.interpolate(logits[None], (side, side), mode="bilinear", align_corners=False)
        return F.interpolate(square[..., :height, :width], embedding.size, mode="bilinear", align_corners=False)[0]


def _statistics(folder: Path, kind: Kind) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of pixels in 0..1, from the preprocessor's file where there is one."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            told = _read(folder / name)
            told = told.get("image_processor", told)
            mean, std = told.get("image_mean", kind.mean), told.get("image_std", kind.std)
            for values in (mean, std):
                if not (isinstance(values, list | tuple) and len(values) == 3 and all(_positive(v) for v in values)):
                    raise CheckpointError(f"{folder / name}: image_mean and image_std are not three numbers each")
            return mean, std
    return kind.mean, kind.std


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < 1e3


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not a mapping")
    return found
