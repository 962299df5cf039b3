"""Faster precisions of the network, which change masks at their edges; the recipe names them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from types import MethodType
from typing import Any, Literal

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import Attention as EncoderAttention
from segment_anything.modeling.image_encoder import get_rel_pos
from segment_anything.modeling.transformer import Attention as DecoderAttention
from torch import Tensor
from torch.nn import functional as F

from samdeblur.models.inference.precision import computing

Precision = Literal["float32", "tf32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Speed:
    """How the network computes.

    Attributes:
        precision: "float32" with all its bits, "tf32", or what autocast uses for matrix products and convolutions.
        compile: the image encoder and the mask decoder through torch.compile.
        sdpa: attention by scaled_dot_product_attention instead of segment-anything's two products and softmax.
        batch: images that go through the image encoder together.
    """

    precision: Precision = "float32"
    compile: bool = False
    sdpa: bool = False
    batch: int = 1

    @property
    def exact(self) -> bool:
        """Whether results are those of segment-anything to the bit."""
        return self == Speed()

    def recipe(self) -> str | Mapping[str, Any]:
        """The entry `mode` of a recipe."""
        return "exact" if self.exact else {"name": "tolerance", **asdict(self)}

    def context(self, device: torch.device) -> AbstractContextManager[Any]:
        """In which the network is called; where results are exact, with kernels that repeat them."""
        return computing(device, self.precision, repeatable=self.exact)

    def prepare(self, sam: Sam) -> Sam:
        """The model, changed in place."""
        if self.sdpa:
            for module in sam.modules():
                if isinstance(module, EncoderAttention):
                    module.forward = MethodType(_encoder_attention, module)
                elif isinstance(module, DecoderAttention):
                    module.forward = MethodType(_decoder_attention, module)
        if self.compile:
            sam.image_encoder.forward = torch.compile(sam.image_encoder.forward)
            sam.mask_decoder.predict_masks = torch.compile(sam.mask_decoder.predict_masks)
        return sam


EXACT = Speed()


def _encoder_attention(self: EncoderAttention, x: Tensor) -> Tensor:
    """(B, H, W, C), within a window or the whole image, with the decomposed relative positions.

    What a query and a key get for their rows and columns is a product as well: of what the query has for each row and
    column, and where the key is. So queries and keys get as many channels more, and no bias of all tokens against all,
    a gigabyte for the 64 x 64 tokens of a whole image, is ever there.
    """
    batch, height, width, _ = x.shape
    q, k, v = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
    channels = q.shape[-1]
    if self.use_rel_pos:
        at = q.unflatten(2, (height, width))
        rows = torch.einsum("bnhwc,hkc->bnhwk", at, get_rel_pos(height, height, self.rel_pos_h).to(q.dtype))
        columns = torch.einsum("bnhwc,wkc->bnhwk", at, get_rel_pos(width, width, self.rel_pos_w).to(q.dtype))
        place = torch.cat(
            [
                torch.eye(height, dtype=q.dtype, device=q.device).repeat_interleave(width, 0),
                torch.eye(width, dtype=q.dtype, device=q.device).repeat(height, 1),
            ],
            dim=1,
        )
        q = torch.cat([q * self.scale, rows.flatten(2, 3).to(q.dtype), columns.flatten(2, 3).to(q.dtype)], dim=3)
        k = torch.cat([k, place.expand(*k.shape[:2], -1, -1)], dim=3)
        padding = -q.shape[3] % 8  # kernels want channels by eights, and as many for values as for keys
        q, k = F.pad(q, (0, padding)), F.pad(k, (0, padding))
        v = F.pad(v, (0, q.shape[3] - channels))
    mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0 if self.use_rel_pos else self.scale)[..., :channels]
    return self.proj(mixed.transpose(1, 2).reshape(batch, height, width, -1))


def _decoder_attention(self: DecoderAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = [
        project(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
    ]
    return self.out_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
