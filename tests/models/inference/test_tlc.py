from __future__ import annotations

import copy
import warnings

import pretended
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from samdeblur.models import AtomBatch, LocalAveragePool, MAPUnit, NAFNet, local_pooling, with_prior
from samdeblur.models.inference import tlc as tlc_module
from samdeblur.models.inference.tlc import local_mean


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _nafnet(width: int = 4) -> NAFNet:
    network = NAFNet(width, [1, 1], 1, [1, 1]).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("beta", "gamma")):  # zero in a new network, whose blocks then do nothing
                parameter.normal_()
    return network


class Attention(nn.Module):
    """Channel attention on a global mean, however that is taken."""

    def __init__(self, mean) -> None:
        super().__init__()
        self.mean = mean
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return x * self.conv(self.mean(x))


def _dense(x: torch.Tensor, kernel: tuple[int, int]) -> torch.Tensor:
    """The mean of the window of each pixel, one pixel at a time, in float64."""
    height, width = x.shape[-2:]
    rows, columns = min(kernel[0], height), min(kernel[1], width)
    means = torch.empty_like(x, dtype=torch.float64)
    for y in range(height):
        for z in range(width):
            top = min(max(y - (rows - 1) // 2, 0), height - rows)
            left = min(max(z - (columns - 1) // 2, 0), width - columns)
            means[..., y, z] = x[..., top : top + rows, left : left + columns].double().mean((-2, -1))
    return means


@pytest.mark.parametrize("size", [(9, 9), (7, 12), (13, 4), (1, 8)], ids=str)
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (4, 7), (5, 2), (8, 20), (20, 8), (9, 9)], ids=str)
def test_local_means_are_those_of_the_windows_moved_inside(size, kernel):
    x = torch.randn(2, 3, *size) * 10
    found = LocalAveragePool(kernel)(x)
    if kernel[0] >= size[0] and kernel[1] >= size[1]:
        assert torch.equal(found, F.adaptive_avg_pool2d(x, 1))
    assert torch.allclose(found.expand_as(x).double(), _dense(x, kernel), rtol=1e-6, atol=1e-6)
    assert torch.allclose(local_mean(x, kernel).double(), _dense(x, kernel), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_neither_the_layout_nor_what_is_done_at_a_time_matters(monkeypatch, chunk, memory_format):
    monkeypatch.setitem(tlc_module.CHUNKS, "cpu", chunk)
    x = torch.randn(2, 5, 8, 11).contiguous(memory_format=memory_format)
    found = local_mean(x, (3, 4))
    assert torch.allclose(found.double(), _dense(x, (3, 4)), rtol=1e-6, atol=1e-6)
    assert found.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_means_are_accumulated_wide_and_given_back_in_the_type_of_the_features(dtype):
    x = (torch.rand(1, 2, 40, 90) * 100).to(dtype)  # sums beyond the largest float16
    found = local_mean(x, (30, 30))
    assert found.dtype == dtype
    assert torch.equal(found, _dense(x, (30, 30)).to(dtype)) or dtype == torch.float64
    assert torch.allclose(found.double(), _dense(x, (30, 30)), rtol=torch.finfo(dtype).eps)


def test_local_means_can_be_trained_through():
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: local_mean(x, (2, 4)), x)


def test_windows_are_one_and_a_half_times_what_a_layer_saw_in_training():
    network = local_pooling(NAFNet(2, [1, 1, 1, 1], 1, [1, 1, 1, 1]), 256)
    kernels = [module.kernel for module in network.modules() if isinstance(module, LocalAveragePool)]
    sides = [384, 192, 96, 48, 24, 48, 96, 192, 384]
    assert kernels == [(side, side) for side in sides]
    assert not any(isinstance(module, nn.AdaptiveAvgPool2d) for module in network.modules())


def test_windows_of_odd_sizes_are_rounded_down():
    first, second = Attention(nn.AdaptiveAvgPool2d((1, 1))), Attention(nn.AdaptiveAvgPool2d(1))
    network = local_pooling(nn.Sequential(first, nn.Conv2d(3, 3, 3, stride=2), second), 33)
    assert network[0].mean.kernel == (49, 49)  # int(1.5 * 33)
    assert network[2].mean.kernel == (16 * 49 // 33, 16 * 49 // 33)


@pytest.mark.parametrize("size", [(32, 32), (20, 32), (48, 48)], ids=str)
def test_up_to_the_windows_nothing_changes_to_the_bit(size):
    network, image = _nafnet(), torch.rand(2, 3, *size)
    assert torch.equal(local_pooling(network, 32)(image), network(image))


@pytest.mark.parametrize("size", [(48, 49), (64, 40), (61, 107)], ids=str)
def test_a_larger_image_is_seen_through_windows(monkeypatch, size):
    """Against the network with means taken densely, pixel by pixel."""
    network, image = _nafnet().double(), torch.rand(1, 3, *size, dtype=torch.float64)
    converted = local_pooling(network, 32)
    found = converted(image)
    monkeypatch.setattr(tlc_module, "local_mean", _dense)
    assert torch.allclose(found, converted(image), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found, network(image), rtol=1e-6, atol=1e-6)


def test_far_from_each_other_pixels_no_longer_meet():
    network = _nafnet()
    image = torch.rand(1, 3, 32, 256)
    other = image.clone()
    other[..., 200:] = torch.rand(1, 3, 32, 56)
    assert not torch.allclose(network(image)[..., :64], network(other)[..., :64], atol=1e-4)
    local = local_pooling(network, 16)
    assert torch.equal(local(image)[..., :64], local(other)[..., :64])


def test_the_network_itself_is_untouched_and_the_copy_has_its_names_modes_and_weights():
    network = _nafnet().train()
    network.middle_blks.eval()
    before = copy.deepcopy(network.state_dict())
    image = torch.rand(1, 3, 64, 64)
    expected = network(image)
    state = torch.random.get_rng_state()
    converted = local_pooling(network, 16)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(network(image), expected)
    assert network.training
    assert converted.training
    assert converted.encoders.training
    assert not any(module.training for module in converted.middle_blks[0].children() if len(list(module.parameters())))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in converted.modules())
    assert list(converted.state_dict()) == list(before)
    with torch.no_grad():
        converted.intro.weight.zero_()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("prior", [None, MAPUnit()], ids=["none", "map"])
def test_a_deblurrer_is_converted_and_stays_one(prior):
    deblurrer = with_prior(_nafnet(), prior, "default").eval()
    image, atoms = torch.rand(1, 3, 32, 96), AtomBatch.background(1, 32, 96)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted = local_pooling(deblurrer, 32)
    assert type(converted) is type(deblurrer)
    assert torch.equal(converted(image[..., :32], AtomBatch.background(1, 32, 32)),
                       deblurrer(image[..., :32], AtomBatch.background(1, 32, 32)))  # fmt: skip
    assert not torch.allclose(converted(image, atoms), deblurrer(image, atoms))


FUNCTIONAL = {
    "mean of two sides": lambda x: x.mean((2, 3), keepdim=True),
    "negative sides": lambda x: torch.mean(x, [-1, -2], keepdim=True),
    "one side, then the other": lambda x: x.mean(3, keepdim=True).mean(2, keepdim=True),
    "a function": lambda x: F.adaptive_avg_pool2d(x, 1),
    "a function of a window": lambda x: F.avg_pool2d(x, x.shape[-2:]),
    "a sum": lambda x: x.sum((2, 3), keepdim=True) / x.shape[2] / x.shape[3],
}


@pytest.mark.parametrize("mean", FUNCTIONAL.values(), ids=FUNCTIONAL)
def test_means_in_the_code_of_a_network_are_named_and_left(mean):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), Attention(nn.AdaptiveAvgPool2d(1)), Attention(mean))
    with pytest.warns(UserWarning, match=r"whole image: 2 \(\w+ in Attention\); only modules") as caught:
        converted = local_pooling(network, 16)
    assert len(caught) == 1
    assert isinstance(converted[1].mean, LocalAveragePool)
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(converted[2](image), network[2](image))


