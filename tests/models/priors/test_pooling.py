from __future__ import annotations

import numpy as np
import pretended
import pytest
import torch

from samdeblur.models import AtomBatch, MAPUnit, mask_average_pool
from samdeblur.models.priors.pool_index import IndexPlan
from samdeblur.models.priors.pool_runs import RunPlan
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
def test_turning_image_and_atoms_together_turns_the_result(stacks, turn):
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
    assert [tensor.dtype for tensor in batch] == [torch.int32] + [torch.int64] * 4 + [
        torch.int32,
        torch.int64,
        torch.float32,
    ]
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


# Options of ours


def _dense_options(
    features: torch.Tensor, stacks: list[np.ndarray], aggregate: str, statistics: str, floor: float = 0.0
) -> torch.Tensor:
    """The options on dense masks, pixel lists of masks one after the other; differentiable by autograd."""
    samples = []
    for image, masks in zip(features, stacks, strict=True):
        planes = [plane for plane in [*masks, ~masks.any(axis=0)] if plane.any()]
        areas = np.array([plane.sum() for plane in planes])
        covering = np.stack(planes)
        smallest = np.where(covering, areas[:, None, None], np.inf).min(axis=0)
        chosen = covering & (areas[:, None, None] == smallest) if aggregate == "smallest" else covering
        share = chosen / (1 if aggregate == "sum" else chosen.sum(axis=0))
        outputs = []
        for deviation in [False, True][: 1 + (statistics == "mean+std")]:
            total = torch.zeros_like(image)
            for plane, part in zip(planes, torch.from_numpy(share), strict=True):
                inside = image[:, torch.from_numpy(plane)]
                value = (inside.var(1, correction=0) + floor).sqrt() if deviation else inside.mean(1)
                total = total + part * value[:, None, None]
            outputs.append(total)
        samples.append(torch.cat(outputs))
    return torch.stack(samples)


