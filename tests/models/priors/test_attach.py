from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from samdeblur.models import AtomBatch, CATPrior, MAPUnit, NAFNet, with_prior
from samdeblur.models.priors.attach import find_inlets
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
    bottom, right = (have - want for have, want in zip(padded.shape[-2:], SIZE, strict=True))
    mode = "constant" if isinstance(network, NAFNet) else "reflect"  # as the network pads the image
    features = F.pad(prior(image.double(), atoms), (0, right, 0, bottom), mode)
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


class Front(nn.Module):
    """A convolution, its settings, and what is done to the image before it sees it."""

    def __init__(self, front: Callable[[Tensor], Tensor], channels: int = 3, **settings) -> None:
        super().__init__()
        self.front, self.conv = front, nn.Conv2d(channels, 6, 3, **settings)

    def forward(self, image):
        return self.conv(self.front(image))


def _to_multiple(x, multiple, mode):
    return F.pad(x, (0, -x.shape[-1] % multiple, 0, -x.shape[-2] % multiple), mode)


def _centred(x):
    down, right = -x.shape[-2] % 16, -x.shape[-1] % 16
    return F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2), "replicate")


FRONTS = {
    "border": nn.ReflectionPad2d(3),
    "border of zeros": lambda x: F.pad(x, (2, 2, 2, 2)),
    "round border": lambda x: F.pad(x, (1, 1, 1, 1), "circular"),
    "multiple": lambda x: _to_multiple(x, 8, "replicate"),
    "multiple and border": lambda x: F.pad(_to_multiple(x, 4, "constant"), (2, 2, 2, 2)),
    "both sides": _centred,
    "half": lambda x: F.interpolate(x, scale_factor=0.5),
    "quarter": lambda x: F.interpolate(x, scale_factor=0.25, mode="bilinear"),
    "average": lambda x: F.avg_pool2d(x, 4),
    "smooth": lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True),
    "padded half": lambda x: F.interpolate(_to_multiple(x, 8, "reflect"), scale_factor=0.5),
}


@pytest.mark.parametrize("front", FRONTS.values(), ids=FRONTS)
def test_features_go_the_way_of_the_image(front, image, atoms):
    network, prior = Front(front), MAPUnit()
    deblurrer = with_prior(network, prior, "default", output="all")
    weight = torch.cat([network.conv.weight, deblurrer.prior_conv.weight], 1)
    expected = F.conv2d(front(torch.cat([image, prior(image, atoms)], 1)), weight, network.conv.bias)
    torch.testing.assert_close(deblurrer(image, atoms), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("front", "channels"),
    [
        (lambda x: (x.flip(1) - 0.45) / 0.2, 3),
        (lambda x: x.clamp(min=1e-3).log(), 3),
        (lambda x: torch.cat([x, torch.full_like(x[:, :1], 0.1)], 1), 4),
        (lambda x: torch.cat([x.cos(), x], 1), 6),
        (lambda x: x.mean(1, keepdim=True).repeat(1, 3, 1, 1), 3),
    ],
    ids=["scaled, BGR", "logarithm", "noise map", "beside others", "grey"],
)
def test_what_is_done_to_colours_does_not_matter(front, channels, image, atoms):
    network, prior = Front(front, channels, padding=1), MAPUnit()
    deblurrer = with_prior(network, prior, "default")
    expected = network(image) + F.conv2d(prior(image, atoms), deblurrer.prior_conv.weight, padding=1)
    torch.testing.assert_close(deblurrer(image, atoms), expected, rtol=1e-5, atol=1e-5)
    bound = ((channels + 2) * 9) ** -0.5
    assert max(network.conv.weight.abs().max(), deblurrer.prior_conv.weight.abs().max()) <= bound


def test_unshuffled_pixels_get_unshuffled_features(atoms):
    image, prior = torch.rand(2, 3, 12, 16), MAPUnit()
    atoms = AtomBatch(atoms.atoms[:, :12, :16].contiguous(), *atoms[1:])
    network = Front(nn.PixelUnshuffle(2), 12)
    deblurrer = with_prior(network, prior, "default")
    weight = torch.cat([network.conv.weight, deblurrer.prior_conv.weight], 1)
    expected = F.conv2d(F.pixel_unshuffle(torch.cat([image, prior(image, atoms)], 1), 2), weight, network.conv.bias)
    torch.testing.assert_close(deblurrer(image, atoms), expected, rtol=1e-5, atol=1e-5)


