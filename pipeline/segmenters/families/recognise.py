"""Which family of Segment Anything a file or folder is of, and its model ready to run.

Names of tensors say it of a file, `config.json` of a folder of transformers. Nothing is loaded to find it out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from samdeblur.models import CheckpointError, load_sam
from samdeblur.models.checkpoints.contents import tensor_names
from samdeblur.models.checkpoints.loading import build_sam_from, checkpoint_digest, split_part
from samdeblur.models.networks.mobile_sam import MARK as MOBILE_SAM
from samdeblur.models.networks.mobile_sam import build_mobile_sam
from samdeblur.models.networks.sam2 import Sam2Config, build_sam2
from samdeblur.pipeline.segmenters.base import SettingsError
from samdeblur.pipeline.segmenters.families.base import Adapter
from samdeblur.pipeline.segmenters.families.of_transformers import kind_of, load_folder
from samdeblur.pipeline.segmenters.families.original import OriginalSam
from samdeblur.pipeline.segmenters.families.sam2 import SAM2_DEFAULTS, Sam2
from samdeblur.pipeline.segmenters.plugins import SegmenterMissing
from samdeblur.pipeline.segmenters.speed import Speed

# Settings of mask generation that a family has other defaults for, or alone.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"sam2": SAM2_DEFAULTS, "sam3": SAM2_DEFAULTS}

CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.json")
_BESIDE = (CONFIG, "preprocessor_config.json", "processor_config.json")

# For people.
FAMILIES = {
    "sam": "Segment Anything",
    "sam-hq": "Segment Anything in high quality (HQ)",
    "mobile-sam": "MobileSAM",
    "sam2": "Segment Anything 2 or 2.1",
    "sam3": "Segment Anything 3, by points",
}

# Names of tensors by which a family is known, and what is said of those that are not loaded from a file.
_SAM2 = "image_encoder.trunk.patch_embed.proj.weight"
_ELSEWHERE = {
    "mask_decoder.hf_token.weight": "a SAM-HQ checkpoint; give a folder of transformers (SamHQModel) instead",
    "mask_decoder.custom_robust_token.weight": "a RobustSAM checkpoint, whose decoder is not adapted; a plug-in can "
    "(docs/segmenters.md)",
    "vision_encoder.patch_embed.projection.weight": "weights of transformers; give their folder, with config.json",
    "vision_encoder.backbone.patch_embed.projection.weight": "weights of transformers; give their folder, with "
    "config.json",
    "detector.backbone.vision_backbone.trunk.patch_embed.proj.weight": "a SAM 3 checkpoint of its own package; give a "
    "folder of transformers (Sam3TrackerModel) instead",
}


def family_of(path: Path) -> str:
    """The family of a model, by which its settings are chosen: sam, sam-hq, mobile-sam, sam2, sam3.

    Raises CheckpointError.
    """
    if path.is_dir():
        if not (path / CONFIG).is_file():
            inside = sorted(file.name for pattern in ("*.pt", "*.pth", "*.safetensors") for file in path.glob(pattern))
            hint = f"; give a file in it, such as {path / inside[0]}" if inside else ""
            raise CheckpointError(f"{path}: no {CONFIG}, which a folder of transformers has{hint}")
        return kind_of(path).family
    file = split_part(path)[0]
    names = tensor_names(file)

    def has(key: str) -> bool:
        return any(name == key or name.endswith(f".{key}") for name in names)

    for key, what in _ELSEWHERE.items():
        if has(key):
            raise CheckpointError(f"{file}: {what}")
    return "sam2" if has(_SAM2) else "mobile-sam" if has(MOBILE_SAM) else "sam"


def digest_of(path: Path) -> str:
    """What a model is recognised by: of a folder, and of a file with its configuration beside it, the SHA-256 of all
    that the model is made of.
    """
    if path.is_dir():
        files = {file for pattern in (*_WEIGHTS, *_BESIDE) for file in path.glob(pattern)}
        if not any(file.suffix in (".safetensors", ".bin") for file in files):
            raise CheckpointError(f"{path}: no *.safetensors beside {CONFIG}")
    elif (config := sam2_config_file(path)).is_file() and family_of(path) == "sam2":
        files = {path, config}
    else:
        return checkpoint_digest(path)
    lines = [f"{file.name} {checkpoint_digest(file)}\n" for file in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def open_model(path: Path, device: torch.device, speed: Speed) -> Adapter:
    """A model on its device.

    Raises:
        FileNotFoundError, CheckpointError: as `load_sam`.
        SettingsError: a speed that this family does not have.
        SegmenterMissing: its package is not installed.
    """
    family = family_of(path)
    if family == "sam" and not path.is_dir():
        return OriginalSam(load_sam(path).to(device), speed)
    if speed.sdpa and family != "mobile-sam":
        raise SettingsError(f"--sdpa: this {family} computes attention that way already; leave it out")
    if path.is_dir():
        with _package("transformers", path):
            return load_folder(path, device, speed)
    if family == "mobile-sam":
        with _package("timm", path):
            sam = build_sam_from(path, lambda state, _: build_mobile_sam(state), "usable MobileSAM")
            return OriginalSam(sam.to(device), speed, family)
    with _package("sam2", path):
        return Sam2(_load_sam2(path).to(device), speed)


@contextmanager
def _package(name: str, path: Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        if isinstance(error, SegmenterMissing):
            raise
        raise SegmenterMissing(
            f"{path}: needs the package {name}: pip install 'samdeblur[segmenters]' ({error})"
        ) from error


def sam2_config_file(path: Path) -> Path:
    """Where the configuration of a Segment Anything 2 lies that is of none of the public sizes."""
    return split_part(path)[0].with_suffix(".yaml")


def _load_sam2(path: Path) -> nn.Module:
    file = sam2_config_file(path)
    config = _read_config(file) if file.is_file() else None
    return build_sam_from(path, lambda state, _: build_sam2(state, config), "usable Segment Anything 2")


def _read_config(file: Path) -> Sam2Config:
    """The numbers in a configuration of the package `sam2`; what it would have called is not."""
    try:
        model = yaml.safe_load(file.read_text("utf-8"))["model"]
        trunk = model["image_encoder"]["trunk"]
        return Sam2Config(
            int(trunk.get("num_heads", 1)),
            tuple(map(int, trunk.get("global_att_blocks", (12, 16, 20)))),
            tuple(map(int, trunk.get("window_spec", (8, 4, 14, 7)))),
            int(model.get("image_size", 1024)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file}: not the configuration of a Segment Anything 2 ({error!r})") from error
