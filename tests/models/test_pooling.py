from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from samdeblur.models import AtomBatch, drop_masks, mask_average_pool
from samdeblur.storage import AtomMap


def _batch(*stacks: np.ndarray) -> AtomBatch:
    return AtomBatch.collate([AtomMap.from_masks(masks, masks.shape[1:]) for masks in stacks])


def _features(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _dense_loop(features: torch.Tensor, stacks: list[np.ndarray]) -> torch.Tensor:
    """Algorithm 1 on dense masks, differentiable by autograd."""
    pooled = []
    for image, masks in zip(features, stacks, strict=True):
        total = torch.zeros_like(image)
        for mask in torch.from_numpy(np.concatenate([masks, ~masks.any(axis=0, keepdims=True)])).to(image.dtype):
            total = total + mask * ((image * mask).sum((1, 2), keepdim=True) / mask.sum().clamp(min=1))
        pooled.append(total)
    return torch.stack(pooled)


@pytest.fixture(scope="module")
def stacks(random_masks):
    rng, size = np.random.default_rng(11), (23, 31)
    covered = random_masks(rng, 6, *size)
    covered[2] = True
    return {
        "no mask": [np.zeros((0, *size), bool)],
        "one mask": [random_masks(rng, 1, *size)],
        "full cover": [covered],
        "no cover": [np.zeros((4, *size), bool)],
        "the same mask thrice": [np.repeat(covered[:1], 3, axis=0)],
        "one pixel": [np.ones((2, 1, 1), bool)],
        "300 masks": [random_masks(rng, 300, *size)],
        "ragged batch": [random_masks(rng, n, *size) for n in (7, 0, 40, 1)],
    }


CASES = [
    "no mask",
    "one mask",
    "full cover",
    "no cover",
    "the same mask thrice",
    "one pixel",
    "300 masks",
    "ragged batch",
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
def test_pooling_and_its_gradient_are_those_of_the_dense_loop(stacks, algorithm_1, case, dtype, tolerance):
    masks = stacks[case]
    shape = (len(masks), 3, *masks[0].shape[1:])
    features, weights = _features(*shape, dtype=dtype).requires_grad_(), _features(*shape, seed=1)
    pooled = mask_average_pool(features, _batch(*masks))
    (pooled * weights).sum().backward()

    reference = features.detach().double().requires_grad_()
    expected = _dense_loop(reference, masks)
    (expected * weights).sum().backward()
    looped = [algorithm_1(image, planes) for image, planes in zip(reference.detach().numpy(), masks, strict=True)]

    assert pooled.dtype == features.grad.dtype == dtype
    for found, wanted in (
        (pooled, torch.from_numpy(np.stack(looped))),
        (pooled, expected),
        (features.grad, reference.grad),
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


def test_derivatives_of_first_and_second_order_are_right(random_masks):
    batch = _batch(random_masks(np.random.default_rng(0), 4, 3, 4), np.zeros((0, 3, 4), bool))
    features = _features(2, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mask_average_pool(x.sin(), batch), features)
    assert torch.autograd.gradgradcheck(lambda x: mask_average_pool(x.sin(), batch).square(), features)


def test_images_of_a_batch_do_not_meet(stacks):
    masks = stacks["ragged batch"]
    features = _features(4, 2, 23, 31)
    alone = [mask_average_pool(features[i : i + 1], _batch(masks[i])) for i in range(4)]
    torch.testing.assert_close(mask_average_pool(features, _batch(*masks)), torch.cat(alone), rtol=1e-12, atol=1e-12)


def test_the_order_of_the_masks_does_not_matter(stacks):
    (masks,) = stacks["300 masks"]
    features = _features(1, 2, 23, 31)
    shuffled = masks[np.random.default_rng(0).permutation(300)]
    torch.testing.assert_close(
        mask_average_pool(features, _batch(shuffled)),
        mask_average_pool(features, _batch(masks)),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: x.flip(-1),
        lambda x: x.flip(-2),
        lambda x: x.transpose(-1, -2),
        lambda x: x.rot90(1, (-2, -1)),
        lambda x: x.rot90(2, (-2, -1)),
    ],
    ids=["mirror", "upside down", "transpose", "quarter turn", "half turn"],
)
def test_turning_picture_and_atoms_together_turns_the_result(stacks, turn):
    batch, features = _batch(*stacks["ragged batch"]), _features(4, 2, 23, 31)
    found = mask_average_pool(turn(features), batch._replace(atoms=turn(batch.atoms)))
    torch.testing.assert_close(found, turn(mask_average_pool(features, batch)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stored", [lambda x: x.to(memory_format=torch.channels_last), lambda x: x.mT.contiguous().mT])
def test_the_memory_layout_of_features_does_not_matter(stacks, stored):
    batch, features = _batch(*stacks["ragged batch"]), _features(4, 2, 23, 31)
    before = features.clone()
    torch.testing.assert_close(mask_average_pool(stored(features), batch), mask_average_pool(features, batch))
    assert torch.equal(features, before)


def test_an_image_without_masks_becomes_its_mean():
    features = _features(3, 2, 6, 7)
    pooled = mask_average_pool(features, AtomBatch.background(3, 6, 7))
    torch.testing.assert_close(pooled, features.mean((2, 3), keepdim=True).expand_as(features), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_features_are_pooled_in_wider_sums(stacks, autocast):
    masks = stacks["300 masks"]
    features = _features(1, 2, 23, 31, dtype=torch.bfloat16).requires_grad_()
    weights = _features(1, 2, 23, 31, dtype=torch.bfloat16, seed=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        pooled = mask_average_pool(features, _batch(*masks))
    pooled.backward(weights)
    assert pooled.dtype == features.grad.dtype == torch.bfloat16
    for found, source in ((pooled, features), (features.grad, weights)):  # pooling is its own gradient
        wanted = _dense_loop(source.detach().double(), masks)
        torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=1e-6)  # one rounding, of the result


@pytest.mark.parametrize("shape", [(1, 2, 23, 30), (1, 2, 31, 23), (2, 2, 23, 31)])
def test_features_of_another_size_are_refused_with_both_sizes(stacks, shape):
    with pytest.raises(ValueError, match=r"\(1, 23, 31\)") as caught:
        mask_average_pool(_features(*shape), _batch(*stacks["one mask"]))
    assert str(shape) in str(caught.value)


def test_maps_of_different_sizes_do_not_make_a_batch():
    with pytest.raises(ValueError, match=r"one size, got \[\(2, 3\), \(3, 2\)\]"):
        AtomBatch.collate([AtomMap.empty((2, 3)), AtomMap.empty((3, 2))])
    with pytest.raises(ValueError, match="one size"):
        AtomBatch.collate([])


def test_a_batch_is_a_tuple_of_tensors_numbered_through(random_masks):
    masks = random_masks(np.random.default_rng(3), 9, 20, 20)
    crops = [AtomMap.from_masks(masks).crop(*window) for window in ((0, 0, 8, 9), (5, 5, 8, 9), (12, 11, 8, 9))]
    batch = AtomBatch.collate([*crops, AtomMap.empty((8, 9))])
    assert isinstance(batch, tuple)
    assert [tensor.dtype for tensor in batch] == [torch.int32] + [torch.int64] * 4
    assert batch.batch_size == 4
    assert batch.mask_ids.tolist() == [k for crop in crops for k in crop.mask_ids]
    assert batch.mask_image.tolist() == [i for i, crop in enumerate(crops) for _ in range(crop.n_masks)]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(batch, batch.to("cpu"), strict=True))
    for image, crop in enumerate(crops):  # the dense masks can be read back
        covering = torch.zeros(len(batch.atom_image), len(batch.mask_image), dtype=torch.bool)
        covering[tuple(batch.pairs.T)] = True
        planes = covering[batch.atoms[image].long()][..., batch.mask_image == image]
        assert np.array_equal(planes.permute(2, 0, 1).numpy(), crop.to_masks())
        assert (batch.atom_image[batch.atoms[image].long()] == image).all()


# Mask dropout


def _strips(counts: list[int], width: int) -> AtomBatch:
    """Images of one row whose first pixels have a mask each: which masks are left can be read from the pixels."""
    return _batch(*(np.eye(n, width, dtype=bool)[:, None] for n in counts))


def _kept(batch: AtomBatch) -> list[list[int]]:
    """Masks each image has left."""
    left = batch.pairs[:, 1].unique()
    return [
        (left[batch.mask_image[left] == image] - (batch.mask_image < image).sum()).tolist()
        for image in range(batch.batch_size)
    ]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_exactly_the_whole_part_of_the_share_is_dropped_of_every_image():
    counts = list(range(121))
    batch, generator, wrong = _strips(counts, 121), _generator(), []
    for percent in range(101):
        rate = percent / 100
        left = drop_masks(batch, rate, generator).pairs[:, 1].unique()
        dropped = torch.tensor(counts) - batch.mask_image[left].bincount(minlength=len(counts))
        wrong += [(rate, n, d) for n, d in zip(counts, dropped.tolist(), strict=True) if d != int(rate * n)]
    assert not wrong, f"(rate, masks, dropped): {wrong}"


def test_any_choice_of_masks_is_made_and_images_choose_by_themselves():
    batch, generator = _strips([4, 0, 4], 6), _generator()
    drawn = [_kept(drop_masks(batch, 0.5, generator)) for _ in range(600)]
    both = {(tuple(first), tuple(last)) for first, _, last in drawn}
    assert len(both) == 36  # every pair of the six choices of two of four
    counts = [sum(k in first for first, *_ in drawn) for k in range(4)]
    assert all(250 < count < 350 for count in counts)  # 300 on average, deviation 12


def test_a_generator_makes_dropout_repeatable_and_leaves_the_global_one_alone():
    batch, state = _strips([9, 12, 5], 12), torch.get_rng_state()
    draws = [_kept(drop_masks(batch, 0.5, _generator(seed))) for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert any(first != second for first, second in pairwise(draws[1:]))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_dropped_masks_join_the_background(stacks, algorithm_1, rate):
    masks = stacks["ragged batch"]
    batch, features = _batch(*masks), _features(4, 2, 23, 31)
    dropped = drop_masks(batch, rate, _generator())
    pooled = mask_average_pool(features, dropped)
    for image, (planes, kept) in enumerate(zip(masks, _kept(dropped), strict=True)):
        expected = torch.from_numpy(algorithm_1(features[image].numpy(), planes[kept]))
        torch.testing.assert_close(pooled[image], expected, rtol=1e-12, atol=1e-12)
    assert all(
        mine is theirs for mine, theirs in zip(batch._replace(pairs=None), dropped._replace(pairs=None), strict=True)
    )
