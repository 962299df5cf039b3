"""What a preparation does to its images, as settings, as a recipe to compare stores by, and as models ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from samdeblur.models import CheckpointError, Deblurrer, load_network, local_pooling, pick_device
from samdeblur.models.checkpoints.hub import hub_folder, is_hub_name
from samdeblur.models.checkpoints.loading import BEST_WEIGHTS, checkpoint_digest, resolve_checkpoint, split_part
from samdeblur.models.checkpoints.public import BUNDLED_NETWORK, BUNDLED_SAM, known_path, no_such_checkpoint
from samdeblur.pipeline.segmenters.base import Segmenter, TrueMasks
from samdeblur.pipeline.segmenters.families.recognise import DEFAULTS, digest_of, family_of
from samdeblur.pipeline.segmenters.mask_generator import SAM_SETTINGS
from samdeblur.pipeline.segmenters.plugins import OURS, Choice
from samdeblur.pipeline.segmenters.sam import sam_recipe
from samdeblur.pipeline.segmenters.speed import EXACT, Speed
from samdeblur.pipeline.segmenters.superpixels import SuperpixelSegmenter

KEPT = "float16"  # in which embeddings are kept


@dataclass(frozen=True)
class Weights:
    """A checkpoint, or a part of one (FILE#params_ema), and what it is recognised by: the SHA-256 (hex) of its bytes,
    and the part. Checked again wherever it is loaded."""

    path: str
    sha256: str
    family: str = "sam"  # of a Segment Anything model
    origin: str = ""  # of one from the Hub: repository@revision

    @classmethod
    def of_network(cls, path: str) -> Weights:
        """Of a deblurring network: a file, a run folder, "bundled", or the name of fetched weights.

        Raises FileNotFoundError, WeightsMissing.
        """
        found = cls._found(path, BUNDLED_NETWORK)
        return cls(str(found), checkpoint_digest(found))

    @classmethod
    def of_sam(cls, path: str) -> Weights:
        """Of a Segment Anything model of any family: a file, a folder of transformers, "bundled", or the name of
        fetched weights, those of the Hub among them.

        Raises FileNotFoundError, WeightsMissing, CheckpointError.
        """
        if is_hub_name(path):
            found, origin = hub_folder(path)
            return cls(str(found), digest_of(found), family_of(found), origin)
        folder = Path(path)
        whole = folder.is_dir() and not (folder / BEST_WEIGHTS).exists()
        found = folder.resolve() if whole else cls._found(path, BUNDLED_SAM)
        family = family_of(found)  # which says what is no model at all
        return cls(str(found), digest_of(found), family)

    @staticmethod
    def _found(path: str, bundled: Path) -> Path:
        name, mark, part = path.rpartition("#")
        known = known_path(path) or (known_path(name) or name) + mark + part
        found = resolve_checkpoint(Path(known), bundled)
        file, part = split_part(found)
        return Path(str(file.resolve()) + (f"#{part}" if part else ""))

    def check(self) -> Path:
        """The path; raises CheckpointError when the file has changed since the job was planned."""
        path = Path(self.path)
        if not path.is_dir() and not split_part(path)[0].is_file():
            raise no_such_checkpoint(path)
        if digest_of(path) != self.sha256:
            raise CheckpointError(f"{path}: the file changed since the job was planned")
        return path


@dataclass(frozen=True)
class PrepSettings:
    """Everything that changes the masks. Small and picklable: workers load the models themselves.

    Attributes:
        predeblur: network that deblurs each image before it is segmented; None for none.
        sam: Segment Anything weights; None for superpixels, which need none.
        true_masks: take the masks the source knows to be true instead of segmenting.
        channel_order: order in which SAM is fed.
        sam_settings: settings of MaskGenerator that differ from its defaults.
        speed: how SAM's network computes; anything but the default changes masks a little.
        plugin: a segmenter of another package, or superpixels with other settings, instead of all of these.
        refine: pixels that borders may be moved to edges of the image; 0 leaves them.
        embeddings: place of a store whose embeddings are taken instead of the encoder's.
        device: "cpu", "cuda" (each worker takes one of the GPUs), or "auto".
    """

    predeblur: Weights | None = None
    sam: Weights | None = None
    true_masks: bool = False
    channel_order: Literal["rgb", "bgr"] = "rgb"
    sam_settings: Mapping[str, Any] = field(default_factory=dict)
    speed: Speed = EXACT
    plugin: Choice | None = None
    refine: int = 0
    embeddings: str | None = None
    device: str = "auto"

    def recipe(self) -> dict[str, Any]:
        """JSON values; equal recipes give equal masks within one environment."""
        segmenter: Mapping[str, Any] = SuperpixelSegmenter().recipe()
        if self.plugin is not None and self.plugin.recipe is not None:
            segmenter = self.plugin.recipe
        elif self.true_masks:
            segmenter = TrueMasks().recipe()
        elif self.sam is not None:
            settings = SAM_SETTINGS | dict(DEFAULTS.get(self.sam.family, {})) | dict(self.sam_settings)
            segmenter = sam_recipe(self.sam.sha256, self.channel_order, settings, self.sam.family, self.sam.origin)
        mode = (EXACT if self.sam is None and self.plugin is None else self.speed).recipe()
        if self.embeddings is not None:  # which store they lie in makes no difference
            mode = {"name": "tolerance", **asdict(self.speed), "embeddings": KEPT}
        return {
            "mode": mode,
            "predeblur": {"checkpoint": self.predeblur.sha256} if self.predeblur else None,
            "segmenter": dict(segmenter),
            **({"refine": self.refine} if self.refine else {}),
        }

    @property
    def segmenter(self) -> Choice:
        """What each worker opens."""
        if self.plugin is not None:
            return self.plugin
        if self.true_masks:
            return Choice("true-masks")
        if self.sam is None:
            return Choice("superpixels")
        of_sam = {"weights": self.sam, "channel_order": self.channel_order, "speed": self.speed}
        return Choice("sam", of_sam | dict(self.sam_settings))


@dataclass(frozen=True)
class Stages:
    """The models of a preparation, loaded.

    Attributes:
        plugin: name of the segmenter where it is of another package, whose answers are checked.
    """

    network: Deblurrer | None
    segmenter: Segmenter
    plugin: str | None = None


def check_runs(settings: PrepSettings, here: bool = True) -> Stages:
    """Load every checkpoint once, onto the CPU, and, if it is `here`, look for the device, before anything is written.

    Raises FileNotFoundError, CheckpointError, SettingsError, DeviceError.
    """
    if here:
        pick_device(settings.device)
    if settings.plugin is not None:  # which was opened to know its recipe
        settings = replace(settings, plugin=None)
    return load_stages(settings, torch.device("cpu"))


def load_stages(settings: PrepSettings, device: torch.device) -> Stages:
    """Load the models onto a torch device. Raises FileNotFoundError, CheckpointError."""
    encoded = settings.true_masks or (settings.embeddings is not None and not settings.refine)  # or it shows the edges
    predeblur = None if encoded else settings.predeblur
    network = load_network(predeblur.check()).to(device) if predeblur else None
    if network is not None and network.local_means:
        network = local_pooling(network, network.train_size or 256)
    choice = settings.segmenter
    return Stages(network, choice.open(device), None if choice.name in OURS else choice.name)
