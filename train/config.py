"""Settings of a training run: typed, from YAML and the command line, unknown names refused."""

# ruff: noqa: RUF009 - `setting` makes a field of a dataclass

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from samdeblur.models import METHODS, SEMANTICS
from samdeblur.models.priors.map_unit import UnitAggregate
from samdeblur.models.priors.pooling import Statistics
from samdeblur.storage.documents import yaml_lines, yaml_problem
from samdeblur.storage.files import decode_text
from samdeblur.train.losses import LOSSES
from samdeblur.train.optimisers import OPTIMISERS
from samdeblur.train.plain_yaml import plain_yaml
from samdeblur.train.settings import ConfigError, check, of_plain, setting, unknown

PRESETS = Path(__file__).parent / "presets"
SCHEDULES = ("cosine", "restarts", "linear", "constant")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
ARCHITECTURE = ("width", "enc_blk_nums", "middle_blk_num", "dec_blk_nums")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Defaults are the preset `paper`; see docs/training.md and the files in `presets/`."""

    # what is trained
    method: str = setting("none", "row of Table 1", choices=METHODS)
    semantics: str = setting(
        "paper",
        "of `map` and `map-dropout`: `paper`, or `released`, as the released code computes them",
        choices=SEMANTICS,
    )
    prior_channels: int = setting(2, "S, channels of the encoder of `map`", low=1)
    mask_dropout: float = setting(
        0.5, "of `map-dropout`: fraction of the masks of a crop that is dropped", low=0, below=1
    )
    aggregate: UnitAggregate = setting(
        "sum",
        "what a pixel under several masks gets: the `sum` of their averages, as in the paper; ours: their `mean`, that "
        "of the `smallest`, or its `attention` to the pixels of the smallest. With true masks the last two were best "
        "([the study](study.md#priors-beside-map))",
        choices=get_args(UnitAggregate),
    )
    statistics: Statistics = setting(
        "mean",
        "what is computed from the pixels of a mask: the `mean`, as in the paper; ours: `mean+std`",
        choices=get_args(Statistics),
    )
    network: str = setting(
        "nafnet",
        "`nafnet`, `unet`, `spandrel:CLASS` or `package.module:factory`: [other networks](networks.md#training-them)",
    )
    network_options: dict[str, Any] = setting({}, "of any network but `nafnet`: its arguments")
    width: int = setting(32, "of `nafnet`: channels of the first level", low=1)
    enc_blk_nums: tuple[int, ...] = setting((1, 1, 1, 28), "of `nafnet`: blocks of each encoder level", low=0)
    middle_blk_num: int = setting(1, "of `nafnet`: blocks between encoder and decoder", low=1)
    dec_blk_nums: tuple[int, ...] = setting(
        (1, 1, 1, 1), "of `nafnet`: blocks of each decoder level, deepest first", low=0
    )
    weights: str = setting("", "checkpoint to start from, with its architecture: [fine-tuning](#fine-tuning)")
    freeze_backbone: int = setting(0, "first steps in which only the prior is trained", low=0)
    # crops
    batch_size: int = setting(32, "crops per step, of all processes together", low=1)
    crop_size: int = setting(
        256,
        "side of the crops. Smaller images are padded by reflection, below and at the right; a crop larger than "
        "all images is refused",
        low=1,
    )
    progressive_steps: tuple[int, ...] = setting(
        (), "lengths of phases before the rest of the run, with crops and batches of other sizes", low=1
    )
    progressive_crops: tuple[int, ...] = setting((), "`crop_size` of each of these phases", low=1)
    progressive_batches: tuple[int, ...] = setting((), "`batch_size` of each of these phases", low=1)
    subimage_size: int = setting(
        0, "draw crops from tiles of this side, half a side apart; 0: from whole images", low=0
    )
    crops_per_image: int = setting(1, "consecutive samples from one image", low=1)
    mask_shift: float = setting(
        0.0,
        "move each mask of a crop by up to so many pixels, in a direction of its own, so that a network does not learn "
        "to trust them to the pixel: [which masks](which-masks.md#masks-that-move-in-training)",
        low=0,
        below=17,
    )
    misrotated_masks: bool = setting(
        False, "the bug of the released code: images are transposed where masks are rotated"
    )
    # optimisation
    steps: int = setting(200_000, "of the optimiser", low=1)
    loss: str | dict[str, float] = setting(
        "psnr",
        "what is minimised, or several with weights, `{psnr: 1, fft: 0.1}`: [losses](#losses)",
        choices=tuple(LOSSES),
    )
    optimizer: str = setting("AdamW", "`AdamW`, `Adam`, `Lion`, or any other of torch.optim by its name")
    optimizer_options: dict[str, Any] = setting(
        {}, "of the optimiser, beside what has a setting of its own: `{momentum: 0.9}` of `SGD`"
    )
    learning_rate: float = setting(1e-3, "at the start of the schedule", low=0)
    min_learning_rate: float = setting(1e-6, "at the end of `cosine`, `restarts` and `linear`", low=0)
    schedule: str = setting(
        "cosine",
        "of the learning rate: one half of a `cosine` over the run, one after another every `restart_steps` "
        "(`restarts`), `linear`, or `constant`",
        choices=SCHEDULES,
    )
    schedule_steps: int = setting(
        0, "length of the schedule, after which the rate stays at its last value; 0: the whole run", low=0
    )
    restart_steps: int = setting(0, "of `restarts`: steps of each cosine", low=0)
    warmup_steps: int = setting(0, "first steps, in which the learning rate rises from zero to the schedule", low=0)
    betas: tuple[float, ...] = setting((0.9, 0.9), "of optimisers that have them", low=0, below=1)
    weight_decay: float = setting(1e-3, "of the optimiser", low=0)
    grad_clip: float = setting(0.01, "norm to which gradients are clipped; 0: no clipping", low=0)
    ema: float = setting(
        0.0,
        "decay of an exponential average of the weights, which is then what is validated and saved; 0: none",
        low=0,
        below=1,
    )
    accumulate: int = setting(
        1,
        "parts into which each process splits its share of a batch, to save memory; the result is the same but for "
        "rounding",
        low=1,
    )
    precision: str = setting(
        "float32",
        "`float32`: all its bits; `tf32` as torch does by default on a GPU; `bfloat16`, `float16` (with a gradient "
        "scaler): mixed precision; `float64` for checks",
        choices=("float32", "tf32", "bfloat16", "float16", "float64"),
    )
    channels_last: bool = setting(False, "memory layout; often faster on a GPU in mixed precision")
    compile: bool = setting(False, "`torch.compile` of the network, without its prior")
    # the run
    seed: int = setting(0, "of the weights, the crops, the flips and the mask dropout", low=0, below=1 << 63)
    val_every: int = setting(5000, "steps between validations", low=1)
    val_share: float = setting(0.1, "of the training images, held out when there is no `--val`", low=0, below=1)
    val_images: int = setting(0, "validate on at most so many images, evenly spaced; 0: all", low=0)
    log_every: int = setting(100, "steps between rows of the log", low=1)
    save_every: int = setting(1000, "steps between saved states; validations save too", low=1)
    keep_every: int = setting(0, "steps between weights kept as `step-N.safetensors`; 0: none", low=0)
    trackers: tuple[str, ...] = setting(
        (), "where the run reports to, besides its own log: [trackers](#trackers)", choices=TRACKERS
    )
    tensorboard: bool = setting(False, "the tracker `tensorboard`, under its older name")
    loader_workers: int = setting(
        -1, "processes that read crops; -1: beside a GPU its share of the cores, at most 16; none on a CPU", low=-1
    )
    cache_mb: int = setting(0, "memory for decoded images: [reading](#reading)", low=0)
    device: str = setting("auto", "device of the network", choices=("auto", "cpu", "cuda"))

    def __post_init__(self) -> None:
        check(self)
        if isinstance(self.loss, dict):
            if not self.loss or any(not 0 < weight < float("inf") for weight in self.loss.values()):
                raise ConfigError(f"loss: names of losses with weights above zero, not {self.loss}")
            for name in self.loss:
                if name not in LOSSES:
                    raise unknown("loss", name, tuple(LOSSES))
        if self.optimizer not in OPTIMISERS:
            raise unknown("optimizer", self.optimizer, OPTIMISERS)
        for name in self.trackers:
            if name not in TRACKERS:
                raise unknown("trackers", name, TRACKERS)
        phases = (self.progressive_steps, self.progressive_crops, self.progressive_batches)
        if len({len(values) for values in phases}) > 1:
            raise ConfigError(
                "progressive_steps, progressive_crops and progressive_batches: as many numbers each, not "
                + ", ".join(str(len(values)) for values in phases)
            )
        if sum(self.progressive_steps) >= self.steps:
            raise ConfigError(
                f"progressive_steps: {sum(self.progressive_steps)} in all, which leaves none of the {self.steps} steps"
            )
        if self.network == "nafnet" and self.network_options:
            raise ConfigError(f"network_options: network nafnet takes {', '.join(ARCHITECTURE)} instead")
        if (self.schedule == "restarts") != bool(self.restart_steps):
            raise ConfigError("restart_steps: only schedule restarts uses it")
        if len(self.enc_blk_nums) != len(self.dec_blk_nums):
            raise ConfigError("enc_blk_nums and dec_blk_nums must have as many levels")
        if len(self.betas) != 2:
            raise ConfigError(f"betas: two numbers, got {len(self.betas)}")
        if self.subimage_size and self.subimage_size < max(self.crop_size, *self.progressive_crops, 0):
            raise ConfigError(f"subimage_size: {self.subimage_size} is smaller than the crops, {self.crop_size}")
        if self.aggregate == "attention" and self.statistics != "mean":
            raise ConfigError("statistics: aggregate attention has mean alone")
        if self.semantics == "released" and (self.aggregate, self.statistics) != ("sum", "mean"):
            raise ConfigError("aggregate and statistics: semantics released has only sum and mean")
        if self.mask_shift and self.method == "none":
            raise ConfigError("mask_shift: method none uses no masks")
        if self.freeze_backbone and self.method == "none":
            raise ConfigError("freeze_backbone: method none has no prior to train alone")

    @classmethod
    def of(cls, values: Mapping[str, Any], where: Mapping[str, str] | None = None) -> TrainConfig:
        """From plain values. Raises ConfigError for unknown names, with the nearest known one, and wrong types.

        Args:
            where: name -> file and line that the value is from.
        """
        try:
            found: TrainConfig = of_plain(cls, values)
        except ConfigError as error:
            place = (where or {}).get(str(error).partition(":")[0])
            raise ConfigError(f"{place}: {error}" if place else str(error)) from error
        return found

    def plain(self) -> dict[str, Any]:
        """The settings as YAML and JSON have them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.plain(), sort_keys=False)


