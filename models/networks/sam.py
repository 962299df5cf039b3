"""Segment Anything models: public ones, whose architecture is read off their weights, and small ones of our own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from safetensors.torch import save
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from samdeblur.models.networks.encoder import ConvEncoder

METADATA_KEY = "samdeblur"
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
LOG2_FREQUENCIES = (-1.0, 2.5)  # of positions, lowest and highest, in deviations of segment-anything's


@dataclass(frozen=True)
class SamConfig:
    """Sizes of a small Sam: those of `ConvEncoder`, and heads and hidden channels of the decoder.

    The defaults are those of files that do not say.
    """

    img_size: int = 384
    stride: int = 16
    widths: Sequence[int] = (32, 64, 128, 192)
    depths: Sequence[int] = (2, 2, 5, 3)
    embed_dim: int = 64
    fused_depth: int = 0
    heads: int = 4
    mlp_dim: int = 256


def build_small_sam(config: SamConfig) -> Sam:
    """An untrained Sam with a convolutional encoder and segment-anything's prompt encoder and mask decoder."""
    grid = config.img_size // config.stride
    encoder = ConvEncoder(
        config.img_size, config.stride, config.widths, config.depths, config.embed_dim, config.fused_depth
    )
    sam = Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(config.embed_dim, (grid, grid), (config.img_size, config.img_size), 16),
        mask_decoder=MaskDecoder(
            transformer_dim=config.embed_dim,
            transformer=TwoWayTransformer(2, config.embed_dim, config.heads, config.mlp_dim),
            iou_head_hidden_dim=config.embed_dim,
        ),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )
    # A point looks at its own place from the first step when queries and keys project positions alike, and where some
    # of the random frequencies tell a token from its neighbours.
    frequencies = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    frequencies *= torch.logspace(*LOG2_FREQUENCIES, frequencies.shape[1], base=2)
    transformer = sam.mask_decoder.transformer
    for attention in (
        *(layer.cross_attn_token_to_image for layer in transformer.layers),
        *(layer.cross_attn_image_to_token for layer in transformer.layers),
        transformer.final_attn_token_to_image,
    ):
        nn.init.orthogonal_(attention.q_proj.weight)
        attention.k_proj.load_state_dict(attention.q_proj.state_dict())
    return sam


@dataclass(frozen=True)
class Calibration:
    """What the last layers' weights were changed by after training: predicted IoU became `slope` x + `level`, logits
    `factor` times what they were. Masks stay what they are."""

    slope: float = 1.0
    level: float = 0.0
    factor: float = 1.0

    @property
    def inverse(self) -> Calibration:
        return Calibration(1 / self.slope, -self.level / self.slope, 1 / self.factor)

    def apply(self, sam: Sam) -> None:
        """Change a model in place."""
        head = sam.mask_decoder.iou_prediction_head.layers[-1]
        head.weight.data *= self.slope
        head.bias.data = head.bias.data * self.slope + self.level
        for mlp in sam.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.data *= self.factor
            mlp.layers[-1].bias.data *= self.factor


def encode_sam(sam: Sam, config: SamConfig, calibration: Calibration | None = None) -> bytes:
    """A small Sam with its sizes, and how it was calibrated, as bytes of a safetensors file; `load_sam` reads it."""
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in sam.state_dict().items()}
    described = {"sam": asdict(config)} | ({"calibration": asdict(calibration)} if calibration else {})
    return save(state, {METADATA_KEY: json.dumps(described, sort_keys=True)})


def build_sam(state: Mapping[str, Tensor]) -> Sam:
    """An untrained Sam with the sizes a state dict asks for; the caller loads the weights.

    What weights do not show is taken from the public models: 8 heads in the decoder, the pixel mean and deviation.

    Raises:
        KeyError: a key every Sam has is missing.
    """
    encoder = "image_encoder."
    dim, _, patch, _ = state[f"{encoder}patch_embed.proj.weight"].shape
    grid = state[f"{encoder}pos_embed"].shape[1]
    depth = _count(state, rf"{encoder}blocks\.(\d+)\.")
    # A block's relative positions reach 2 * size - 1 steps: size is the grid for global attention, else the window.
    reach = [(len(state[f"{encoder}blocks.{i}.attn.rel_pos_h"]) + 1) // 2 for i in range(depth)]
    head_dim = state[f"{encoder}blocks.0.attn.rel_pos_h"].shape[1]
    out_chans = state[f"{encoder}neck.0.weight"].shape[0]
    token_layer = "mask_decoder.transformer.layers.0."
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=grid * patch,
            patch_size=patch,
            embed_dim=dim,
            depth=depth,
            num_heads=dim // head_dim,
            mlp_ratio=state[f"{encoder}blocks.0.mlp.lin1.weight"].shape[0] / dim,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            qkv_bias=f"{encoder}blocks.0.attn.qkv.bias" in state,
            use_rel_pos=True,
            global_attn_indexes=tuple(i for i, size in enumerate(reach) if size == grid),
            window_size=min(reach),
            out_chans=out_chans,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=out_chans,
            image_embedding_size=(grid, grid),
            input_image_size=(grid * patch, grid * patch),
            mask_in_chans=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=len(state["mask_decoder.mask_tokens.weight"]) - 1,
            transformer=TwoWayTransformer(
                depth=_count(state, r"mask_decoder\.transformer\.layers\.(\d+)\."),
                embedding_dim=out_chans,
                mlp_dim=state[f"{token_layer}mlp.lin1.weight"].shape[0],
                num_heads=8,
            ),
            transformer_dim=out_chans,
            iou_head_depth=_count(state, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
            iou_head_hidden_dim=state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
        ),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    found = {int(match[1]) for key in state if (match := re.match(pattern, key))}
    if found and max(found) >= len(state):
        raise ValueError(f"number {max(found)} in {len(state)} tensors")
    return max(found, default=-1) + 1
