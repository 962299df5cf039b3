"""MobileSAM: Segment Anything with a TinyViT for an encoder, which timm brings, and the rest of segment-anything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from samdeblur.models.networks.sam import PIXEL_MEAN, PIXEL_STD

MARK = "image_encoder.layers.0.blocks.0.conv1.c.weight"  # a name by which one is known
STRIDE = 16
IMAGE_SIZE = 1024  # of the one that was published, which weights do not show


class MobileEncoder(nn.Module):
    """(B, 3, S, S) -> (B, width, S / 16, S / 16): a TinyViT whose last stage keeps its resolution, and a neck."""

    def __init__(self, trunk: nn.Module, channels: int, width: int, img_size: int) -> None:
        super().__init__()
        self.img_size, self.trunk = img_size, trunk
        self.neck = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            LayerNorm2d(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            LayerNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.neck(self.trunk(x))
        return found


def build_mobile_sam(state: Mapping[str, Tensor], image_size: int = IMAGE_SIZE) -> Sam:
    """A Sam with the weights of a state dict of MobileSAM, in evaluation mode.

    Raises:
        ImportError: no package timm.
        KeyError, RuntimeError: keys are missing, or of another shape.
    """
    from timm.models.tiny_vit import TinyVit

    encoder = "image_encoder."
    stages = range(4)
    depths = tuple(_count(state, rf"{encoder}layers\.{stage}\.blocks\.(\d+)\.") for stage in stages)
    widths = (
        len(state[f"{encoder}patch_embed.seq.2.c.weight"]),
        *(len(state[f"{encoder}layers.{stage}.downsample.conv3.c.weight"]) for stage in (0, 1, 2)),
    )
    trunk = TinyVit(
        num_classes=0,
        embed_dims=widths,
        depths=depths,
        num_heads=tuple(
            len(state[f"{encoder}layers.{stage}.blocks.0.attn.attention_biases"]) if stage else 1 for stage in stages
        ),
        window_sizes=tuple(
            int(state[f"{encoder}layers.{stage}.blocks.0.attn.attention_biases"].shape[1] ** 0.5) if stage else 7
            for stage in stages
        ),
        drop_path_rate=0.0,
    )
    trunk.head = nn.Identity()
    trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
    width = len(state[f"{encoder}neck.0.weight"])
    grid = image_size // STRIDE
    sam = Sam(
        image_encoder=MobileEncoder(trunk, widths[-1], width, image_size),
        prompt_encoder=PromptEncoder(width, (grid, grid), (image_size, image_size), 16),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=len(state["mask_decoder.mask_tokens.weight"]) - 1,
            transformer=TwoWayTransformer(
                depth=_count(state, r"mask_decoder\.transformer\.layers\.(\d+)\."),
                embedding_dim=width,
                mlp_dim=len(state["mask_decoder.transformer.layers.0.mlp.lin1.weight"]),
                num_heads=8,
            ),
            transformer_dim=width,
            iou_head_depth=_count(state, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
            iou_head_hidden_dim=len(state["mask_decoder.iou_prediction_head.layers.0.weight"]),
        ),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )
    sam.load_state_dict({_renamed(key): value for key, value in state.items() if not _unused(key)})
    return sam.eval()


def _count(state: Mapping[str, Any], pattern: str) -> int:
    return 1 + max((int(match[1]) for key in state if (match := re.match(pattern, key))), default=-1)


def _unused(key: str) -> bool:
    """Of the classifier that the encoder was, of indices that are computed, and statistics kept elsewhere."""
    return key.startswith(("image_encoder.norm_head.", "image_encoder.head.", "pixel_")) or key.endswith(
        "attention_bias_idxs"
    )


def _renamed(key: str) -> str:
    """The name of a weight of MobileSAM where the encoder is timm's."""
    if not key.startswith("image_encoder.") or key.startswith("image_encoder.neck."):
        return key
    key = key.replace("image_encoder.", "image_encoder.trunk.")
    key = key.replace("patch_embed.seq.0.", "patch_embed.conv1.").replace("patch_embed.seq.2.", "patch_embed.conv2.")
    key = re.sub(r"\.c\.", ".conv.", key)
    if match := re.search(r"\.layers\.(\d)\.downsample\.", key):  # which here is the first part of the next stage
        return key.replace(match[0], f".stages.{int(match[1]) + 1}.downsample.")
    return key.replace(".layers.", ".stages.")
