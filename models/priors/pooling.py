"""Mask average pooling (Algorithm 1 of arXiv 2309.02270) on atoms, for batches of images with any number of masks.

Shapes: B images, H W pixels, S channels, M masks, K atoms and P (atom, mask) pairs of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from samdeblur.models.priors.pool_index import IndexPlan, accumulator
from samdeblur.models.priors.pool_runs import RunPlan, cut_runs, lies_channels_last
from samdeblur.storage import AtomMap

Aggregate = Literal["sum", "mean", "smallest"]
Statistics = Literal["mean", "mean+std"]
VARIANCE_FLOOR = 1e-8  # added to variances: the root has a slope at 0 then


class AtomBatch(NamedTuple):
    """The atom maps of a batch, numbered through. A tuple of tensors, so that pinning, DDP and compile traverse it.

    Every image brings one atom of its own for the pixels no mask covers, so atoms of different images never meet.
    """

    atoms: Tensor  # (B, H, W) int32, atom of each pixel, 0..K-1
    pairs: Tensor  # (P, 2) int64 rows (atom, mask)
    atom_image: Tensor  # (K,) int64, image of each atom
    mask_image: Tensor  # (M,) int64, image of each mask, ascending
    mask_ids: Tensor  # (M,) int64, number of each mask in its full image
    runs: Tensor = torch.empty(0, 0, dtype=torch.int32)  # (B, R) int32, see `cut_runs`: makes pooling on a CPU fast
    seeds: Tensor = torch.empty(0, dtype=torch.int64)  # (B,) int64, of the mask dropout of each image; or none
    dropped: Tensor = torch.empty(0)  # (1,) share of the masks that a dropout has taken already; or none

    @classmethod
    def collate(cls, maps: Sequence[AtomMap], seeds: Sequence[int] = ()) -> AtomBatch:
        """Join the maps of B images of one size.

        `seeds`, one for each image or none, are 64-bit numbers that decide which masks a dropout takes.

        Raises:
            ValueError: no map, or sizes differ.
        """
        shapes = {atom_map.shape for atom_map in maps}
        if len(shapes) != 1:
            raise ValueError(f"a batch needs maps of one size, got {sorted(shapes)}")
        n_atoms = np.array([atom_map.n_atoms + 1 for atom_map in maps])
        n_masks = np.array([atom_map.n_masks for atom_map in maps])
        first_atom, first_mask = np.cumsum(n_atoms) - n_atoms, np.cumsum(n_masks) - n_masks
        atoms = np.stack([m.atoms for m in maps]).astype(np.int32) + first_atom[:, None, None].astype(np.int32)
        pairs = np.concatenate(
            [m.pairs.astype(np.int64) + shift for m, *shift in zip(maps, first_atom, first_mask, strict=True)]
        )
        images = np.arange(len(maps))
        return cls(
            torch.from_numpy(atoms),
            torch.from_numpy(pairs),
            torch.from_numpy(np.repeat(images, n_atoms)),
            torch.from_numpy(np.repeat(images, n_masks)),
            torch.from_numpy(np.concatenate([m.mask_ids for m in maps]).astype(np.int64)),
            torch.from_numpy(cut_runs(atoms)),
            torch.tensor(seeds, dtype=torch.int64),
        )

    @classmethod
    def background(cls, batch: int, height: int, width: int) -> AtomBatch:
        """B images that no mask covers."""
        return cls.collate([AtomMap.empty((height, width))] * batch)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> AtomBatch:
        return AtomBatch(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))

    @property
    def batch_size(self) -> int:
        return self.atoms.shape[0]


def mask_average_pool(
    features: Tensor, batch: AtomBatch, aggregate: Aggregate = "sum", statistics: Statistics = "mean"
) -> Tensor:
    """Algorithm 1: every pixel gets the sum of the mean features of the masks over it.

    Line by line: masks are dropped before: `drop_masks`. "Append the mask of all uncovered pixels": the atoms no
    pair names are the background of their image, one more mask. "For each mask, average the encoding inside it": sums
    over atoms, added up into masks through `pairs`, divided by the area. "Add the average to every pixel of the mask":
    averages added up into atoms through `pairs`, then looked up by the pixels.

    Args:
        features: (B, S, H, W), any floating type.
        batch: the masks, on the same device; masks without a pair take no part.
        aggregate: what a pixel under several masks gets. "sum" of their averages is the paper's. Ours: "mean" of their
            averages, and the average of the "smallest" of them (the mean over the smallest ones of equal area).
        statistics: "mean" is the paper's. Ours: "mean+std" treats the standard deviation inside each mask in the same
            way, as S more channels.

    Returns:
        (B, S, H, W), of the type and memory format of `features` (compiled: contiguous); (B, 2S, H, W) with "mean+std".
        Sums are in float64 (on a CPU those of the few pixels of a run in float32).
        Autocast changes nothing. Differentiable, twice too. Repeatable on a CPU; elsewhere under
        `torch.use_deterministic_algorithms`.

    Raises:
        ValueError: the sizes differ, or an unknown aggregate or statistics.
    """
    if features.shape[:1] + features.shape[2:] != batch.atoms.shape:
        raise ValueError(f"features {tuple(features.shape)} do not fit atoms {tuple(batch.atoms.shape)}")
    check_options(aggregate, statistics)
    with torch.autocast(features.device.type, enabled=False):
        maps = _CompiledMaps(batch) if torch.compiler.is_compiling() else _Maps(batch, lies_channels_last(features))
        areas = maps.areas()
        sizes = areas.clamp(min=1).unsqueeze(1)
        means = maps.sums(features) / sizes
        weights = _weights(aggregate, areas, batch)
        pooled = maps.spread(means, weights, features.dtype)
        if statistics == "mean":
            return pooled
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        centred = wide - wide.detach().mean((2, 3), keepdim=True)  # squares of large means would drown the variance
        variances = maps.sums(centred.square()) / sizes - (maps.sums(centred) / sizes).square()
        deviations = (variances.clamp(min=0) + VARIANCE_FLOOR).sqrt()
        return torch.cat([pooled, maps.spread(deviations, weights, features.dtype)], dim=1)


def check_options(aggregate: str, statistics: str) -> None:
    """Raise ValueError unless `mask_average_pool` knows both."""
    for name, value, known in (
        ("aggregate", aggregate, get_args(Aggregate)),
        ("statistics", statistics, get_args(Statistics)),
    ):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}, choose from {', '.join(known)}")


def _weights(aggregate: Aggregate, areas: Tensor, batch: AtomBatch) -> Tensor | None:
    """(P,) share of each mask in what the pixels of each atom get; None for ones."""
    if aggregate == "sum":
        return None
    atom, mask = batch.pairs.unbind(1)
    if aggregate == "mean":
        chosen = torch.ones_like(areas[mask])
    else:
        least = areas.new_full(batch.atom_image.shape, torch.inf).scatter_reduce(0, atom, areas[mask], "amin")
        chosen = (areas[mask] == least[atom]).to(areas.dtype)
    return chosen / chosen.new_zeros(batch.atom_image.shape).index_add(0, atom, chosen)[atom]


# Two linear maps, each the other's gradient: sums over masks, and spreading values of masks over their pixels.


def _plan(atoms: Tensor, runs: Tensor, pairs: Tensor, atom_image: Tensor, mask_image: Tensor) -> RunPlan | IndexPlan:
    if atoms.device.type == "cpu":
        return RunPlan(atoms, runs, pairs, atom_image, len(mask_image))
    return IndexPlan(atoms, pairs, atom_image, len(mask_image))


class _Maps:
    """The maps of a batch, planned once for the forward and the backward pass."""

    def __init__(self, batch: AtomBatch, channels_last: bool) -> None:
        self.channels_last = channels_last
        self.plan = _plan(batch.atoms, batch.runs, batch.pairs, batch.atom_image, batch.mask_image)

    def areas(self) -> Tensor:
        return self.plan.mask_areas()

    def sums(self, features: Tensor) -> Tensor:
        return _Sums.apply(features, None, self.plan)

    def spread(self, values: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
        return _Spread.apply(values, weights, dtype, self.plan, self.channels_last)


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weights: Tensor | None, plan: RunPlan | IndexPlan) -> Tensor:
        ctx.weights, ctx.plan, ctx.dtype, ctx.channels_last = (
            weights,
            plan,
            features.dtype,
            lies_channels_last(features),
        )
        return plan.sums(features.detach(), weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Spread.apply(grads[0], ctx.weights, ctx.dtype, ctx.plan, ctx.channels_last), None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weights: Tensor | None,
        dtype: torch.dtype,
        plan: RunPlan | IndexPlan,
        channels_last: bool,
    ) -> Tensor:
        ctx.weights, ctx.plan, ctx.dtype = weights, plan, values.dtype
        return plan.spread(values.detach(), weights, dtype, channels_last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _Sums.apply(grads[0], ctx.weights, ctx.plan).to(ctx.dtype), None, None, None, None


class _CompiledMaps:
    """The same maps as operators torch.compile does not look into; each call plans anew."""

    def __init__(self, batch: AtomBatch) -> None:
        self.tensors = [batch.atoms, batch.runs, batch.pairs, batch.atom_image, batch.mask_image]

    def areas(self) -> Tensor:
        return _areas_op(self.tensors)

    def sums(self, features: Tensor) -> Tensor:
        return _sums_op(features, None, self.tensors)

    def spread(self, values: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
        return _spread_op(values, weights, dtype, self.tensors)


@torch.library.custom_op("samdeblur::mask_areas", mutates_args=())
def _areas_op(tensors: list[Tensor]) -> Tensor:
    return _plan(*tensors).mask_areas()


@torch.library.custom_op("samdeblur::mask_sums", mutates_args=())
def _sums_op(features: Tensor, weights: Tensor | None, tensors: list[Tensor]) -> Tensor:
    return _plan(*tensors).sums(features, weights).contiguous()


@torch.library.custom_op("samdeblur::mask_spread", mutates_args=())
def _spread_op(values: Tensor, weights: Tensor | None, dtype: torch.dtype, tensors: list[Tensor]) -> Tensor:
    return _plan(*tensors).spread(values, weights, dtype).contiguous()


def _n_all(tensors: list[Tensor]) -> int:
    return tensors[4].shape[0] + tensors[0].shape[0]  # `len` would make the number of masks a constant of the graph


@_areas_op.register_fake
def _(tensors: list[Tensor]) -> Tensor:
    return tensors[0].new_empty(_n_all(tensors), dtype=torch.float64)


@_sums_op.register_fake
def _(features: Tensor, weights: Tensor | None, tensors: list[Tensor]) -> Tensor:
    return features.new_empty((_n_all(tensors), features.shape[1]), dtype=accumulator(features.device))


@_spread_op.register_fake
def _(values: Tensor, weights: Tensor | None, dtype: torch.dtype, tensors: list[Tensor]) -> Tensor:
    batch, height, width = tensors[0].shape
    return values.new_empty((batch, values.shape[1], height, width), dtype=dtype)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.weighted = inputs[1] is not None
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(*([inputs[1]] if ctx.weighted else []), *inputs[-1])


def _recall(ctx: Any) -> tuple[Tensor | None, list[Tensor]]:
    saved = list(ctx.saved_tensors)
    return (saved.pop(0) if ctx.weighted else None), saved


def _sums_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, list[None]]:
    weights, tensors = _recall(ctx)
    return _spread_op(grad, weights, ctx.dtype, tensors), None, [None] * len(tensors)


def _spread_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, list[None]]:
    weights, tensors = _recall(ctx)
    return _sums_op(grad, weights, tensors).to(ctx.dtype), None, None, [None] * len(tensors)


_sums_op.register_autograd(_sums_gradient, setup_context=_remember)
_spread_op.register_autograd(_spread_gradient, setup_context=_remember)