class Pyramid(nn.Module):
    """Of MIMO-UNet's kind: the image comes in at three scales, a result goes out at each."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.tails = nn.ModuleList(nn.Conv2d(4, 3, 3, padding=1) for _ in range(3))  # registered, not called, first
        self.heads = nn.ModuleList(nn.Conv2d(3, 4, 3, padding=1) for _ in range(3))
        self.down = nn.Conv2d(4, 4, 2, stride=2)

    def forward(self, image):
        images, results, x = [image], [], 0 * self.fixed(image)[:, :1]
        for _ in range(2):
            images.append(F.interpolate(images[-1], scale_factor=0.5))
        for head, tail, scaled in zip(self.heads, self.tails, images, strict=True):
            x = torch.relu(head(scaled) + x)
            results.append(scaled + tail(x))
            x = self.down(x)
        return results[::-1]


def test_every_named_convolution_of_a_pyramid_sees_the_features_at_its_scale(image, atoms):
    network, prior = Pyramid(), MAPUnit()
    names = ["heads.0", "heads.1", "heads.2"]
    image, atoms = image[..., :12, :16], AtomBatch(atoms.atoms[:, :12, :16].contiguous(), *atoms[1:])
    expected = network(image)
    deblurrer = with_prior(network, prior, first=names)
    assert torch.equal(deblurrer(image, atoms), expected[2])  # the one of the size of the image
    everything = with_prior(network, prior, first=names, output="all")(image, atoms)
    assert all(torch.equal(*pair) for pair in zip(everything, expected, strict=True))
    assert torch.equal(with_prior(network, None, output=0)(image), expected[0])

    loss = F.mse_loss(deblurrer(image, atoms), torch.zeros_like(image))
    loss.backward()
    assert all(conv.weight.grad.any() for conv in deblurrer.prior_convs[:1])
    for conv in deblurrer.prior_convs:
        nn.init.normal_(conv.weight)
    seen = {}
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: output})
        )
    deblurrer(image, atoms)
    for scale, name in enumerate(names):
        head, conv = network.get_submodule(name), deblurrer.prior_convs[scale]
        together = torch.cat([image, prior(image, atoms)], 1)[..., :: 2**scale, :: 2**scale]
        weight = torch.cat([head.weight, conv.weight], 1)
        torch.testing.assert_close(seen[name], F.conv2d(together, weight, head.bias, padding=1), rtol=1e-5, atol=1e-5)
    assert {key.split(".")[0] for key in deblurrer.state_dict()} == {
        "network",
        "prior",
        "prior_conv",
        "more_prior_convs",
    }
    other = with_prior(Pyramid(), MAPUnit(), first=names)
    other.load_state_dict(deblurrer.state_dict())
    assert torch.equal(other(image, atoms), deblurrer(image, atoms))


def test_the_convolution_called_first_is_taken_and_a_grouped_one_passed_over():
    assert with_prior(Pyramid(), CATPrior()).prior_conv.first_name == "heads.0"


class Shared(nn.Module):
    """Calls its first convolution several times."""

    def __init__(self, *scales: float) -> None:
        super().__init__()
        self.scales, self.conv = scales, nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image):
        x = image
        for scale in self.scales:
            x = F.interpolate(x, scale_factor=scale, mode="area")
            x = x + self.conv(x)
        return x


def test_a_convolution_called_again_sees_the_features_again(image, atoms):
    network, prior = Shared(1, 1), MAPUnit()
    expected = network(image)
    deblurrer = with_prior(network, prior)
    assert torch.equal(deblurrer(image, atoms), expected)
    nn.init.normal_(deblurrer.prior_conv.weight)
    added = F.conv2d(prior(image, atoms), deblurrer.prior_conv.weight, padding=1)
    once = image + network.conv(image) + added
    torch.testing.assert_close(deblurrer(image, atoms), once + network.conv(once) + added)


def test_a_convolution_called_at_several_sizes_wants_to_be_told_how(image, atoms):
    network, prior = Shared(1, 0.5), MAPUnit()
    with pytest.raises(ValueError, match=r"'conv' is called at sizes \(13, 18\) and \(6, 9\) for one image: give"):
        with_prior(network, prior, output="all")(image, atoms)
    expected = network(image)
    deblurrer = with_prior(network, prior, align=lambda f, x: F.adaptive_avg_pool2d(f, x.shape[-2:]), output="all")
    assert torch.equal(deblurrer(image, atoms), expected)


def test_a_dry_run_leaves_nothing_behind():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Conv2d(3, 3, 3, padding=1))
    network[1].eval()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert find_inlets(network)[0].name == "2"
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == [True, True, False, True]
    assert not network[2]._forward_hooks


def test_a_network_without_prior_stands_for_its_network(image, atoms):
    plain = with_prior(_nafnet(), None)
    expected = plain(image)
    deblurrer = with_prior(plain, MAPUnit())
    assert torch.equal(deblurrer(image, atoms), expected)
    assert deblurrer.network is plain.network
    with pytest.raises(ValueError, match=r"^this Deblurrer has a prior already; pass its \.network$"):
        with_prior(deblurrer, MAPUnit())


def test_a_convolution_put_in_later_is_missed(image, atoms):
    network = _nafnet()
    deblurrer = with_prior(network, MAPUnit())
    network.intro = nn.Conv2d(3, 4, 3, padding=1)
    with pytest.raises(RuntimeError, match="NAFNet did not call the convolution 'intro' that has the prior"):
        deblurrer(image, atoms)


def test_computed_weights_are_not_drawn_anew():
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    with_prior(network, MAPUnit())
    with pytest.raises(
        ValueError, match="'0' of Sequential has a weight that is computed from others: use init=\"zero\""
    ):
        with_prior(network, MAPUnit(), "default")


def _gradients(deblurrer):
    found = [parameter.grad.clone() for parameter in deblurrer.parameters()]
    deblurrer.zero_grad()
    return found


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_whole_can_be_checkpointed_its_first_convolution_alone_cannot(reentrant, image, atoms):
    deblurrer = with_prior(UNet(), MAPUnit(), "default")
    image = image.requires_grad_()
    deblurrer(image, atoms).square().sum().backward()
    expected = _gradients(deblurrer)
    checkpoint(deblurrer, image, atoms, use_reentrant=reentrant).square().sum().backward()
    assert all(torch.equal(*pair) for pair in zip(_gradients(deblurrer), expected, strict=True))

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3))
    forward = network.forward
    network.forward = lambda x: checkpoint(forward, x, use_reentrant=reentrant)
    output = with_prior(network, MAPUnit())(image, atoms)
    with pytest.raises(RuntimeError, match="'0' runs again in the backward pass, when its prior is gone: checkpoint"):
        output.sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of what torch.compile imports
def test_a_deblurrer_can_be_compiled_whole(image, atoms):
    network = UNet()
    deblurrer = with_prior(network, MAPUnit(), "default")
    expected = deblurrer(image, atoms)
    expected.square().sum().backward()
    gradients = _gradients(deblurrer)
    compiled = torch.compile(deblurrer, backend="eager", fullgraph=True)
    output = compiled(image, atoms)
    assert torch.equal(output, expected)
    output.square().sum().backward()
    assert all(torch.equal(*pair) for pair in zip(_gradients(deblurrer), gradients, strict=True))
    with pytest.raises(ValueError, match=r"^attach the prior before torch\.compile"):
        with_prior(torch.compile(network, backend="eager"), MAPUnit())


def test_a_deblurrer_can_be_pickled(image, atoms):
    deblurrer = with_prior(_nafnet(), MAPUnit(), "default")
    twin = pickle.loads(pickle.dumps(deblurrer))
    assert torch.equal(twin(image, atoms), deblurrer(image, atoms))
    nn.init.zeros_(twin.prior_conv.weight)
    assert torch.equal(twin(image, atoms), twin.network(image))
    assert not torch.equal(deblurrer(image, atoms), deblurrer.network(image))


def test_ddp_takes_a_deblurrer(image, atoms, tmp_path):
    deblurrer = with_prior(_nafnet(), MAPUnit(), "default")
    deblurrer(image, atoms).square().sum().backward()
    expected = _gradients(deblurrer)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        nn.parallel.DistributedDataParallel(deblurrer)(image, atoms).square().sum().backward()
        assert all(torch.equal(*pair) for pair in zip(_gradients(deblurrer), expected, strict=True))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (
            nn.Identity(),
            {},
            "Identity has no convolution with 3, 4, 6, 12, 48 input channels and one group that",
        ),
        (
            nn.Conv2d(3, 3, 3, groups=3),
            {},
            "Conv2d has no convolution with 3, 4, 6, 12, 48 input channels and one group",
        ),
        (nn.Conv2d(3, 3, 3, groups=3), {"first": ""}, "'' of Conv2d has 3 groups and cannot be widened: name another"),
        (nn.Sequential(nn.Conv2d(4, 3, 3)), {}, r"Sequential does not take an image \(1, 3, height, width\) alone"),
        (nn.Sequential(nn.Conv2d(3, 3, 3)), {"first": "O"}, "Sequential has no Conv2d named 'O'; did you mean '0'"),
        (
            Pyramid(),
            {"first": "tails.0"},
            "what reaches the convolution 'tails.0' of Pyramid is not the image .*: give al",
        ),
        (
            nn.Conv2d(3, 3, 3),
            {"align": lambda f, x: f[..., :5]},
            r"align= gave features of \(61, 5\) where \(61, 47\) reached the convolution '' of Conv2d",
        ),
    ],
    ids=["no", "grouped", "named grouped", "4", "no such name", "features", "align"],
)
def test_what_cannot_be_done_is_one_line_that_says_what_to_do(network, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        with_prior(network, CATPrior(), **settings)
    assert "\n" not in str(caught.value)
