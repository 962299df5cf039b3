"""Segment Anything 2 and 2.1 for single images: the classes of the package `sam2`, of the sizes that weights show.

The parts that are for videos (memory, object pointers) are neither built nor loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

PARTS = ("image_encoder.", "sam_prompt_encoder.", "sam_mask_decoder.", "no_mem_embed")  # for single images
TRUNK = "image_encoder.trunk."


@dataclass(frozen=True)
class Sam2Config:
    """What the weights of a Segment Anything 2 do not show.

    Attributes:
        num_heads: of the attention in the first stage.
        global_att_blocks: blocks that look at the whole image.
        window_spec: side of the windows of the others, by stage.
        image_size: side of the square that images are stretched to.
    """

    num_heads: int
    global_att_blocks: Sequence[int]
    window_spec: Sequence[int] = (8, 4, 14, 7)
    image_size: int = 1024


# Public models, both of version 2 and 2.1, by channels and blocks of their encoder.
PUBLIC: Mapping[tuple[int, tuple[int, ...]], tuple[str, Sam2Config]] = {
    (96, (1, 2, 7, 2)): ("tiny", Sam2Config(1, (5, 7, 9))),
    (96, (1, 2, 11, 2)): ("small", Sam2Config(1, (7, 10, 13))),
    (112, (2, 3, 16, 3)): ("base plus", Sam2Config(2, (12, 16, 20))),
    (144, (2, 6, 36, 4)): ("large", Sam2Config(2, (23, 33, 43), (8, 4, 16, 8))),
}


def sizes(state: Mapping[str, Tensor]) -> tuple[int, tuple[int, ...]]:
    """Channels of the encoder's first stage, and blocks of each stage: one begins where a block changes channels."""
    count = 1 + max(int(match[1]) for key in state if (match := re.match(rf"{re.escape(TRUNK)}blocks\.(\d+)\.", key)))
    begins = [0, *(i for i in range(count) if f"{TRUNK}blocks.{i}.proj.weight" in state), count]
    stages = tuple(end - begin for begin, end in pairwise(begins))
    return len(state[f"{TRUNK}patch_embed.proj.weight"]), stages


def build_sam2(state: Mapping[str, Tensor], config: Sam2Config | None = None) -> nn.Module:
    """A SAM2Base with the weights of a state dict, in evaluation mode.

    Args:
        config: what they do not show, for those that are of none of the sizes of `PUBLIC`.

    Raises:
        ImportError: no package `sam2`.
        KeyError, RuntimeError: keys are missing, or of another shape.
        ValueError: sizes that are not public, and no config.
    """
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam2_base import SAM2Base

    channels, stages = sizes(state)
    if config is None:
        if (channels, stages) not in PUBLIC:
            raise ValueError(
                f"blocks {list(stages)} of {channels} channels are of no public model; put the .yaml of its "
                "configuration beside it, under the same name"
            )
        config = PUBLIC[channels, stages][1]
    trunk = Hiera(
        embed_dim=channels,
        num_heads=config.num_heads,
        stages=stages,
        global_att_blocks=tuple(config.global_att_blocks),
        window_spec=tuple(config.window_spec),
        window_pos_embed_bkg_spatial_size=tuple(state[f"{TRUNK}pos_embed"].shape[2:]),
    )
    width = state["no_mem_embed"].shape[-1]
    neck = FpnNeck(
        position_encoding=PositionEmbeddingSine(width),
        d_model=width,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    scores = "sam_mask_decoder.pred_obj_score_head."
    sam: nn.Module = SAM2Base(
        image_encoder=ImageEncoder(trunk, neck, scalp=1),
        memory_attention=None,
        memory_encoder=None,
        image_size=config.image_size,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam="sam_mask_decoder.conv_s0.weight" in state,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=any(key.startswith(scores) for key in state),
        pred_obj_scores_mlp=f"{scores}layers.0.weight" in state,
        use_multimask_token_for_obj_ptr=True,
        sam_mask_decoder_extra_args={  # as the package builds its image predictor
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
    )
    mine = {key: tensor for key, tensor in state.items() if key.startswith(PARTS)}
    missing, unexpected = sam.load_state_dict(mine, strict=False)
    lost = [key for key in missing if key.startswith(PARTS)]
    if lost or unexpected:
        raise RuntimeError(
            f"missing {', '.join(lost[:2]) or 'nothing'}; extra {', '.join(unexpected[:2]) or 'nothing'}"
        )
    return sam.eval()
