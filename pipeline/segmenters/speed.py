"""Arithmetic of the network that is faster and gives other masks at the edges; a recipe says when it was used."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from types import MethodType
from typing import Any, Literal

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import Attention as EncoderAttention
from segment_anything.modeling.image_encoder import add_decomposed_rel_pos
from segment_anything.modeling.transformer import Attention as DecoderAttention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from samdeblur.models.inference.precision import computing

Precision = Literal["float32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True)
class Speed:
    """How the network computes.

    Attributes:
        precision: "float32" with all its bits, "tf32", or what autocast uses for matrix products and convolutions.
        compile: the image encoder through torch.compile.
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
        return sam


def _encoder_attention(self: EncoderAttention, x: Tensor) -> Tensor:
    """(B, H, W, C), within a window or the whole image, with the decomposed relative positions as a bias."""
    batch, height, width, _ = x.shape
    tokens = height * width
    q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
    bias = None
    if self.use_rel_pos:
        flat = q.flatten(0, 1)
        zeros = torch.zeros(len(flat), tokens, tokens, dtype=flat.dtype, device=flat.device)
        sizes = (height, width)
        bias = add_decomposed_rel_pos(zeros, flat, self.rel_pos_h, self.rel_pos_w, sizes, sizes)
        bias = bias.to(q.dtype).unflatten(0, (batch, self.num_heads))
    mixed = scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return self.proj(mixed.transpose(1, 2).reshape(batch, height, width, -1))


def _decoder_attention(self: DecoderAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = [
        project(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
    ]
    return self.out_proj(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
