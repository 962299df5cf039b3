from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samdeblur.models import METHODS, AtomBatch, CATPrior, MAPUnit, drop_masks, mask_average_pool, prior_for
from samdeblur.models.priors.methods import build_prior
from samdeblur.storage import AtomMap


def _image(batch: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand((batch, 3, height, width), dtype=dtype, generator=torch.Generator().manual_seed(3))


def _grey(masks: np.ndarray) -> np.ndarray:
    """The released grey image: codes of the masks in their order, added, clipped to a byte."""
    total = np.zeros(masks.shape[1:], int)
    for k, mask in enumerate(masks):
        total[mask] += 2 * (k + 1) if k < 127 else 2 * (255 - k) - 1
    return np.clip(total, 0, 255).astype(np.uint8) / 255


@pytest.mark.parametrize("n_masks", [0, 1, 20, 128, 300])
def test_cat_is_the_grey_image_of_the_released_code(random_masks, n_masks):
    masks = random_masks(np.random.default_rng(n_masks), n_masks, 20, 30)
    atoms = AtomMap.from_masks(masks)
    found = CATPrior()(_image(2, 20, 30), AtomBatch.collate([atoms, AtomMap.empty((20, 30))]))
    assert found.shape == (2, 1, 20, 30)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found[0, 0].numpy(), _grey(masks).astype(np.float32))
    assert not found[1].any()


@pytest.mark.parametrize(
    ("k", "grey"),
    [(0, 2), (1, 4), (126, 254), (127, 255), (128, 253), (253, 3), (254, 1), (255, 0), (256, 0), (299, 0)],
)
def test_cat_codes_of_single_masks(k, grey):
    masks = np.zeros((300, 1, 2), bool)
    masks[k, 0, 0] = True
    found = CATPrior()(_image(1, 1, 2), AtomBatch.collate([AtomMap.from_masks(masks)]))
    assert found.flatten().mul(255).round().tolist() == [grey, 0]


def test_cat_clips_the_sum_and_not_the_parts():
    masks = np.zeros((300, 1, 4), bool)
    masks[[120, 126], 0, 0] = True  # 242 + 254: past a byte
    masks[[1, 257], 0, 1] = True  # 4 - 5: below zero
    masks[[10, 257], 0, 2] = True  # 22 - 5
    masks[[127, 257], 0, 3] = True  # 255 - 5
    found = CATPrior()(_image(1, 1, 4), AtomBatch.collate([AtomMap.from_masks(masks)]))
    assert found.flatten().mul(255).round().tolist() == [255, 0, 17, 250]


def test_cat_of_a_crop_is_the_crop_of_the_whole_image(random_masks):
    masks = random_masks(np.random.default_rng(5), 160, 40, 40)
    windows = [(0, 0, 9, 12), (20, 3, 9, 12), (31, 28, 9, 12)]
    batch = AtomBatch.collate([AtomMap.from_masks(masks).crop(*window) for window in windows])
    found = CATPrior()(_image(3, 9, 12, torch.float64), batch)
    for crop, (top, left, height, width) in zip(found, windows, strict=True):
        np.testing.assert_array_equal(crop[0].numpy(), _grey(masks)[top : top + height, left : left + width])


def test_the_map_unit_pools_the_encoded_image(random_masks, algorithm_1):
    masks, image = random_masks(np.random.default_rng(1), 9, 12, 14), _image(1, 12, 14, torch.float64)
    unit = MAPUnit(channels=4).double()
    wide, narrow = unit.encoder
    encoded = F.conv2d(F.conv2d(image, wide.weight, wide.bias, padding=1), narrow.weight, narrow.bias)
    assert (wide.kernel_size, narrow.kernel_size) == ((3, 3), (1, 1))
    expected = algorithm_1(encoded[0].detach().numpy(), masks)
    found = unit(image, AtomBatch.collate([AtomMap.from_masks(masks)]))
    np.testing.assert_allclose(found[0].detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    found.square().sum().backward()  # the encoder is trained with the network
    assert all(parameter.grad.any() for parameter in unit.parameters())


def test_masks_are_dropped_in_training_only(random_masks, algorithm_1):
    masks, image = random_masks(np.random.default_rng(2), 5, 12, 14), _image(1, 12, 14, torch.float64)
    masks[:, 0, :5] = np.eye(5, dtype=bool)  # no mask can be dropped without a trace
    batch, unit = AtomBatch.collate([AtomMap.from_masks(masks)]), MAPUnit(dropout=0.5).double()
    with torch.no_grad():
        encoded = unit.encoder(image)[0].numpy()
        choices = {
            kept: algorithm_1(encoded, masks[list(kept)]) for kept in combinations(range(5), 3)
        }  # int(0.5 * 5) go
        seen = set()
        for seed in range(60):
            torch.manual_seed(seed)
            found = unit.train()(image, batch)[0].numpy()
            seen.add(min(choices, key=lambda kept: np.abs(choices[kept] - found).max()))
            assert min(np.abs(choice - found).max() for choice in choices.values()) < 1e-12
            torch.manual_seed(seed)
            assert np.array_equal(unit(image, batch)[0].numpy(), found)
        assert seen == set(choices)
        whole = algorithm_1(encoded, masks)
        for still in (unit.eval(), MAPUnit(dropout=0.0).double().train()):
            still.load_state_dict(unit.state_dict())
            np.testing.assert_allclose(still(image, batch)[0].numpy(), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "kind", "channels", "dropout"),
    [
        ("none", None, None, None),
        ("cat", CATPrior, 1, None),
        ("map", MAPUnit, 3, 0.0),
        ("map-dropout", MAPUnit, 3, 0.25),
    ],
)
def test_methods_are_the_rows_of_the_table(method, kind, channels, dropout):
    prior = prior_for(method, channels=3, mask_dropout=0.25)
    again = build_prior(prior.config if prior else None)
    for found in (prior, again):
        assert (type(found) if found else None) is kind
        assert getattr(found, "channels", None) == channels
        assert getattr(found, "dropout", None) == dropout
    assert method in METHODS