@pytest.mark.parametrize("statistics", ["mean", "mean+std"])
@pytest.mark.parametrize("aggregate", ["sum", "mean", "smallest"])
@pytest.mark.parametrize("case", ["ragged batch", "the same mask thrice", "no mask", "full cover", "one pixel"])
def test_options_and_their_gradients_are_those_of_a_dense_loop(stacks, case, aggregate, statistics):
    masks, floor = stacks[case], 1e-8
    features = (_features(len(masks), 2, *masks[0].shape[1:]) * 3 + 100).requires_grad_()
    reference = features.detach().requires_grad_()
    pooled = mask_average_pool(features, _batch(*masks), aggregate, statistics)
    expected = _dense_options(reference, masks, aggregate, statistics, floor)
    weights = _features(*expected.shape, seed=1)
    (pooled * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(pooled, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(features.grad, reference.grad, rtol=1e-6, atol=1e-6)


def test_the_sum_of_means_is_what_is_computed_when_nothing_is_asked_for(stacks):
    batch, features = _batch(*stacks["ragged batch"]), _features(4, 2, 23, 31)
    assert torch.equal(mask_average_pool(features, batch), mask_average_pool(features, batch, "sum", "mean"))


def test_unknown_options_are_refused_with_the_known_ones(stacks):
    batch, features = _batch(*stacks["one mask"]), _features(1, 2, 23, 31)
    with pytest.raises(ValueError, match="unknown aggregate 'largest', choose from sum, mean, smallest"):
        mask_average_pool(features, batch, "largest")
    with pytest.raises(ValueError, match=r"unknown statistics 'std', choose from mean, mean\+std"):
        mask_average_pool(features, batch, statistics="std")


@pytest.mark.parametrize("aggregate", ["sum", "mean", "smallest"])
def test_derivatives_of_options_are_right(random_masks, aggregate):
    batch = _batch(random_masks(np.random.default_rng(0), 4, 3, 4), np.zeros((0, 3, 4), bool))
    features = _features(2, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mask_average_pool(x, batch, aggregate), features)
    assert torch.autograd.gradgradcheck(lambda x: mask_average_pool(x.sin(), batch, aggregate).square(), features)


# Two ways to compute it, and the ways it is called


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighted", [False, True])
def test_runs_and_plain_indexing_give_the_same_maps(stacks, case, weighted):
    batch = _batch(*stacks[case])
    features = _features(batch.batch_size, 3, *batch.atoms.shape[1:])
    weights = torch.rand(len(batch.pairs), dtype=torch.float64) if weighted else None
    runs = RunPlan(batch.atoms, batch.runs, batch.pairs, batch.atom_image, len(batch.mask_image))
    index = IndexPlan(batch.atoms, batch.pairs, batch.atom_image, len(batch.mask_image))
    assert torch.equal(runs.mask_areas(), index.mask_areas())
    sums = runs.sums(features, weights)
    torch.testing.assert_close(sums, index.sums(features, weights), rtol=1e-12, atol=1e-12)
    for channels_last in (False, True):
        found = runs.spread(sums, weights, torch.float64, channels_last)
        wanted = index.spread(sums, weights, torch.float64, channels_last)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        assert found.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_rows_of_the_table_may_come_in_any_order(stacks):
    batch, features = _batch(*stacks["ragged batch"]), _features(4, 2, 23, 31)
    order = torch.randperm(len(batch.pairs), generator=torch.Generator().manual_seed(0))
    shuffled = batch._replace(pairs=batch.pairs[order])
    for aggregate in ("sum", "mean", "smallest"):
        torch.testing.assert_close(
            mask_average_pool(features, shuffled, aggregate),
            mask_average_pool(features, batch, aggregate),
            rtol=1e-12,
            atol=1e-12,
        )


def test_every_image_is_cut_into_as_many_runs_and_no_run_holds_two_atoms_or_rows(stacks):
    batch = _batch(*stacks["ragged batch"])
    for starts, atoms in zip(batch.runs.numpy(), batch.atoms.numpy(), strict=True):
        assert starts[0] == 0
        assert (np.diff(starts) > 0).all()
        assert set(range(0, 23 * 31, 31)) <= set(starts.tolist())
        for run in np.split(atoms.ravel(), starts[1:]):
            assert (run == run[0]).all()


def test_atoms_that_were_changed_are_pooled_as_they_are_now(stacks):
    batch, features = _batch(*stacks["ragged batch"]), _features(4, 2, 23, 31)
    edited = batch.atoms.clone()
    edited[:, 5, 7] = edited[:, 0, 0]
    fresh = torch.empty(0, 0, dtype=torch.int32)
    for runs in (batch.runs, batch.runs[:1], batch.runs.flip(1), batch.runs + 9999):
        found = mask_average_pool(features, batch._replace(atoms=edited, runs=runs))
        assert torch.equal(found, mask_average_pool(features, batch._replace(atoms=edited, runs=fresh)))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_channels_last_features_give_the_same_and_stay_so(stacks, channels, dtype):
    batch, features = _batch(*stacks["ragged batch"]), _features(4, channels, 23, 31, dtype=dtype)
    weights = _features(4, channels, 23, 31, dtype=dtype, seed=1)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        source = features.contiguous(memory_format=layout).detach().requires_grad_()
        pooled = mask_average_pool(source, batch)
        pooled.backward(weights.contiguous(memory_format=layout))
        assert pooled.is_contiguous(memory_format=layout)
        assert pooled.dtype == dtype
        results.append((pooled.detach(), source.grad))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("options", [("sum", "mean"), ("smallest", "mean+std")], ids=str)
def test_it_compiles_in_one_piece(stacks, options):
    batch = _batch(*stacks["ragged batch"])
    compiled = torch.compile(
        lambda x, b: mask_average_pool(x.sin(), b, *options) * 2, fullgraph=True, backend="aot_eager"
    )
    results = []
    for function in (compiled, lambda x, b: mask_average_pool(x.sin(), b, *options) * 2):
        features = _features(4, 2, 23, 31).requires_grad_()
        pooled = function(features, batch)
        pooled.square().sum().backward()
        results.append((pooled.detach(), features.grad))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_deterministic_mode_changes_nothing(stacks):
    batch, features = _batch(*stacks["ragged batch"]), _features(4, 2, 23, 31, dtype=torch.float32)
    expected = mask_average_pool(features, batch, "smallest", "mean+std")
    torch.use_deterministic_algorithms(True)
    try:
        source = features.clone().requires_grad_()
        pooled = mask_average_pool(source, batch, "smallest", "mean+std")
        pooled.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(pooled, expected)


def test_a_batch_is_traversed_tensor_by_tensor(stacks):
    batch = _batch(*stacks["ragged batch"])
    leaves, structure = torch.utils._pytree.tree_flatten(batch)
    assert len(leaves) == len(batch)
    again = torch.utils._pytree.tree_unflatten(leaves, structure)
    assert isinstance(again, AtomBatch)
    assert torch.equal(again.runs, batch.runs)


# On a GPU, with one that is pretended


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [("sum", "mean"), ("mean", "mean"), ("smallest", "mean+std")], ids=str)
def test_pooling_on_a_gpu_is_that_of_a_cpu(stacks, case, options):
    batch = _batch(*stacks[case])
    features = _features(batch.batch_size, 2, *batch.atoms.shape[1:], dtype=torch.float32)
    expected = mask_average_pool(features, batch, *options)
    with pretended.cuda():
        found = mask_average_pool(features.to(pretended.CUDA), batch.to(pretended.CUDA), *options)
        assert found.device == pretended.CUDA
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_mean_of_a_flat_sky_keeps_its_digits_on_a_gpu(dtype):
    """A sum of a megapixel in float32, one after the other, loses the third digit."""
    height, width = 720, 1280
    batch = AtomBatch.background(1, height, width)
    features = torch.full((1, 2, height, width), 0.7311).to(dtype)
    with pretended.cuda():
        on_device = features.to(pretended.CUDA), batch.to(pretended.CUDA)
        pooled = mask_average_pool(*on_device).cpu().double()
        plan = IndexPlan(on_device[1].atoms, on_device[1].pairs, on_device[1].atom_image, 0)
        sums = plan.sums(on_device[0], None).cpu().double()
    exact = features.double().mean((2, 3), keepdim=True)
    assert (sums[0] / (height * width) / exact[0, :, 0, 0] - 1).abs().max() < 1e-12
    assert (pooled / exact - 1).abs().max() <= torch.finfo(dtype).eps


def test_any_number_of_masks_is_compiled_into_two_graphs_with_the_prior_in_them(random_masks):
    rng = np.random.default_rng(0)
    batches = [
        _batch(random_masks(rng, n, 12, 16), random_masks(rng, n + 2, 12, 16))
        for n in (5, 7, 1, 12, 9, 3, 14, 6, 11, 2)
    ]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    unit = MAPUnit(2)
    compiled = torch.compile(lambda x, b: unit(x, b) * 2, backend=backend)
    for batch in batches:
        image = torch.rand(2, 3, 12, 16)
        torch.testing.assert_close(compiled(image, batch), unit(image, batch) * 2)
    assert len(graphs) <= 2
