"""Networks of other packages with a prior: tiny configurations of spandrel's and spandrel-extra-arches' classes."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from samdeblur.models import AtomBatch, MAPUnit, with_prior
from samdeblur.storage import AtomMap

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid", "ignore:.*saved_variables.*")


class WithNoiseMap(nn.Module):
    """DRUNet sees a fourth channel, the noise level."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image):
        return self.network(torch.cat([image, torch.full_like(image[:, :1], 15 / 255)], 1))


class PaddedToMultiple(nn.Module):
    """For networks that only take sizes that are a multiple of some number."""

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple

    def forward(self, image):
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        return self.network(padded)[..., :height, :width]


@dataclass(frozen=True)
class Case:
    package: str
    module: str
    name: str
    settings: dict[str, Any]
    first: str  # where the prior comes in
    size: tuple[int, int] = (16, 24)
    padding: str = "constant"
    wrap: Callable[[nn.Module], nn.Module] = field(default=lambda network: network)
    output: int | None = None

    def make(self) -> nn.Module:
        reason = f"{self.package} is not installed (pip install {self.package.replace('_', '-')})"
        pytest.importorskip(self.package, reason=reason)
        network_class = getattr(importlib.import_module(f"{self.package}.architectures.{self.module}"), self.name)
        network = self.wrap(network_class(**self.settings))
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if not parameter.any() and name.endswith(("beta", "gamma")):  # blocks that would do nothing
                    parameter.normal_(std=0.1)
        return network


LEVELS = {"enc_blk_nums": [1, 1], "middle_blk_num": 1, "dec_blk_nums": [1, 1], "width": 4}
UFORMER = {"img_size": 32, "embed_dim": 4, "depths": [1] * 9, "num_heads": [1] * 9, "win_size": 2, "drop_path_rate": 0}
SWIN = {"img_size": 16, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 4, "drop_path_rate": 0.0}
FOUR = {"num_blocks": [1] * 4, "num_refinement_blocks": 1, "heads": [1] * 4}
DRUNET = {"out_nc": 3, "nc": [4, 4, 4, 4], "nb": 1}
THREE = {"dim": 4, "num_blocks": [1] * 3, "num_refinement_blocks": 1}
EXTRA = "spandrel_extra_arches"

CASES = {
    "NAFNet": Case("spandrel", "NAFNet", "NAFNet", LEVELS, "intro", (13, 18)),
    "Uformer": Case("spandrel", "Uformer", "Uformer", UFORMER, "input_proj.proj.0", (32, 32)),
    "FFTformer": Case("spandrel", "FFTformer", "FFTformer", THREE, "patch_embed.proj", (32, 32)),
    "FFTformer, padded": Case(
        "spandrel",
        "FFTformer",
        "FFTformer",
        THREE,
        "network.patch_embed.proj",
        (13, 18),
        "replicate",
        lambda network: PaddedToMultiple(network, 32),
    ),
    "KBNet": Case("spandrel", "KBNet", "KBNet_s", LEVELS, "intro", (13, 18)),
    "SCUNet": Case("spandrel", "SCUNet", "SCUNet", {"config": [1] * 7}, "m_head.0", (40, 50), "reflect"),
    "SwinIR": Case("spandrel", "SwinIR", "SwinIR", SWIN, "conv_first", (13, 18), "reflect"),
    "DRUNet": Case(
        "spandrel", "DRUNet", "DRUNet", {**DRUNET, "in_nc": 4}, "network.m_head", (16, 24), wrap=WithNoiseMap
    ),
    "Restormer": Case(EXTRA, "Restormer", "Restormer", {"dim": 8, **FOUR}, "patch_embed.proj"),
    "MIRNet-v2": Case(EXTRA, "MIRNet2.__arch.mirnet_v2_arch", "MIRNet_v2", {"n_feat": 16, "n_MRB": 1}, "conv_in"),
    "MPRNet": Case(
        EXTRA,
        "MPRNet",
        "MPRNet",
        {"n_feat": 20, "scale_unetfeats": 10, "scale_orsnetfeats": 8, "num_cab": 1},
        "shallow_feat3.0",
        (32, 32),
        output=0,
    ),
}
NETWORKS = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def batch(random_masks):
    """(size) -> image, AtomBatch, sharp of two images."""

    def make(size):
        rng = np.random.default_rng(4)
        maps = [AtomMap.from_masks(random_masks(rng, n, *size)) for n in (6, 9)]
        return torch.rand(2, 3, *size), AtomBatch.collate(maps), torch.rand(2, 3, *size)

    return make


