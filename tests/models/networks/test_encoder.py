from __future__ import annotations

import pytest
import torch
from torch import nn

from samdeblur.models import load_sam
from samdeblur.models.networks.encoder import ConvEncoder
from samdeblur.models.networks.sam import SamConfig, build_small_sam, encode_sam

SMALL = SamConfig(img_size=64, widths=(4, 4, 8, 8), depths=(1, 2, 1, 1), embed_dim=16, heads=4, mlp_dim=24)


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (384, 384)])
@pytest.mark.parametrize("stride", [8, 16])
def test_the_embedding_has_the_stride_asked_for(size, stride):
    encoder = ConvEncoder(384, stride, (4, 4, 8, 8), (1, 1, 1, 1), embed_dim=12)
    assert encoder(torch.rand(2, 3, *size)).shape == (2, 12, size[0] // stride, size[1] // stride)


def test_every_level_reaches_the_embedding():
    encoder = ConvEncoder(64, 8, (4, 4, 8, 8), (1, 1, 1, 1), embed_dim=12)
    encoder(torch.rand(1, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_a_model_comes_back_from_its_file(tmp_path):
    torch.manual_seed(3)
    sam = build_small_sam(SMALL).eval()
    path = tmp_path / "sam.safetensors"
    path.write_bytes(encode_sam(sam, SMALL))
    loaded = load_sam(path)
    assert str(loaded) == str(sam)
    assert all(torch.equal(tensor, sam.state_dict()[key]) for key, tensor in loaded.state_dict().items())
    assert loaded.image_encoder.img_size == 64
    image = torch.rand(3, 48, 64) * 255
    point = {"image": image, "original_size": (48, 64), "point_coords": torch.tensor([[[20.0, 20.0]]])}
    inputs = [point | {"point_labels": torch.ones(1, 1)}]
    with torch.no_grad():
        found, expected = (model(inputs, multimask_output=True)[0] for model in (loaded, sam))
    assert torch.equal(found["low_res_logits"], expected["low_res_logits"])
    assert found["masks"].shape == (1, 3, 48, 64)


def test_points_attend_to_their_own_place_before_any_training():
    torch.manual_seed(0)
    sam = build_small_sam(SamConfig())
    attention = sam.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    places = sam.prompt_encoder.get_dense_pe()[0].flatten(1).T  # 48 x 48 positions
    scores = attention.q_proj(places) @ attention.k_proj(places).T
    assert (scores.argmax(dim=1) == torch.arange(len(places))).float().mean() > 0.5
    assert isinstance(attention.q_proj, nn.Linear)
