"""The released semantics against dense transcriptions of its description: float masks, loops over masks and images."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from places import DATA
from torch.nn import functional as F

from samdeblur.models import (
    AtomBatch,
    CATPrior,
    MAPUnit,
    NAFNet,
    ReleasedMAPUnit,
    describe_checkpoint,
    load_network,
    prior_for,
    with_prior,
)
from samdeblur.models.checkpoints.loading import encode_network
from samdeblur.models.priors.dropout import random_words
from samdeblur.models.priors.methods import build_prior
from samdeblur.models.priors.released import REGIONS, drop_regions, pool_regions
from samdeblur.storage import AtomMap

EXACT = {"rtol": 1e-11, "atol": 1e-12}


def _grey(masks: np.ndarray) -> np.ndarray:
    """(M, H, W) bool -> (H, W) uint8: mask k adds its code wherever it is; the sum is clipped to a byte."""
    total = np.zeros(masks.shape[1:])
    for k, mask in enumerate(masks):
        total += mask * (2 * (k + 1) if k < 127 else 2 * (255 - k) - 1)
    return np.clip(total, 0, 255).astype(np.uint8)


def _padded(plane: torch.Tensor, multiple: int) -> torch.Tensor:
    """(C, H, W) with zeros below and to the right, both sides a multiple."""
    c, h, w = plane.shape
    full = plane.new_zeros(c, h + -h % multiple, w + -w % multiple)
    full[:, :h, :w] = plane
    return full


def _pool(encoding: torch.Tensor, grey: np.ndarray, dropped: tuple[int, ...] = ()) -> torch.Tensor:
    """(S, H', W') and the grey image of the part that is no padding -> pooled, (S, H', W')."""
    masks = []
    for value in np.unique(grey):
        mask = torch.zeros(encoding.shape[1:], dtype=encoding.dtype)
        mask[: grey.shape[0], : grey.shape[1]] = torch.from_numpy(grey == value).to(encoding.dtype) / 255
        masks.append(mask * 0 if int(value) in dropped else mask)
    remaining = 1 - sum(masks)
    pooled = torch.zeros_like(encoding)
    for mask in [*masks, remaining]:
        for channel in range(len(encoding)):
            mean = (encoding[channel] * mask).sum() / (mask.sum() + 1e-8)
            pooled[channel] = pooled[channel] + mean * mask
    return pooled


def _features(image: torch.Tensor, grey: np.ndarray, unit: ReleasedMAPUnit, dropped: tuple[int, ...] = ()):
    """The released MAP of one image (3, H, W): padded, encoded, pooled."""
    wide, narrow = unit.pre_seg, unit.pre_seg_in
    encoding = F.conv2d(_padded(image, unit.multiple)[None], wide.weight, wide.bias, padding=1)
    return _pool(F.conv2d(encoding, narrow.weight, narrow.bias)[0], grey, dropped)


def _stacks(random_masks, seed: int, height: int, width: int) -> list[np.ndarray]:
    """Masks of five images: none; a few, one of them empty and one twice; everything covered; past 127; past 254."""
    rng = np.random.default_rng(seed)
    few = random_masks(rng, 6, height, width)
    few[2], few[4] = False, few[1]
    covered = random_masks(rng, 9, height, width)
    covered[3] = True
    return [
        np.zeros((0, height, width), bool),
        few,
        covered,
        random_masks(rng, 140, height, width) & (rng.random((140, 1, 1)) < 0.2),
        random_masks(rng, 300, height, width) & (rng.random((300, height, width)) < 0.02),
    ]


def _case(random_masks, size: tuple[int, int], multiple: int, dropout: float = 0.0):
    """Images, masks as dense stacks and as atoms, and a unit, all in float64."""
    torch.manual_seed(size[0] * 100 + size[1])
    stacks = _stacks(random_masks, sum(size), *size)
    batch = AtomBatch.collate([AtomMap.from_masks(masks, size) for masks in stacks])
    unit = ReleasedMAPUnit(3, dropout, multiple).double()
    return torch.rand(len(stacks), 3, *size, dtype=torch.float64), stacks, batch, unit


SIZES = pytest.mark.parametrize(
    ("size", "multiple"),
    [((16, 32), 16), ((17, 31), 16), ((5, 3), 4), ((1, 1), 16), ((20, 18), 4), ((9, 24), 1), ((13, 16), 8)],
    ids=str,
)


@SIZES
def test_it_is_the_dense_transcription(random_masks, size, multiple):
    image, stacks, batch, unit = _case(random_masks, size, multiple)
    found = unit.eval()(image, batch)
    expected = torch.stack([_features(x, _grey(m), unit) for x, m in zip(image, stacks, strict=True)])
    assert found.shape[-2:] == tuple(side + -side % multiple for side in size)
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(unit.float()(image.float(), batch), expected.float(), rtol=1e-4, atol=1e-5)


@SIZES
def test_gradients_are_those_of_the_dense_transcription(random_masks, size, multiple):
    image, stacks, batch, unit = _case(random_masks, size, multiple)
    image.requires_grad_()
    inputs = [image, *unit.parameters()]
    found = unit(image, batch)
    expected = torch.stack([_features(x, _grey(m), unit) for x, m in zip(image, stacks, strict=True)])
    weights = torch.rand_like(found)
    ours = torch.autograd.grad((found.square() * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected.square() * weights).sum(), inputs)
    for mine, dense in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, dense, rtol=1e-9, atol=1e-10)


def test_gradients_hold_by_finite_differences_twice():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 2, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    regions = torch.randint(0, 5, (2, 3, 4), generator=generator)
    kept = torch.rand(2, REGIONS, generator=generator) < 0.6
    assert torch.autograd.gradcheck(lambda x: pool_regions(x, regions, kept), features)
    assert torch.autograd.gradgradcheck(lambda x: pool_regions(x, regions, kept), features)


@pytest.mark.parametrize("rate", [0.0, 0.29, 0.5, 0.99, 1.0])
@pytest.mark.parametrize(("size", "multiple"), [((17, 31), 16), ((5, 3), 4)], ids=str)
def test_dropped_regions_are_those_of_the_same_permutation(random_masks, rate, size, multiple):
    image, stacks, batch, unit = _case(random_masks, size, multiple, rate)
    seeds = torch.arange(len(image)) * 7 - 3
    found = unit.train()(image, batch._replace(seeds=seeds))
    draws = random_words(seeds[:, None], torch.arange(REGIONS)).numpy()
    expected, counts = [], []
    for x, masks, row in zip(image, stacks, draws, strict=True):
        grey = _grey(masks)
        present = np.unique(grey)
        order = present[np.argsort(row[1 + present.astype(int)])]  # the values in a random order
        dropped = tuple(order[: int(rate * len(present))].tolist())
        counts.append(len(dropped))
        expected.append(_features(x, grey, unit, dropped))
    torch.testing.assert_close(found, torch.stack(expected), **EXACT)
    assert rate == 0 or len(set(counts)) > 1  # and images drop as many as they have
    unit.eval()
    whole = torch.stack([_features(x, _grey(m), unit) for x, m in zip(image, stacks, strict=True)])
    torch.testing.assert_close(unit(image, batch), whole, **EXACT)


def test_every_choice_of_regions_is_dropped_and_the_background_too():
    regions = torch.tensor([[[1, 3, 9], [20, 57, 0]]])
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(300):
        kept = drop_regions(regions, 0.5, torch.rand(1, REGIONS, generator=generator))
        assert not kept[0, 0]
        seen.add(tuple(kept[0].nonzero().flatten().tolist()))
    assert seen == set(combinations((1, 3, 9, 20, 57), 3))  # int(0.5 * 5) of five leave; 1 is the background


@pytest.mark.parametrize("window", [(0, 0, 16, 16), (20, 3, 9, 12), (31, 28, 9, 12)], ids=str)
def test_a_crop_takes_its_regions_from_the_grey_image_of_the_whole(random_masks, window):
    masks = random_masks(np.random.default_rng(5), 260, 40, 40) & (np.random.default_rng(6).random((260, 1, 1)) < 0.2)
    top, left, height, width = window
    torch.manual_seed(0)
    image, unit = torch.rand(1, 3, height, width, dtype=torch.float64), ReleasedMAPUnit().double()
    found = unit(image, AtomBatch.collate([AtomMap.from_masks(masks).crop(*window)]))
    expected = _features(image[0], _grey(masks)[top : top + height, left : left + width], unit)
    torch.testing.assert_close(found[0], expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_grey_value_is_a_region_of_its_own_in_every_precision(dtype):
    masks = np.zeros((255, 2, 256), bool)
    masks[range(255), :, range(255)] = True
    assert len(np.unique(_grey(masks))) == 256
    torch.manual_seed(0)
    unit = ReleasedMAPUnit(2, multiple=2).double()
    with torch.no_grad():
        image = torch.rand(1, 3, 2, 256, dtype=torch.float64)
        expected = _features(image[0], _grey(masks), unit)
        found = unit.to(dtype)(image.to(dtype), AtomBatch.collate([AtomMap.from_masks(masks)]))[0]
    assert found.dtype == dtype
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_images_of_a_batch_do_not_meet(random_masks):
    image, stacks, batch, unit = _case(random_masks, (17, 31), 16)
    together = unit(image, batch)
    for i, masks in enumerate(stacks):
        alone = unit(image[i : i + 1], AtomBatch.collate([AtomMap.from_masks(masks, (17, 31))]))
        torch.testing.assert_close(together[i : i + 1], alone, **EXACT)


def test_an_image_and_masks_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\) does not fit atoms \(1, 8, 9\)"):
        ReleasedMAPUnit()(torch.rand(1, 3, 8, 8), AtomBatch.background(1, 8, 9))


@pytest.mark.parametrize("arguments", [{"channels": 0}, {"dropout": -0.1}, {"dropout": 1.5}, {"multiple": 0}])
def test_settings_without_a_meaning_are_refused(arguments):
    with pytest.raises(ValueError, match=str(*arguments.values())):
        ReleasedMAPUnit(**arguments)


# The priors by name


@pytest.mark.parametrize(("method", "dropout"), [("map", 0.0), ("map-dropout", 0.25)])
def test_released_priors_by_name(method, dropout):
    prior = prior_for(method, 3, 0.25, "released", 8)
    assert isinstance(prior, ReleasedMAPUnit)
    assert prior.config == {"name": "released-map", "channels": 3, "dropout": dropout, "multiple": 8}
    again = build_prior(prior.config)
    assert isinstance(again, ReleasedMAPUnit)
    assert (again.channels, again.dropout, again.multiple) == (3, dropout, 8)
    assert type(prior_for(method, 3, 0.25)) is MAPUnit  # the paper's, unless asked
    assert type(prior_for(method, 3, 0.25, "paper", 8)) is MAPUnit


def test_cat_and_none_are_the_same_in_both_semantics():
    assert prior_for("none", semantics="released") is None
    assert prior_for("cat", semantics="released").config == CATPrior().config == {"name": "cat"}
    with pytest.raises(ValueError, match="unknown semantics 'old', choose from paper, released"):
        prior_for("map", semantics="old")


# Whole networks from files of the published names and shapes

LISTS = DATA / "networks"


def _published(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a list; {0..3} in a name stands for each of the numbers."""
    shapes = {}
    for line in (LISTS / f"{name}.txt").read_text().splitlines():
        key, *shape = line.split()
        before, _, rest = key.partition("{")
        numbers, _, after = rest.partition("}")
        low, _, high = numbers.partition("..")
        for key in [f"{before}{i}{after}" for i in range(int(low), int(high) + 1)] if rest else [before]:
            shapes[key] = tuple(map(int, shape))
    return shapes


