from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from samdeblur.models import NAFNet
from samdeblur.models.networks.nafnet import LayerNorm2d, NAFBlock, infer_config

SMALL = {"width": 4, "enc_blk_nums": [1, 2], "middle_blk_num": 1, "dec_blk_nums": [2, 1]}


def _public_block(c: int) -> dict[str, tuple[int, ...]]:
    return {
        **{"beta": (1, c, 1, 1), "gamma": (1, c, 1, 1)},
        **{f"norm{i}.{name}": (c,) for i in (1, 2) for name in ("weight", "bias")},
        **{"conv1.weight": (2 * c, c, 1, 1), "conv1.bias": (2 * c,)},
        **{"conv2.weight": (2 * c, 1, 3, 3), "conv2.bias": (2 * c,)},
        **{"sca.1.weight": (c, c, 1, 1), "sca.1.bias": (c,)},
        **{"conv3.weight": (c, c, 1, 1), "conv3.bias": (c,)},
        **{"conv4.weight": (2 * c, c, 1, 1), "conv4.bias": (2 * c,)},
        **{"conv5.weight": (c, c, 1, 1), "conv5.bias": (c,)},
    }


def _public_parameters(width: int, enc: list[int], middle: int, dec: list[int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the public checkpoints."""
    levels = len(enc)
    bottom = width * 2**levels
    names = {
        "intro.weight": (width, 3, 3, 3),
        "intro.bias": (width,),
        "ending.weight": (3, width, 3, 3),
        "ending.bias": (3,),
    }
    stacks = [(f"encoders.{level}", width * 2**level, enc[level]) for level in range(levels)]
    stacks += [(f"decoders.{level}", bottom // 2 ** (level + 1), dec[level]) for level in range(levels)]
    stacks += [("middle_blks", bottom, middle)]
    for prefix, c, count in stacks:
        names |= {f"{prefix}.{i}.{name}": shape for i in range(count) for name, shape in _public_block(c).items()}
    for level in range(levels):
        c, up = width * 2**level, bottom // 2**level
        names |= {f"downs.{level}.weight": (2 * c, c, 2, 2), f"downs.{level}.bias": (2 * c,)}
        names |= {f"ups.{level}.0.weight": (2 * up, up, 1, 1)}
    return names


def _randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.double().eval()


def _image(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "shape", [(32, [1, 1, 1, 28], 1, [1, 1, 1, 1]), (64, [1, 1, 1, 28], 1, [1] * 4), (4, [0, 2], 3, [1, 0])]
)
def test_names_and_shapes_are_those_of_the_public_checkpoints(shape):
    with torch.device("meta"):
        network = NAFNet(*shape)
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == _public_parameters(*shape)


def test_the_default_network_has_17_million_parameters():
    with torch.device("meta"):
        network = NAFNet()
    assert network.config == {
        "width": 32,
        "enc_blk_nums": [1, 1, 1, 28],
        "middle_blk_num": 1,
        "dec_blk_nums": [1, 1, 1, 1],
    }
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == 17.1


def _layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    mean = x.mean(1, keepdim=True)
    variance = ((x - mean) ** 2).mean(1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def _block(x: torch.Tensor, state: dict[str, torch.Tensor], prefix: str = "") -> torch.Tensor:
    """A block from its description: convolutions, gates that multiply halves, attention from the global mean."""

    def p(name):
        return state[f"{prefix}{name}.weight"], state[f"{prefix}{name}.bias"]

    def gated(y):
        half = y.shape[1] // 2
        return y[:, :half] * y[:, half:]

    y = F.conv2d(_layer_norm(x, *p("norm1")), *p("conv1"))
    y = gated(F.conv2d(y, *p("conv2"), padding=1, groups=y.shape[1]))
    y = y * F.conv2d(y.mean((2, 3), keepdim=True), *p("sca.1"))
    x = x + state[f"{prefix}beta"] * F.conv2d(y, *p("conv3"))
    y = F.conv2d(gated(F.conv2d(_layer_norm(x, *p("norm2")), *p("conv4"))), *p("conv5"))
    return x + state[f"{prefix}gamma"] * y


def _network(
    image: torch.Tensor, state: dict[str, torch.Tensor], enc: list[int], middle: int, dec: list[int]
) -> torch.Tensor:
    def blocks(x, prefix, count):
        for i in range(count):
            x = _block(x, state, f"{prefix}.{i}.")
        return x

    x, skips = F.conv2d(image, state["intro.weight"], state["intro.bias"], padding=1), []
    for level, count in enumerate(enc):
        x = blocks(x, f"encoders.{level}", count)
        skips.insert(0, x)
        x = F.conv2d(x, state[f"downs.{level}.weight"], state[f"downs.{level}.bias"], stride=2)
    x = blocks(x, "middle_blks", middle)
    for level, count in enumerate(dec):
        x = F.conv2d(x, state[f"ups.{level}.0.weight"])
        b, c, h, w = x.shape  # pixel shuffle
        x = x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)
        x = blocks(x + skips[level], f"decoders.{level}", count)
    return image + F.conv2d(x, state["ending.weight"], state["ending.bias"], padding=1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layer_norm_is_that_of_each_pixel_in_either_memory_format(layout):
    norm = LayerNorm2d(6)
    with torch.no_grad():
        norm.weight.uniform_(-1, 1)
        norm.bias.uniform_(-1, 1)
    x = (_image(2, 6, 7, 9).float() * 3 - 1).contiguous(memory_format=layout)
    expected = _layer_norm(x.double(), norm.weight.double(), norm.bias.double()).float()
    torch.testing.assert_close(norm(x), expected, rtol=1e-6, atol=1e-6)


def test_a_channels_last_network_stays_channels_last_and_computes_the_same():
    network, image = _randomised(NAFNet(**SMALL)), _image(2, 3, 12, 20)
    expected = network(image)
    found = network.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert found.is_contiguous(memory_format=torch.channels_last)
    inner = []
    network.middle_blks[0].norm2.register_forward_hook(lambda module, inputs, output: inner.extend([*inputs, output]))
    network(image.contiguous(memory_format=torch.channels_last))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in inner)


def test_a_block_computes_what_its_description_says():
    block, x = _randomised(NAFBlock(6)), _image(2, 6, 7, 9) * 3 - 1
    expected = _block(x, block.state_dict())
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(block.float()(x.float()), expected.float(), rtol=1e-5, atol=1e-6)


def test_the_network_computes_what_its_description_says():
    network, image = _randomised(NAFNet(**SMALL)), _image(2, 3, 12, 20)
    expected = _network(image, network.state_dict(), *list(SMALL.values())[1:])
    torch.testing.assert_close(network(image), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (17, 33), (40, 3), (5, 8)], ids=str)
def test_any_size_keeps_its_shape_and_is_padded_with_zeros_below_and_right(size):
    network, image = _randomised(NAFNet(**SMALL)), _image(2, 3, *size)
    height, width = size
    padded = torch.zeros(2, 3, -(-height // 4) * 4, -(-width // 4) * 4, dtype=torch.float64)
    padded[..., :height, :width] = image
    assert network(image).shape == image.shape
    torch.testing.assert_close(network(image), network(padded)[..., :height, :width], rtol=1e-12, atol=1e-12)


def test_new_blocks_change_nothing():
    block, x = NAFBlock(6), _image(1, 6, 5, 5).float()
    assert torch.equal(block(x), x)
    assert not block.beta.any()
    assert not block.gamma.any()
    network = NAFNet(**SMALL)
    assert all(not p.any() for name, p in network.named_parameters() if name.endswith(("beta", "gamma")))


@pytest.mark.parametrize(
    "arguments",
    [
        (4, [1], 1, [1]),
        (8, [1, 1, 1, 2], 1, [1, 1, 1, 1]),
        (2, [0, 3], 0, [2, 0]),
        (3, [1, 12], 11, [1, 1]),
        (5, [], 2, []),
    ],
    ids=str,
)
def test_arguments_are_read_off_the_weights(arguments):
    network = NAFNet(*arguments)
    found = infer_config(network.state_dict())
    assert found == dict(zip(SMALL, arguments, strict=True)) == network.config
    NAFNet(**found).load_state_dict(network.state_dict())


def test_weights_of_another_network_have_no_arguments():
    with pytest.raises(KeyError, match=r"intro\.weight"):
        infer_config({"conv.weight": torch.zeros(1)})


def test_levels_of_encoder_and_decoder_must_match():
    with pytest.raises(ValueError, match="encoder has 2 levels, decoder 1"):
        NAFNet(4, [1, 1], 1, [1])