@NETWORKS
def test_a_zero_start_leaves_the_output_bit_for_bit(case, batch):
    network = case.make().eval()
    image, atoms, _ = batch(case.size)
    with torch.no_grad():
        outputs = network(image)
        expected = outputs if case.output is None else outputs[case.output].clone()
        deblurrer = with_prior(network, MAPUnit(), output=case.output)
        assert torch.equal(deblurrer(image, atoms), expected)
        assert deblurrer.prior_conv.first_name == case.first
        assert deblurrer.prior_conv.align.padding == case.padding
        deblurrer.prior_conv.weight.normal_()
        assert not torch.equal(deblurrer(image, atoms), expected)


@NETWORKS
def test_training_lowers_the_loss_and_moves_the_prior(case, batch):
    deblurrer = with_prior(case.make(), MAPUnit(), output=case.output)
    image, atoms, sharp = batch(case.size)
    optimizer = torch.optim.Adam(deblurrer.parameters(), 1e-4)
    encoder = deblurrer.prior.encoder[0].weight
    start = encoder.detach().clone()
    losses = []
    for moved in (False, True):
        loss = F.mse_loss(deblurrer(image, atoms), sharp)
        optimizer.zero_grad()
        loss.backward()
        assert deblurrer.prior_conv.weight.grad.any()
        assert encoder.grad.any() == moved  # behind a convolution of zeros nothing is learnt in the first step
        optimizer.step()
        losses.append(loss.item())
    losses.append(F.mse_loss(deblurrer(image, atoms), sharp).item())
    assert losses[0] > losses[1] > losses[2]
    assert deblurrer.prior_conv.weight.all()
    assert not torch.equal(encoder, start)


@NETWORKS
def test_a_state_dict_carries_everything(case, batch):
    deblurrer = with_prior(case.make(), MAPUnit(), "default", output=case.output).eval()
    other = with_prior(case.make(), MAPUnit(), output=case.output).eval()
    image, atoms, _ = batch(case.size)
    with torch.no_grad():
        expected = deblurrer(image, atoms)
        assert not torch.equal(other(image, atoms), expected)
        other.load_state_dict(copy.deepcopy(deblurrer.state_dict()))
        assert torch.equal(other(image, atoms), expected)


@NETWORKS
def test_a_default_start_draws_the_convolution_for_three_channels_and_the_features(case):
    network = case.make()
    first = network.get_submodule(case.first)
    deblurrer = with_prior(network, MAPUnit(40), "default", output=case.output)
    bound = ((first.in_channels + 40) * 9) ** -0.5  # of torch, all of these convolutions are 3x3
    weight = deblurrer.prior_conv.weight
    assert weight.shape == (first.out_channels, 40, 3, 3)
    assert bound * 0.97 < weight.abs().max() <= bound
    assert bound * 0.8 < first.weight.abs().max() <= bound


def test_a_network_loaded_by_spandrel_takes_a_prior(batch):
    case = CASES["NAFNet"]
    state = case.make().state_dict()
    spandrel = importlib.import_module("spandrel")
    descriptor = spandrel.ModelLoader().load_from_state_dict(state)
    image, atoms, _ = batch(case.size)
    expected = descriptor.model(image)
    with pytest.raises(TypeError, match=r"^ImageModelDescriptor is not a torch module; pass its \.model$"):
        with_prior(descriptor, MAPUnit())
    assert torch.equal(with_prior(descriptor.model, MAPUnit())(image, atoms), expected)


def test_a_network_that_takes_more_than_the_image_is_refused_with_what_to_do():
    case = CASES["DRUNet"]
    network = case.make().network
    with pytest.raises(ValueError, match=r"^DRUNet does not take an image .* wrap it in a module that adds") as caught:
        with_prior(network, MAPUnit())
    assert "\n" not in str(caught.value)


def test_pixels_put_into_channels_are_recognised(batch):
    settings = {**SWIN, "start_unshuffle": 2, "upscale": 2, "upsampler": "pixelshuffle"}
    network = Case("spandrel", "SwinIR", "SwinIR", settings, "").make().eval()
    image, atoms, _ = batch((16, 24))
    with torch.no_grad():
        expected = network(image)
        deblurrer = with_prior(network, MAPUnit())
        assert torch.equal(deblurrer(image, atoms), expected)
    assert deblurrer.prior_conv.in_channels == 2 * 4
    assert deblurrer.prior_conv.align.padding == "reflect"


def test_of_several_outputs_of_one_size_the_result_has_to_be_named(batch):
    case = CASES["MPRNet"]
    image, atoms, _ = batch(case.size)
    with pytest.raises(ValueError, match="MPRNet gives 3 outputs, 3 of the size of the image"):
        with_prior(case.make(), MAPUnit())(image, atoms)