def test_means_over_channels_or_one_side_are_none_of_ours():
    class Norm(nn.Module):
        def forward(self, x):
            return x - x.mean(1, keepdim=True) + x.mean(3, keepdim=True)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        local_pooling(nn.Sequential(nn.Conv2d(3, 3, 1), Norm(), nn.AdaptiveAvgPool2d(2)), 16)
        local_pooling(_nafnet(), 16)


def test_one_pool_in_several_places_is_one_window_where_it_can_be():
    pool = nn.AdaptiveAvgPool2d(1)
    same = local_pooling(nn.Sequential(nn.Conv2d(3, 3, 1), Attention(pool), Attention(pool)), 16)
    assert same[1].mean is same[2].mean
    assert same[1].mean.kernel == (24, 24)
    network = nn.Sequential(nn.Conv2d(3, 3, 1), Attention(pool), nn.AvgPool2d(2), Attention(pool))
    with pytest.warns(UserWarning, match=r"1\.mean \(a pool used at several sizes\)"):
        converted = local_pooling(network, 16)
    assert type(converted[1].mean) is nn.AdaptiveAvgPool2d


def test_a_pool_that_is_not_used_is_named():
    network = _nafnet()
    network.idle = nn.AdaptiveAvgPool2d(1)
    with pytest.warns(UserWarning, match=r"idle \(a pool the network did not use\)"):
        assert type(local_pooling(network, 16).idle) is nn.AdaptiveAvgPool2d


