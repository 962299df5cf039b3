"""Weights that ask for local means get them wherever they deblur: before masks are found, and in evaluations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samdeblur.cli.support.inference import tlc_of
from samdeblur.models import LocalAveragePool, NAFNet, deblur, local_pooling, with_prior
from samdeblur.models.checkpoints.loading import encode_network
from samdeblur.pipeline.job.recipe import PrepSettings, Weights, load_stages


@pytest.mark.parametrize("asks", [True, False])
def test_images_are_deblurred_as_the_weights_ask(tmp_path, asks):
    torch.manual_seed(0)
    network = with_prior(NAFNet(4, (1, 1), 1, (1, 1)), None).eval()
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    network.train_size, network.local_means = 16, asks
    (tmp_path / "n.safetensors").write_bytes(encode_network(network))
    settings = PrepSettings(predeblur=Weights.of_network(str(tmp_path / "n.safetensors")))
    stage = load_stages(settings, torch.device("cpu")).network
    assert any(isinstance(module, LocalAveragePool) for module in stage.modules()) == asks
    image = np.random.default_rng(0).integers(0, 256, (60, 72, 3), np.uint8)
    expected = deblur(local_pooling(network, 16) if asks else network, image)
    assert np.array_equal(deblur(stage, image), expected)
    options = {"tlc": "auto", "train_size": None}
    assert tlc_of(options, network, as_published=False) == (16 if asks else None)
    assert tlc_of(options | {"tlc": "off"}, network, as_published=True) is None
