"""CAT of Table 1 of arXiv 2309.02270: the masks as one grey image beside the channels of the input."""

from __future__ import annotations

import torch
from torch import Tensor

from samdeblur.models.priors.base import Prior
from samdeblur.models.priors.pooling import AtomBatch


class CATPrior(Prior):
    """The masks as one grey image in [0, 1].

    Mask k of the full image has the grey value 2(k + 1) for k < 127, else 2(255 - k) - 1; overlapping masks add up, and
    the sum is clipped to 0..255 and divided by 255 (the released code of SAM-Deblur).
    """

    channels = 1

    def __init__(self) -> None:
        super().__init__()
        self.config = {"name": "cat"}

    def forward(self, image: Tensor, batch: AtomBatch) -> Tensor:
        ids = batch.mask_ids
        grey = torch.where(ids < 127, 2 * (ids + 1), 2 * (255 - ids) - 1)
        atom, mask = batch.pairs.unbind(1)
        code = torch.zeros_like(batch.atom_image).index_add_(0, atom, grey[mask]).clamp_(0, 255)
        return (code.to(image.dtype) / 255)[batch.atoms.long()].unsqueeze(1)