def _state(name: str, scale: float = 0.3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values in the shapes of a list."""
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) * scale for key, shape in _published(name).items()}


def _deblur(state: dict[str, torch.Tensor], image: torch.Tensor, masks: np.ndarray) -> torch.Tensor:
    """A released network, whichever its first convolution says it is, on an image (3, H, W); from the description."""

    def conv(name, x, **settings):
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **settings)

    def norm(name, x):
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
        return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def gate(x):
        return x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :]

    def blocks(name, x):
        i = 0
        while f"{name}.{i}.beta" in state:
            at = f"{name}.{i}"
            y = conv(f"{at}.conv1", norm(f"{at}.norm1", x))
            y = gate(conv(f"{at}.conv2", y, padding=1, groups=y.shape[1]))
            y = conv(f"{at}.conv3", y * conv(f"{at}.sca.1", y.mean((2, 3), keepdim=True)))
            x = x + y * state[f"{at}.beta"]
            y = conv(f"{at}.conv5", gate(conv(f"{at}.conv4", norm(f"{at}.norm2", x))))
            x = x + y * state[f"{at}.gamma"]
            i += 1
        return x

    levels = sum(name.startswith("downs.") and name.endswith(".weight") for name in state)
    grey = _grey(masks)
    if "pre_seg.weight" in state:
        rgb = _padded(image, 2**levels)
        prior = _pool(conv("pre_seg_in", conv("pre_seg", rgb[None], padding=1))[0], grey)
        widened = torch.cat([rgb, prior])
    elif state["intro.weight"].shape[1] == 4:
        widened = _padded(torch.cat([image, torch.from_numpy(grey / 255)[None]]), 2**levels)
    else:
        widened = _padded(image, 2**levels)
    x, skips = conv("intro", widened[None], padding=1), []
    for level in range(levels):
        x = blocks(f"encoders.{level}", x)
        skips.append(x)
        x = conv(f"downs.{level}", x, stride=2)
    x = blocks("middle_blks", x)
    for level in range(levels):
        x = blocks(f"decoders.{level}", F.pixel_shuffle(conv(f"ups.{level}.0", x), 2) + skips.pop())
    height, width = image.shape[1:]
    return image + conv("ending", x, padding=1)[0, :, :height, :width]


KINDS = pytest.mark.parametrize("kind", ["nafnet", "cat", "map"])


@KINDS
@pytest.mark.parametrize("size", [(16, 8), (13, 18)], ids=str)
def test_a_released_network_from_a_file_computes_what_its_description_says(tmp_path, random_masks, kind, size):
    state = _state(f"{kind}-small")
    torch.save({"params": state}, tmp_path / "released.pth")
    network = load_network(tmp_path / "released.pth").double()
    rng, image = np.random.default_rng(1), torch.rand(2, 3, *size, dtype=torch.float64)
    stacks = [random_masks(rng, n, *size) for n in (5, 150)]
    with torch.no_grad():
        found = network(image, AtomBatch.collate([AtomMap.from_masks(masks) for masks in stacks]))
        wide = {name: tensor.double() for name, tensor in state.items()}
        expected = torch.stack([_deblur(wide, x, masks) for x, masks in zip(image, stacks, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert (found - image).abs().max() > 1e-3


FULL = {"width": 32, "enc_blk_nums": [1, 1, 1, 28], "middle_blk_num": 1, "dec_blk_nums": [1, 1, 1, 1]}


@pytest.mark.parametrize(("name", "width"), [("nafnet-width32", 32), ("nafnet-width64", 64), ("nafnet-small", 4)])
def test_our_nafnet_has_the_published_names_and_shapes(name, width):
    counts = ([1, 3], 1, [2, 1]) if name.endswith("small") else ([1, 1, 1, 28], 1, [1, 1, 1, 1])
    with torch.device("meta"):
        network = NAFNet(width, *counts)
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == _published(name)


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("nafnet-width32", 664, 17_111_907),
        ("nafnet-width64", 664, 67_888_835),
        ("cat-width32", 664, 17_111_907 + 32 * 9),
        ("map-width32", 668, 17_111_907 + 2 * 32 * 9 + (2 * 3 * 9 + 2) + (2 * 2 + 2)),
    ],
)
def test_the_published_lists_are_of_the_published_size(name, tensors, parameters):
    shapes = _published(name)
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (tensors, parameters)


@pytest.mark.parametrize(
    ("kind", "prior", "words"),
    [
        ("nafnet", None, "a public NAFNet, or the released SAM-Deblur network without masks"),
        ("cat", {"name": "cat"}, "the released SAM-Deblur network with CAT"),
        (
            "map",
            {"name": "released-map", "channels": 2, "dropout": 0.5, "multiple": 16},
            "the released SAM-Deblur network with MAP, trained with or without mask dropout",
        ),
    ],
)
def test_a_full_network_is_recognised_split_and_runs(tmp_path, random_masks, kind, prior, words):
    state, path = _state(f"{kind}-width32", 0.02), tmp_path / "released.pth"
    torch.save({"params": state}, path)
    network = load_network(path)
    assert network.network.config == FULL
    assert (network.prior and network.prior.config) == prior
    assert not network.training
    assert network.recognised == describe_checkpoint(path)
    assert words in network.recognised
    assert "width 32" in network.recognised
    assert torch.equal(network.network.intro.weight, state["intro.weight"][:, :3])
    if prior is not None:
        assert torch.equal(network.prior_conv.weight, state["intro.weight"][:, 3:])
    image = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    masks = random_masks(np.random.default_rng(0), 7, 24, 40)
    with torch.no_grad():
        found = network(image, AtomBatch.collate([AtomMap.from_masks(masks)]))
        expected = _deblur({name: tensor.double() for name, tensor in state.items()}, image[0].double(), masks)
    assert found.shape == image.shape
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-3, atol=1e-4)


@KINDS
def test_a_released_network_saved_again_is_one_of_ours_and_computes_the_same(tmp_path, random_masks, kind):
    torch.save({"params": _state(f"{kind}-small")}, tmp_path / "released.pth")
    released = load_network(tmp_path / "released.pth")
    (tmp_path / "best.safetensors").write_bytes(encode_network(released))
    again = load_network(tmp_path)
    image, masks = torch.rand(1, 3, 13, 18), random_masks(np.random.default_rng(0), 7, 13, 18)
    atoms = AtomBatch.collate([AtomMap.from_masks(masks)])
    with torch.no_grad():
        assert torch.equal(again(image, atoms), released(image, atoms))
    assert "a network of samdeblur" in again.recognised
    assert released.prior is None or again.prior.config == released.prior.config


def test_a_released_network_sees_the_masks_and_its_padding(tmp_path, random_masks):
    """What sets it apart from the paper's MAP with the same weights."""
    state = _state("map-small")
    torch.save({"params": state}, tmp_path / "released.pth")
    released = load_network(tmp_path / "released.pth")
    backbone = NAFNet(**released.network.config)
    backbone.load_state_dict(released.network.state_dict())
    paper = with_prior(backbone, MAPUnit(2)).eval()
    weights = [state[f"{name}.{part}"] for name in ("pre_seg", "pre_seg_in") for part in ("weight", "bias")]
    with torch.no_grad():
        for parameter, value in zip(paper.prior.parameters(), weights, strict=True):
            parameter.copy_(value)
        paper.prior_conv.weight.copy_(released.prior_conv.weight)
        image, masks = torch.rand(1, 3, 13, 18), random_masks(np.random.default_rng(0), 7, 13, 18)
        atoms = AtomBatch.collate([AtomMap.from_masks(masks)])
        assert (released(image, atoms) - released(image, AtomBatch.background(1, 13, 18))).abs().max() > 1e-5
        assert (released(image, atoms) - paper(image, atoms)).abs().max() > 1e-2