def test_defaults_are_two_channels_and_half_of_the_masks():
    assert prior_for("map-dropout").config == {"name": "map", "channels": 2, "dropout": 0.5}
    assert METHODS == ("none", "cat", "map", "map-dropout")


@pytest.mark.parametrize("arguments", [{"channels": 0}, {"dropout": -0.1}, {"dropout": 1.5}])
def test_settings_without_a_meaning_are_refused(arguments):
    with pytest.raises(ValueError, match=str(*arguments.values())):
        MAPUnit(**arguments)
    with pytest.raises(ValueError, match=r"unknown method 'sam', choose from none, cat, map, map-dropout"):
        prior_for("sam")


def test_aggregates_and_statistics_of_ours_are_kept_in_the_config_and_old_configs_load(random_masks):
    batch = AtomBatch.collate([AtomMap.from_masks(random_masks(np.random.default_rng(4), 6, 12, 14))])
    image = _image(1, 12, 14)
    unit = MAPUnit(3, 0.25, aggregate="smallest", statistics="mean+std").eval()
    again = build_prior(unit.config).eval()
    again.load_state_dict(unit.state_dict())
    assert (again.channels, again.config) == (6, unit.config)
    assert unit(image, batch).shape == (1, 6, 12, 14)
    assert torch.equal(again(image, batch), unit(image, batch))
    expected = mask_average_pool(unit.encoder(image), batch, "smallest", "mean+std")
    assert torch.equal(unit(image, batch), expected)
    old = build_prior({"name": "map", "channels": 3, "dropout": 0.25})
    assert (old.aggregate, old.statistics, old.channels) == ("sum", "mean", 3)
    assert old.config == {"name": "map", "channels": 3, "dropout": 0.25}
    for wrong in ({"aggregate": "max"}, {"statistics": "median"}):
        with pytest.raises(ValueError, match=f"unknown {next(iter(wrong))} '{next(iter(wrong.values()))}'"):
            MAPUnit(**wrong)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_attention_is_that_of_every_pixel_to_those_of_the_smallest_mask_over_it(random_masks, count):
    masks = random_masks(np.random.default_rng(2), 20, 12, 14)
    masks = masks[np.unique(masks.sum(axis=(1, 2)), return_index=True)[1]]  # one of each area
    masks = masks[masks.any(axis=(1, 2))][:count]
    assert len(masks) == count
    image, batch = _image(1, 12, 14).double(), AtomBatch.collate([AtomMap.from_masks(masks, (12, 14))])
    unit = MAPUnit(3, aggregate="attention").double().eval()
    values, queries, keys = unit.encoder(image)[0].split([3, 4, 4])
    queries, keys = F.elu(queries) + 1, F.elu(keys) + 1
    areas = masks.sum(axis=(1, 2))
    expected = torch.empty(3, 12, 14, dtype=torch.float64)
    for row, column in np.ndindex(12, 14):
        over = np.flatnonzero(masks[:, row, column]) if count else []
        inside = masks[over[np.argmin(areas[over])]] if len(over) else ~masks.any(axis=0)
        inside = torch.from_numpy(np.broadcast_to(inside, (12, 14)).copy())
        weights = queries[:, row, column] @ keys[:, inside]
        expected[:, row, column] = (values[:, inside] * weights).sum(dim=1) / weights.sum()
    found = unit(image, batch)
    assert (found[0] - expected).abs().max() < 1e-9
    assert (found.amax((2, 3)) <= values.amax((1, 2)) + 1e-9).all()  # means of values
    again = build_prior(unit.config).double()
    again.load_state_dict(unit.state_dict())
    assert torch.equal(again(image, batch), found)
    assert unit.channels == found.shape[1] == 3


def test_attention_learns_drops_masks_in_training_and_has_means_alone(random_masks):
    batch = AtomBatch.collate([AtomMap.from_masks(random_masks(np.random.default_rng(4), 6, 12, 14))], [7])
    image = _image(1, 12, 14)
    unit = MAPUnit(2, 0.5, aggregate="attention")
    dropped = unit.train()(image, batch)
    assert torch.equal(unit.eval()(image, drop_masks(batch, 0.5)), dropped)
    assert not torch.equal(unit(image, batch), dropped)
    unit(image, batch).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in unit.parameters())
    with pytest.raises(ValueError, match="aggregate attention has no statistics"):
        MAPUnit(aggregate="attention", statistics="mean+std")
    with pytest.raises(ValueError, match="unknown aggregate 'max', choose from sum, mean, smallest, attention"):
        MAPUnit(aggregate="max")
