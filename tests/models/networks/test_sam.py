"""The architecture of a Segment Anything model is read off its weights."""

import pytest
import torch
from segment_anything import sam_model_registry

from samdeblur.models.networks.sam import build_sam


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_public_models_are_recognised_from_shapes_alone(name):
    with torch.device("meta"):
        public = sam_model_registry[name]()
        rebuilt = build_sam(public.state_dict())
    assert str(rebuilt) == str(public)
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in public.state_dict().items()}
    for ours, theirs in zip(rebuilt.image_encoder.blocks, public.image_encoder.blocks, strict=True):
        assert (ours.window_size, ours.attn.num_heads) == (theirs.window_size, theirs.attn.num_heads)
    assert rebuilt.image_encoder.img_size == public.image_encoder.img_size
    assert rebuilt.prompt_encoder.image_embedding_size == public.prompt_encoder.image_embedding_size