class Squeeze(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.linear = nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Linear(3, 3)

    def forward(self, x):
        return x * self.linear(self.pool(self.conv(x)).flatten(1))[..., None, None]


class Rank(nn.Module):
    """Looks the same with a map, and says something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return x * self.pool(self.conv(x)).flatten(1).softmax(1)[:, :1, None, None]


@pytest.mark.parametrize("network", [Squeeze(), Rank()], ids=lambda n: type(n).__name__)
def test_networks_that_need_one_number_per_channel_are_refused(network):
    with pytest.raises(ValueError, match=f"{type(network).__name__} cannot use a mean at every pixel"):
        local_pooling(network, 16)


def test_networks_with_several_outputs_are_converted():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention(nn.AdaptiveAvgPool2d(1))

        def forward(self, x):
            y = self.attention(x)
            return [y[..., ::2, ::2], {"full": y}]

    network, image = Two(), torch.rand(1, 3, 40, 40)
    converted = local_pooling(network, 16)
    assert not torch.allclose(converted(image)[1]["full"], network(image)[1]["full"])
    assert torch.equal(converted(image[..., :16, :16])[0], network(image[..., :16, :16])[0])


def test_small_features_keep_their_digits_beside_large_ones():
    x = torch.rand(1, 1, 300, 400) + 1
    x[..., :100, :100] *= 1e5
    assert torch.allclose(local_mean(x, (32, 32)).double(), local_mean(x.double(), (32, 32)), rtol=1e-7, atol=0)
    assert torch.allclose(
        local_mean(x, (32, 32))[..., 200:, 200:], local_mean(x[..., 160:, 160:], (32, 32))[..., 40:, 40:], rtol=2e-7
    )


def test_a_network_that_has_diverged_is_converted_like_any_other():
    network = _nafnet()
    with torch.no_grad():
        network.ending.bias.fill_(torch.nan)
    assert local_pooling(network, 16)(torch.rand(1, 3, 40, 40)).isnan().all()


def test_a_size_of_nothing_is_refused():
    with pytest.raises(ValueError, match="train_size must be at least 1, got 0"):
        local_pooling(_nafnet(), 0)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 31, 32, 40])
@pytest.mark.parametrize("dim", [-1, -2])
def test_sums_by_doubling_are_those_of_the_windows(size, dim):
    x = torch.randn(2, 3, 40, 41, dtype=torch.float64)
    expected = x.unfold(dim, size, 1).sum(-1)
    assert torch.allclose(tlc_module._sliding_sum_by_doubling(x, size, dim), expected, rtol=1e-13, atol=1e-13)


def test_a_gpu_that_must_be_repeatable_takes_no_running_sums():
    """torch refuses them there in floating point: cumsum_cuda_kernel has no deterministic implementation."""
    x = torch.randn(1, 4, 30, 44)
    torch.use_deterministic_algorithms(True)
    try:
        with pretended.cuda() as device:
            found = local_mean(x.to(pretended.CUDA), (9, 12)).cpu()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.Tensor.cumsum not in device.seen
    assert torch.allclose(found, local_mean(x, (9, 12)), rtol=1e-6, atol=1e-6)


def test_a_gpu_is_given_an_image_in_few_pieces(monkeypatch):
    """64 channels of 1280 x 720: at the size that suits a core it would be 64 pieces, with 15 operations each."""
    sums = []
    sliding = tlc_module._sliding_sum
    monkeypatch.setattr(tlc_module, "_sliding_sum", lambda x, *rest: sums.append(x.shape) or sliding(x, *rest))
    with pretended.cuda():
        local_mean(torch.zeros(1, 64, 720, 1280).to(pretended.CUDA), (384, 384))
    assert len(sums) == 2 * 4
