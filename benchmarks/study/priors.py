"""Priors that are tried beside MAP, to see which of them survive masks that are off. docs/study.md has what came of it.

Shapes: B images, H W pixels, S channels, M masks, P (atom, mask) pairs of the batch, n places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samdeblur.models import MAPUnit, Prior
from samdeblur.models.priors import methods
from samdeblur.models.priors.pooling import AtomBatch, _Maps
from samdeblur.storage import AtomMap, MaskStore
from samdeblur.train import TrainConfig, loop, running, start

SCORES = 1000  # steps of a confidence from 0 to 1


class SoftMAP(MAPUnit):
    """MAP whose features are blurred after pooling: a border that is a pixel off is then off by a part of its height.

    Args:
        sigma: standard deviation of the Gaussian, pixels.
    """

    def __init__(self, sigma: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.config |= {"name": "soft", "sigma": sigma}
        reach = int(np.ceil(3 * sigma))
        row = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
        self.register_buffer("row", row / row.sum(), persistent=False)

    def forward(self, image: Tensor, batch: AtomBatch) -> Tensor:
        pooled = super().forward(image, batch)
        channels, reach = pooled.shape[1], len(self.row) // 2
        padded = F.pad(pooled, [reach] * 4, mode="replicate")
        row = self.row.to(pooled).expand(channels, 1, 1, -1)
        return F.conv2d(F.conv2d(padded, row, groups=channels), row.transpose(2, 3), groups=channels)


class ConfidentMAP(MAPUnit):
    """MAP where a pixel gets the mean of the averages of its masks, weighted by what the segmenter thinks of them.

    `mask_ids` of the batch are confidences in thousandths: see `scored_atoms`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.config |= {"name": "confident"}

    def forward(self, image: Tensor, batch: AtomBatch) -> Tensor:
        features = self.encoder(image)
        maps = _Maps(batch, channels_last=False)
        atom, mask = batch.pairs.unbind(1)
        weight = (batch.mask_ids.double() / SCORES).clamp(min=1 / SCORES)[mask]
        weight = weight / weight.new_zeros(batch.atom_image.shape).index_add(0, atom, weight)[atom]
        means = maps.sums(features) / maps.areas().clamp(min=1).unsqueeze(1)
        return maps.spread(means, weight, features.dtype)


def scored_atoms(atoms: Callable[..., AtomMap]) -> Callable[..., AtomMap]:
    """`MaskStore.atoms` whose mask_ids are predicted IoU times stability score, in thousandths."""

    def scored(store: MaskStore, key: str, *window: Any) -> AtomMap:
        found, records = atoms(store, key, *window), store.records(key)
        confidence = records["predicted_iou"] * records["stability_score"]
        scores = np.round(SCORES * np.nan_to_num(confidence, nan=1.0).clip(0, 1)).astype(np.int32)
        return AtomMap(found.atoms, found.pairs, scores[found.mask_ids])

    return scored


class Distilled(Prior):
    """No prior at all where the network is used; in training a loss on its last features (after arXiv 2403.16368).

    Vectors of two places, a linear map of the features before the last convolution, shall be near each other where the
    smallest masks over both are the same.

    Args:
        features: channels that reach the last convolution.
        weight: of the loss, beside PSNR in dB.
    """

    PLACES, NEAR, VECTOR = 192, 12, 16

    def __init__(self, features: int, weight: float = 1.0) -> None:
        super().__init__()
        self.channels, self.weight = 1, weight
        self.config = {"name": "distilled", "features": features, "weight": weight}
        self.vectors = nn.Linear(features, self.VECTOR)
        self.level = nn.Parameter(torch.ones(1))
        self.seen: list[Any] = []  # the masks, and the features, of the last training step

    def forward(self, image: Tensor, batch: AtomBatch) -> Tensor:
        if self.training:
            self.seen = [batch]
        return torch.zeros_like(image[:, :1])

    def watch(self, network: nn.Module) -> None:
        """Look at what reaches the last convolution of a network."""
        last: nn.Module = network.ending  # type: ignore[assignment]
        last.register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[0]) if self.training else None)

    def loss(self) -> Tensor:
        batch, features = self.seen
        count, height, width = batch.atoms.shape
        rows, columns = torch.randint(height, (count, self.PLACES)), torch.randint(width, (count, self.PLACES))
        far = self.PLACES // 2  # the others lie near one of these
        for places, side in ((rows, height), (columns, width)):
            near = places[:, :far] + torch.randint(-self.NEAR, self.NEAR + 1, (count, far))
            places[:, far : 2 * far] = near.clamp(0, side - 1)
        image = torch.arange(count)[:, None]
        mask = smallest(batch)[batch.atoms[image, rows, columns].long()]
        same = (mask[:, :, None] == mask[:, None]).float()
        vectors = self.vectors(features.permute(0, 2, 3, 1)[image, rows, columns])
        logits = self.level - torch.cdist(vectors, vectors, compute_mode="use_mm_for_euclid_dist")
        share = same.mean().clamp(0.02, 0.98)
        loss = F.binary_cross_entropy_with_logits(logits, same, reduction="none")
        return self.weight * (loss * (same / share + (1 - same) / (1 - share)) / 2).mean()


def smallest(batch: AtomBatch) -> Tensor:
    """(K,) the smallest mask over each atom; that of the background of image b is M + b."""
    atom, mask = batch.pairs.unbind(1)
    areas = _Maps(batch, channels_last=False).areas()[mask]
    order = torch.argsort(areas, descending=True, stable=True)  # the last write wins
    found = len(batch.mask_image) + batch.atom_image
    found[atom[order]] = mask[order]
    return found


CANDIDATES: dict[str, type[Prior]] = {
    "soft": SoftMAP,
    "confident": ConfidentMAP,
    "distilled": Distilled,
}
methods.KINDS.update(CANDIDATES)


@contextmanager
def tried(name: str) -> Iterator[None]:
    """Trainings and evaluations have this prior, of CANDIDATES, in place of `map`; "" changes nothing."""
    if not name:
        yield
        return
    made: list[Any] = []

    def prior(config: TrainConfig, network: nn.Module) -> Prior:
        made[:] = [Distilled(config.width) if name == "distilled" else CANDIDATES[name]()]
        return made[0]

    patches = [mock.patch.object(start, "_prior", prior)]
    if name == "confident":
        patches.append(mock.patch.object(MaskStore, "atoms", scored_atoms(MaskStore.atoms)))
    if name == "distilled":
        build, loss_of = loop.build_network, running.loss_of

        def build_watched(config: Any) -> Any:
            network = build(config)
            made[0].watch(network.network)
            return network

        def with_masks(*given: Any) -> Tensor:
            loss = loss_of(*given)
            return loss + made[0].loss() if made[0].training and torch.is_grad_enabled() else loss

        patches += [
            mock.patch.object(loop, "build_network", build_watched),
            mock.patch.object(running, "loss_of", with_masks),
        ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()
