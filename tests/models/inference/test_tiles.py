from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from samdeblur.models import (
    AtomBatch,
    CATPrior,
    MAPUnit,
    NAFNet,
    NotFinite,
    OutOfMemory,
    ReleasedMAPUnit,
    TileError,
    check_tiles,
    deblur,
    forward_in_tiles,
    local_pooling,
    with_prior,
)
from samdeblur.models.inference.tiles import _spans
from samdeblur.storage import AtomMap


class Plain(nn.Module):
    """Convolutions with a radius of two pixels, adds its input; notes the sizes it is called with."""

    multiple = 1

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, image):
        self.sizes.append(tuple(image.shape[-2:]))
        return image + self.second(torch.relu(self.first(image)))


class Strided(nn.Module):
    """Pads to multiples of four at the bottom and right, works at a quarter of the size: a radius of seven pixels."""

    multiple = 4

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 4, stride=4), nn.ConvTranspose2d(8, 3, 4, stride=4)
        self.mix = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, image):
        height, width = image.shape[-2:]
        x = nn.functional.pad(image, (0, -width % 4, 0, -height % 4))
        return image + self.up(torch.relu(self.mix(self.down(x))))[..., :height, :width]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def make_atoms(random_masks):
    def make(height, width, images=1):
        rng = np.random.default_rng(3)
        return AtomBatch.collate([AtomMap.from_masks(random_masks(rng, 7, height, width)) for _ in range(images)])

    return make


def _nafnet() -> NAFNet:
    network = NAFNet(4, [1, 1], 1, [1, 1]).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("beta", "gamma")):  # zero in a new network, whose blocks then do nothing
                parameter.normal_()
    return network


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 40, 64, 90, 100])
@pytest.mark.parametrize(("tile", "overlap", "multiple"), [(16, 0, 4), (16, 4, 4), (16, 12, 4), (24, 8, 8), (9, 2, 1)])
def test_tiles_cover_a_side_begin_on_multiples_and_share_the_overlap(length, tile, overlap, multiple):
    spans = list(_spans(length, tile, overlap, multiple))
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(start % multiple == 0 and 0 < end - start <= tile for start, end in spans)
    assert all(end - start == tile for start, end in spans[:-1])
    assert all(start < later and end - later >= overlap for (start, end), (later, _) in pairwise(spans))
    if length > tile:
        assert spans[-1][1] - spans[-1][0] > tile - multiple  # the last is no sliver


@pytest.mark.parametrize("size", [(40, 64), (41, 67), (16, 90), (90, 11), (33, 32)], ids=str)
@pytest.mark.parametrize("overlap", [8, 12])
def test_where_pixels_reach_less_than_a_quarter_of_the_overlap_tiles_change_nothing(size, overlap):
    network, image = Plain(), torch.rand(2, 3, *size)
    found = forward_in_tiles(network, image, tile=32, overlap=overlap)
    assert max(max(size) for size in network.sizes) == 32
    torch.testing.assert_close(found, network(image), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 96), (61, 99), (97, 30), (66, 65)], ids=str)
def test_tiles_keep_the_grid_of_a_network_that_works_at_a_quarter_of_the_size(size):
    network, image = Strided(), torch.rand(1, 3, *size)
    found = forward_in_tiles(network, image, tile=48, overlap=28)
    torch.testing.assert_close(found, network(image), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("overlap", [0, 4])
def test_with_less_overlap_the_borders_show_and_nothing_is_left_out(overlap):
    network, image = Plain(), torch.rand(1, 3, 50, 70)
    found = forward_in_tiles(network, image, tile=20, overlap=overlap)
    assert found.isfinite().all()
    assert not torch.allclose(found, network(image), atol=1e-4)
    assert (found - network(image)).abs().max() < 0.5


def test_tiles_fade_into_each_other():
    class Count(nn.Module):
        multiple = 1

        def forward(self, image):
            self.calls = getattr(self, "calls", -1) + 1
            return torch.full_like(image, self.calls)

    found = forward_in_tiles(Count(), torch.zeros(1, 3, 16, 28), tile=16, overlap=4)
    assert found[0, 0, 3].tolist() == [0] * 13 + [0.25, 0.75] + [1] * 13
    found = forward_in_tiles(Count(), torch.zeros(1, 3, 28, 16), tile=16, overlap=4)
    assert found[0, 0, :, 3].tolist() == [0] * 13 + [0.25, 0.75] + [1] * 13


@pytest.mark.parametrize("prior", [CATPrior(), MAPUnit(), MAPUnit(5)], ids=["cat", "map", "map 5"])
@pytest.mark.parametrize("make_network", [Plain, Strided])
@pytest.mark.parametrize("size", [(64, 96), (61, 75)], ids=str)
def test_the_prior_sees_the_masks_of_the_whole_image(make_network, prior, size, make_atoms):
    deblurrer = with_prior(make_network(), prior, "default").eval()
    image, atoms = torch.rand(2, 3, *size), make_atoms(*size, images=2)
    expected = deblurrer(image, atoms)
    found = forward_in_tiles(deblurrer, image, atoms, tile=48, overlap=28)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert deblurrer.prior is prior
    assert torch.equal(deblurrer(image, atoms), expected)
    apart = deblurrer(image, atoms._replace(atoms=atoms.atoms.flip(-1)))
    assert not torch.allclose(apart, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (61, 75), (97, 30)], ids=str)
