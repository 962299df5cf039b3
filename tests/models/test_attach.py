from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from samdeblur.models import AtomBatch, CATPrior, MAPUnit, NAFNet, with_prior
from samdeblur.storage import AtomMap

SIZE = (13, 18)  # NAFNet pads both sides


class UNet(nn.Module):
    """Some other network: two levels, padded inside by reflection, adds its input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 2, stride=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.tail = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, image):
        height, width = image.shape[-2:]
        x = F.pad(image, (0, width % 2, 0, height % 2), mode="reflect")
        first = torch.relu(self.head(x))
        return image + self.tail(torch.cat([first, self.up(torch.relu(self.down(first)))], 1))[..., :height, :width]


def _nafnet() -> NAFNet:
    network = NAFNet(4, [1, 1], 1, [1, 1])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("beta", "gamma")):  # zero in a new network, whose blocks then do nothing
                parameter.normal_()
    return network


NETWORKS = pytest.mark.parametrize("make_network", [_nafnet, UNet], ids=["nafnet", "unet"])
PRIORS = pytest.mark.parametrize("make_prior", [CATPrior, MAPUnit, lambda: MAPUnit(5)], ids=["cat", "map", "map 5"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def image():
    return torch.rand(2, 3, *SIZE)


@pytest.fixture(scope="module")
def atoms(random_masks):
    rng = np.random.default_rng(4)
    return AtomBatch.collate([AtomMap.from_masks(random_masks(rng, n, *SIZE)) for n in (6, 9)])


@NETWORKS
@PRIORS
def test_a_zero_start_leaves_the_network_as_it_is(make_network, make_prior, image, atoms):
    network = make_network()
    expected = network(image)
    deblurrer = with_prior(network, make_prior())
    assert torch.equal(deblurrer(image, atoms), expected)
    assert deblurrer.network is network
    deblurrer(image, atoms).square().sum().backward()
    assert deblurrer.prior_conv.weight.grad.any()  # and it can learn


@NETWORKS
@PRIORS
@pytest.mark.parametrize("init", ["zero", "default"])
def test_the_first_convolution_is_a_widened_one(make_network, make_prior, init, image, atoms):
    network, prior = make_network().double(), make_prior().double()
    deblurrer = with_prior(network, prior, init).double()
    first = network.intro if isinstance(network, NAFNet) else network.head
    with torch.no_grad():
        if init == "zero":
            deblurrer.prior_conv.weight.normal_()
    seen = []
    handle = first.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    deblurrer(image.double(), atoms)
    handle.remove()
    ((padded, output),) = seen
    features = torch.zeros(2, prior.channels, *padded.shape[-2:], dtype=torch.float64)
    features[..., : SIZE[0], : SIZE[1]] = prior(image.double(), atoms)
    widened = torch.cat([first.weight, deblurrer.prior_conv.weight], 1)
    expected = F.conv2d(torch.cat([padded, features], 1), widened, first.bias, padding=1)
    assert padded.shape[-2:] != SIZE
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 5, "stride": 2, "padding": 2, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "bias": False},
        {"kernel_size": (1, 3), "padding": (0, 1), "padding_mode": "circular"},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 4, "stride": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("init", ["zero", "default"])
def test_every_setting_of_the_first_convolution_is_kept(settings, init, image, atoms):
    conv, prior = nn.Conv2d(3, 6, **settings), MAPUnit()
    deblurrer = with_prior(nn.Sequential(conv), prior, init)
    with torch.no_grad():
        deblurrer.prior_conv.weight.normal_()
        widened = nn.Conv2d(5, 6, **settings)
        widened.weight.copy_(torch.cat([conv.weight, deblurrer.prior_conv.weight], 1))
        if conv.bias is not None:
            widened.bias.copy_(conv.bias)
        expected = widened(torch.cat([image, prior(image, atoms)], 1))
        torch.testing.assert_close(deblurrer(image, atoms), expected, rtol=1e-5, atol=1e-5)


def test_a_default_start_draws_the_widened_convolution_as_torch_would():
    network = nn.Sequential(nn.Conv2d(3, 400, 3, padding=1))
    before = copy.deepcopy(network)
    deblurrer = with_prior(network, MAPUnit(2), "default")
    bound = 1 / (5 * 9) ** 0.5  # five input channels, 3x3
    for tensor in (network[0].weight, network[0].bias, deblurrer.prior_conv.weight):
        assert bound * 0.97 < tensor.abs().max() <= bound
        assert abs(tensor.std() - bound / 3**0.5) < 0.1 * bound
    assert not torch.equal(network[0].weight, before[0].weight)
    assert deblurrer.prior_conv.bias is None


def test_without_a_prior_the_network_is_called_alone(image, atoms):
    network = _nafnet()
    deblurrer = with_prior(network, None, "default")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(deblurrer(image), network(image))
        assert torch.equal(deblurrer(image, atoms), network(image))
    assert set(deblurrer.state_dict()) == {f"network.{name}" for name in network.state_dict()}


def test_no_atoms_mean_one_background_region_and_one_warning(image):
    deblurrer = with_prior(_nafnet(), MAPUnit(), "default")
    expected = deblurrer(image, AtomBatch.background(2, *SIZE))
    with pytest.warns(UserWarning, match="no atoms given") as caught:
        first = deblurrer(image)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = deblurrer(image)
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)


@NETWORKS
def test_a_copy_has_weights_of_its_own(make_network, image, atoms):
    deblurrer = with_prior(make_network(), MAPUnit(), "default")
    expected, twin = deblurrer(image, atoms), copy.deepcopy(deblurrer)
    assert torch.equal(twin(image, atoms), expected)
    with torch.no_grad():
        twin.prior_conv.weight.mul_(2)
    doubled = twin(image, atoms)
    assert not torch.equal(doubled, expected)
    assert torch.equal(deblurrer(image, atoms), expected)
    with torch.no_grad():
        deblurrer.prior_conv.weight.zero_()
        deblurrer.prior.encoder[0].weight.zero_()
    assert torch.equal(twin(image, atoms), doubled)
    assert torch.equal(deblurrer(image, atoms), deblurrer.network(image))


@NETWORKS
@PRIORS
def test_a_state_dict_carries_everything(make_network, make_prior, image, atoms):
    deblurrer = with_prior(make_network(), make_prior(), "default").eval()
    other = with_prior(make_network(), make_prior()).eval()
    assert not torch.equal(other(image, atoms), deblurrer(image, atoms))
    other.load_state_dict(copy.deepcopy(deblurrer.state_dict()))
    assert torch.equal(other(image, atoms), deblurrer(image, atoms))
    assert {key.split(".")[0] for key in deblurrer.state_dict()} - {"prior"} == {"network", "prior_conv"}


def test_the_bare_network_keeps_its_own_output_also_after_an_error(image, atoms):
    network = _nafnet()
    expected = network(image)
    deblurrer = with_prior(network, MAPUnit())
    with torch.no_grad():
        deblurrer.prior_conv.weight.normal_()
    assert not torch.equal(deblurrer(image, atoms), expected)
    assert torch.equal(network(image), expected)
    broken = network.ending.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        deblurrer(image, atoms)
    broken.remove()
    assert torch.equal(network(image), expected)


@pytest.mark.parametrize(
    "network",
    [nn.Sequential(nn.Conv2d(4, 3, 3)), nn.Identity(), nn.Conv2d(3, 3, 3, groups=3)],
    ids=["4", "no", "grouped"],
)
def test_a_network_without_a_convolution_of_three_channels_is_refused_by_name(network):
    with pytest.raises(ValueError, match=f"{type(network).__name__} has no convolution with 3 input channels"):
        with_prior(network, CATPrior())
