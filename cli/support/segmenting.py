"""How the masks of images without a store are found: options of `restore` and `eval run`, and what they open."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click
from numpy.typing import NDArray

from samdeblur.pipeline.segmenters.bounds import MAX_REACH
from samdeblur.storage.format.layout import fingerprint, mask_kind

if TYPE_CHECKING:
    import numpy as np
    import torch

    from samdeblur.pipeline import PrepSettings
    from samdeblur.pipeline.job.recipe import Stages
    from samdeblur.storage import AtomMap

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class MaskOptions:
    """The options as they were given; None and nothing for those that were not."""

    sam: str | None = None
    segmenter: str | None = None
    settings: tuple[str, ...] = ()
    refine: int | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> MaskOptions:
        return cls(options["sam"], options["segmenter"], options["set_segmenter"], options["refine"])

    @property
    def given(self) -> str:
        """The first of them that was given, as it is written; "" for none."""
        flags: dict[str, object] = {"--sam": self.sam, "--segmenter": self.segmenter}
        flags |= {"--set-segmenter": self.settings, "--refine": self.refine}
        return next((flag for flag, value in flags.items() if value), "")


def mask_options(function: Function) -> Function:
    """--sam, --segmenter, --set-segmenter and --refine."""
    for option in reversed((
        click.option("--sam", metavar="bundled|NAME|PATH",
                     help="Segment Anything weights that find the masks of images without a store."),
        click.option("--segmenter", metavar="NAME|MODULE:FACTORY",
                     help="Another segmenter for them, as for samdeblur-prep run."),
        click.option("--set-segmenter", multiple=True, metavar="KEY=VALUE", help="A setting of it; again for each."),
        click.option("--refine", type=click.IntRange(1, MAX_REACH), metavar="PIXELS",
                     help="Move borders of masks to edges of the image, as samdeblur-prep run does."),
    )):  # fmt: skip
        function = option(function)
    return function


def segmenter_settings(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE, ... -> key -> value. Raises UsageError."""
    found: dict[str, Any] = {}
    for each in given:
        key, equals, text = each.partition("=")
        if not equals or not key.isidentifier():
            raise click.UsageError(f"--set-segmenter {each}: write KEY=VALUE")
        if key in found:
            raise click.UsageError(f"--set-segmenter {key}: given twice")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


class Segmenter:
    """What finds masks in blurred images; its models are loaded when the first image comes.

    Raises:
        UsageError: options that do not go together.
        FileNotFoundError, CheckpointError, SegmenterError: weights or a segmenter that are not there, or unfit.
    """

    def __init__(self, options: MaskOptions, device: torch.device) -> None:
        self.settings = _settings(options, device)
        self.recipe = fingerprint(self.settings.recipe())
        self.kind = mask_kind(self.settings.recipe())
        self._device = device

    @cached_property
    def _stages(self) -> Stages:
        from samdeblur.pipeline.job.recipe import load_stages

        return load_stages(self.settings, self._device)

    def __call__(self, blurred: NDArray[np.uint8]) -> tuple[AtomMap, dict[str, NDArray[np.float64]]]:
        from samdeblur.pipeline.segmenters.plugins import checked
        from samdeblur.pipeline.segmenters.refine import refine

        atoms, records = self._stages.segmenter.segment(blurred)
        if self._stages.plugin is not None:
            atoms, records = checked(self._stages.plugin, (atoms, records), blurred.shape[:2])
        if self.settings.refine:
            atoms = refine(atoms, blurred, self.settings.refine)
        return atoms, dict(records)


def _settings(options: MaskOptions, device: torch.device) -> PrepSettings:
    from samdeblur.pipeline import BUNDLED_SETTINGS, Choice, PrepSettings, Weights

    name, given = options.segmenter or "sam", segmenter_settings(options.settings)
    refine, on = options.refine or 0, device.type
    if name == "sam":
        if given:
            raise click.UsageError(f"--set-segmenter {next(iter(given))}: needs --segmenter with another than sam")
        sam = options.sam or "bundled"
        settings = BUNDLED_SETTINGS if sam == "bundled" else {}
        return PrepSettings(sam=Weights.of_sam(sam), sam_settings=settings, refine=refine, device=on)
    if options.sam:
        raise click.UsageError("--sam needs --segmenter sam")
    if name == "true-masks":
        raise click.UsageError("--segmenter true-masks: only stores of worlds have them; evaluate one")
    plugin = Choice.of_plugin(name, given) if given or name != "superpixels" else None
    return PrepSettings(plugin=plugin, refine=refine, device=on)