def test_features_that_are_not_zero_in_the_padding_are_cut_with_it(size, make_atoms):
    deblurrer = with_prior(Strided(), ReleasedMAPUnit(multiple=4), "default").eval()
    image, atoms = torch.rand(1, 3, *size), make_atoms(*size)
    assert deblurrer.prior(image, atoms).shape[-2:] != size or size == (64, 96)
    found = forward_in_tiles(deblurrer, image, atoms, tile=48, overlap=28)
    torch.testing.assert_close(found, deblurrer(image, atoms), rtol=1e-6, atol=1e-6)


def test_the_prior_is_asked_once(make_atoms):
    deblurrer = with_prior(Plain(), MAPUnit(), "default")
    seen = []
    deblurrer.prior.register_forward_hook(lambda prior, inputs, output: seen.append(inputs[0].shape))
    image = torch.rand(1, 3, 40, 70)
    forward_in_tiles(deblurrer, image, make_atoms(40, 70), tile=32, overlap=8)
    assert seen == [image.shape]


def test_without_atoms_there_is_one_region_and_one_warning():
    deblurrer = with_prior(Plain(), MAPUnit(), "default")
    image = torch.rand(1, 3, 40, 70)
    with pytest.warns(UserWarning, match="no atoms given") as caught:
        found = forward_in_tiles(deblurrer, image, tile=32, overlap=8)
    assert len(caught) == 1
    torch.testing.assert_close(found, deblurrer(image, AtomBatch.background(1, 40, 70)), rtol=1e-6, atol=1e-6)


def test_the_prior_is_back_also_after_an_error(make_atoms):
    deblurrer = with_prior(Plain(), MAPUnit(), "default")
    prior = deblurrer.prior
    deblurrer.network.second.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forward_in_tiles(deblurrer, torch.rand(1, 3, 40, 70), make_atoms(40, 70), tile=32, overlap=8)
    assert deblurrer.prior is prior


def test_an_image_no_larger_than_a_tile_is_one_ordinary_call(make_atoms):
    deblurrer = with_prior(_nafnet(), MAPUnit(), "default")
    for size in ((32, 32), (9, 30)):
        image, atoms = torch.rand(1, 3, *size), make_atoms(*size)
        assert torch.equal(forward_in_tiles(deblurrer, image, atoms, tile=32, overlap=0), deblurrer(image, atoms))


def test_local_means_bring_tiles_closer_to_the_whole_image():
    network, image = _nafnet(), torch.rand(1, 3, 96, 160)
    image[..., 80:] *= 0.2  # a mean over everything is that of neither half
    local = local_pooling(network, 16)
    with_means = (forward_in_tiles(network, image, tile=64, overlap=32) - network(image)).square().mean()
    with_local = (forward_in_tiles(local, image, tile=64, overlap=32) - local(image)).square().mean()
    assert with_local < with_means / 4


@pytest.mark.parametrize(
    ("tile", "overlap", "words"),
    [
        (30, 4, r"tile 30: NAFNet needs multiples of 4, for instance 32"),
        (1, 0, r"tile 1: NAFNet needs multiples of 4, for instance 4"),
        (32, 5, r"overlap 5: NAFNet needs multiples of 4, for instance 4"),
        (32, 32, r"overlap 32: must be less than the tile, 32"),
        (32, -4, "overlap -4"),
        (0, 0, "tile"),
        (-4, 0, "tile -4"),
    ],
)
def test_tiles_that_do_not_suit_a_network_are_refused(tile, overlap, words):
    for network in (_nafnet(), with_prior(_nafnet(), CATPrior())):
        with pytest.raises(TileError, match=words):
            forward_in_tiles(network, torch.rand(1, 3, 8, 8), tile=tile, overlap=overlap)


def test_a_network_that_does_not_say_what_it_pads_to_gets_multiples_of_64():
    assert check_tiles(nn.Conv2d(3, 3, 1), 128, 64) == 64
    with pytest.raises(TileError, match="tile 100: Conv2d needs multiples of 64, for instance 128"):
        check_tiles(nn.Conv2d(3, 3, 1), 100, 0)


def test_a_network_that_changes_the_size_is_refused():
    with pytest.raises(TileError, match="gives images of another size than its input"):
        forward_in_tiles(nn.Conv2d(3, 3, 3), torch.rand(1, 3, 80, 64), tile=64, overlap=0)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)


def test_deblurring_in_tiles_is_the_same_to_a_level_of_8_bits(image, random_masks):
    deblurrer = with_prior(Plain(), MAPUnit(), "default").eval()
    atoms = AtomMap.from_masks(random_masks(np.random.default_rng(3), 7, 40, 70))
    deblurrer.network.sizes.clear()
    whole, tiles = deblur(deblurrer, image, atoms), deblur(deblurrer, image, atoms, tile=32, overlap=8)
    assert deblurrer.network.sizes == [(40, 70)] + [(32, 32)] * 6
    assert np.abs(whole.astype(int) - tiles).max() <= 1


@pytest.mark.parametrize(
    ("tile", "words"),
    [(None, "at once: give a tile size, as in --tile 512"), (32, "in tiles of 32: give smaller ones")],
)
def test_out_of_gpu_memory_says_what_to_do(image, monkeypatch, tile, words):
    network = with_prior(Plain(), None)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(Plain, "forward", full)
    with pytest.raises(OutOfMemory, match=f"not enough memory for an image of 70x40 {words}") as caught:
        deblur(network, image, tile=tile, overlap=0)
    assert isinstance(caught.value, torch.OutOfMemoryError)


def test_what_is_not_finite_in_one_tile_is_refused(image):
    network = with_prior(Plain(), None)
    outputs = iter([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    network.network.second.register_forward_hook(lambda _, inputs, output: output / next(outputs))
    with pytest.raises(NotFinite):
        deblur(network, image, tile=32, overlap=8)
