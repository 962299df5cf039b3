"""Segmenters by name, ours and those of other packages: docs/segmenters.md.

A name stands for a factory, `package.module:factory`, which is called with the device and the settings. Names of other
packages are entry points of the group `samdeblur.segmenters`. A job carries name, settings and recipe, and every worker
opens the segmenter itself.
"""

from __future__ import annotations

import difflib
import inspect
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samdeblur.pipeline.segmenters.base import Embeds, Found, Segmenter, SettingsError
from samdeblur.storage import AtomMap
from samdeblur.storage.format.layout import RECORD_COLUMNS
from samdeblur.storage.own_code import CodeError, load_code
from samdeblur.storage.reasons import error_in_a_line
from samdeblur.storage.writing.compare import SINCE, recipe_differences

GROUP = "samdeblur.segmenters"
OURS = {
    "sam": "samdeblur.pipeline.segmenters.sam:open_sam",
    "superpixels": "samdeblur.pipeline.segmenters.superpixels:open_superpixels",
    "true-masks": "samdeblur.pipeline.segmenters.base:true_masks",
}


class SegmenterMissing(ImportError):
    """A segmenter that is not installed here, or not the one that a job was planned with."""


class SegmenterError(RuntimeError):
    """A segmenter of another package that fails, or gives what is no answer."""


@dataclass(frozen=True)
class Choice:
    """A segmenter to be opened, small and picklable.

    Attributes:
        name: of `OURS`, of an entry point, or `package.module:factory`.
        settings: arguments of the factory.
        recipe: of a segmenter of another package, to know on a worker that it is the same; None to trust it.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None

    @classmethod
    def of_plugin(cls, name: str, settings: Mapping[str, Any], together: bool = False) -> Choice:
        """Open it once, on the CPU, to see that it works and what its recipe is.

        Args:
            together: its encoder is to take several images at once.

        Raises:
            SegmenterMissing: there is none of this name.
            SettingsError: settings it does not take.
            SegmenterError: it fails, or has no recipe.
        """
        try:
            opened = cls(name, settings).open(torch.device("cpu"))
        except (SegmenterMissing, SegmenterError, SettingsError):
            raise
        except Exception as error:  # another package's
            raise SegmenterError(f"segmenter {name}: cannot be opened: {error_in_a_line(error)}") from error
        if together and not isinstance(opened, Embeds):
            raise SettingsError(f"segmenter {name}: has no find() and embed(), which --encoder-batch needs")
        return cls(name, settings, _recipe(name, settings, opened))

    def open(self, device: torch.device) -> Segmenter:
        """Raises SegmenterMissing, SettingsError, and whatever the factory raises."""
        factory = _factory(self.name)
        _check_arguments(self.name, factory, self.settings)
        segmenter: Segmenter = factory(device, **self.settings)
        for call in ("recipe", "segment"):
            if not callable(getattr(segmenter, call, None)):
                raise SegmenterError(
                    f"segmenter {self.name}: its factory returned an object of type "
                    f"{type(segmenter).__name__}, which has no {call}()"
                )
        if self.recipe is not None:
            here = _recipe(self.name, self.settings, segmenter)
            if differences := recipe_differences(self.recipe, here, SINCE):
                raise SegmenterMissing(
                    f"segmenter {self.name}: on {platform.node()} it differs from the one the job was planned with "
                    f"({'; '.join(differences)}); install the same version everywhere"
                )
        return segmenter


def provider(name: str) -> str | None:
    """Name and version of the package that brings a segmenter; None for ours, and where nobody knows."""
    found = None if name in OURS else next((point for point in entry_points(group=GROUP) if point.name == name), None)
    if found is None or found.dist is None:
        return None
    return f"{found.dist.name} {found.dist.version}"


def checked(name: str, found: Any, shape: tuple[int, int]) -> Found:
    """What a segmenter of another package gave for an image of a shape. Raises SegmenterError."""
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], AtomMap)):
        raise SegmenterError(f"segmenter {name}: gave a {type(found).__name__} instead of (AtomMap, records)")
    atoms, records = found
    if atoms.shape != shape:
        raise SegmenterError(f"segmenter {name}: gave masks of {atoms.shape} for an image of {shape}")
    columns: dict[str, NDArray[np.float64]] = {}
    for column, values in dict(records).items():
        if column not in RECORD_COLUMNS:
            raise SegmenterError(f"segmenter {name}: records: no column {column!r}; known: {', '.join(RECORD_COLUMNS)}")
        columns[column] = np.asarray(values, np.float64)
        if columns[column].shape != (atoms.n_masks,):
            raise SegmenterError(
                f"segmenter {name}: records: {column} of shape {columns[column].shape} for {atoms.n_masks} masks"
            )
    return atoms, columns


def _factory(name: str) -> Any:
    """Raises SegmenterMissing."""
    offered = {point.name: f"{point.module}:{point.attr}" for point in entry_points(group=GROUP)}
    known = offered | OURS
    if name not in known and ":" not in name:
        names = [*OURS, *sorted(offered)]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}."
        raise SegmenterMissing(
            f"no segmenter {name!r} in the packages on {platform.node()}; {hint} Or name a function as "
            "package.module:factory"
        )
    try:
        return load_code(known.get(name, name))
    except CodeError as error:
        raise SegmenterMissing(f"segmenter {name}: on {platform.node()}: {error}") from error


def _check_arguments(name: str, factory: Any, settings: Mapping[str, Any]) -> None:
    """Raise SettingsError for settings a factory does not take, and for those it cannot do without."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(torch.device("cpu"), **settings)
    except TypeError as error:
        known = ", ".join(list(signature.parameters)[1:]) or "none"
        raise SettingsError(f"segmenter {name}: {error}; its settings: {known}") from error


def _recipe(name: str, settings: Mapping[str, Any], segmenter: Segmenter) -> dict[str, Any]:
    """What a segmenter says of itself, the settings it was given, and the name under which it was asked for unless it
    has its own.
    """
    try:
        own = dict(segmenter.recipe())
        found: dict[str, Any] = json.loads(json.dumps({"name": name, **settings, **own}, allow_nan=False))
    except Exception as error:  # another package's
        raise SegmenterError(
            f"segmenter {name}: its recipe is not a mapping of JSON values: {error_in_a_line(error)}"
        ) from error
    if name not in OURS and found["name"] in {*OURS, "true"}:
        raise SegmenterError(f"segmenter {name}: the name {found['name']!r} in its recipe is reserved; choose another")
    return found