class Values(dict[str, Any]):
    """Settings of a file, or several.

    Attributes:
        where: name -> file and line.
    """

    def __init__(self, values: Mapping[str, Any], where: Mapping[str, str]) -> None:
        super().__init__(values)
        self.where = where


def read_config(location: str) -> Values:
    """Values of a YAML file, or of a preset by its name; `base: NAME` in it names another (a file
    beside it, or a preset) that it changes.

    Raises FileNotFoundError, ConfigError.
    """
    values, seen = _read_yaml(location), [location]
    while "base" in values:
        base = str(values.pop("base"))
        if not _preset(base).exists():
            base = str(Path(seen[-1]).parent / base)
        if base in seen:
            raise ConfigError(f"{location}: base {base} leads back to itself")
        seen.append(base)
        below = _read_yaml(base)
        values = Values({**below, **values}, {**below.where, **values.where})
    return values


def _preset(name: str) -> Path:
    return PRESETS / f"{name}.yaml"


def _read_yaml(location: str) -> Values:
    path = _preset(location) if _preset(location).exists() else Path(location)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
        raise FileNotFoundError(f"{location}: no such configuration file, nor a preset ({names})")
    try:
        text = decode_text(path.read_bytes())
        values, lines = plain_yaml(text) or {}, yaml_lines(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(yaml_problem(path, error)) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of names to values")
    return Values(values, {str(name): f"{path}, line {lines[str(name),]}" for name in values if (str(name),) in lines})


def with_assignments(values: Mapping[str, Any], assignments: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Values changed by assignments; `network_options.dim` is one value of a mapping."""
    found = dict(values)
    for name, value in assignments:
        outer, dot, inner = name.partition(".")
        if dot:
            before = found.get(outer)
            found[outer] = {**(before if isinstance(before, Mapping) else {}), inner: value}
        else:
            found[name] = value
    return found


def parse_assignment(text: str) -> tuple[str, Any]:
    """`name=value` with a YAML value. Raises ConfigError."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError(f"{text!r}: write name=value")
    try:
        return name, plain_yaml(value)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name}: {value!r} is not a YAML value") from error
