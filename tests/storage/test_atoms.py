from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from samdeblur.storage import AtomMap, TooManyAtoms


def _stacks(n_masks: st.SearchStrategy[int] | None = None, max_side: int = 7) -> st.SearchStrategy:
    sides = st.integers(1, max_side)
    counts = st.integers(0, 6) if n_masks is None else n_masks
    return st.tuples(counts, sides, sides).flatmap(lambda shape: hnp.arrays(bool, shape))


@st.composite
def _stacks_and_windows(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    masks = draw(_stacks())
    return masks, _window(draw, masks.shape[1:])


def _window(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    top, left = (draw(st.integers(0, side - 1)) for side in shape)
    return top, left, draw(st.integers(1, shape[0] - top)), draw(st.integers(1, shape[1] - left))


def _encode_pixel_by_pixel(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition: atoms are sets of pixels under the same masks, counted from 1 in raster order of appearance."""
    numbers: dict[tuple[int, ...], int] = {(): 0}
    atoms = np.zeros(masks.shape[1:], int)
    for pixel in np.ndindex(atoms.shape):
        atoms[pixel] = numbers.setdefault(tuple(np.flatnonzero(masks[:, *pixel])), len(numbers))
    return atoms, np.array([(n, k) for covering, n in numbers.items() for k in covering], int).reshape(-1, 2)


def _cut(masks: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    top, left, height, width = window
    return masks[:, top : top + height, left : left + width]


@given(_stacks())
def test_encoding_follows_the_definition_and_is_lossless(masks):
    encoded = AtomMap.from_masks(masks)
    atoms, pairs = _encode_pixel_by_pixel(masks)
    assert np.array_equal(encoded.atoms, atoms)
    assert np.array_equal(encoded.pairs, pairs)
    assert np.array_equal(encoded.mask_ids, np.arange(len(masks)))
    assert np.array_equal(encoded.to_masks(), masks)
    assert (encoded.atoms.dtype, encoded.pairs.dtype, encoded.mask_ids.dtype) == (np.uint16, np.uint16, np.int32)
    assert encoded.to_masks().dtype == bool
    assert (encoded.n_masks, encoded.n_atoms, encoded.shape) == (len(masks), atoms.max(), masks.shape[1:])


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(1, 40), st.integers(1, 40))
def test_object_shaped_masks_come_back(random_masks, seed, n, height, width):
    masks = random_masks(np.random.default_rng(seed), n, height, width)
    assert np.array_equal(AtomMap.from_masks(masks).to_masks(), masks)


_RNG = np.random.default_rng(0)
_ONE_PIXEL = np.zeros((3, 4, 5), bool)
_ONE_PIXEL[[0, 1, 2], [0, 3, 3], [0, 4, 4]] = True


@pytest.mark.parametrize(
    "masks",
    [
        pytest.param(np.zeros((0, 4, 5), bool), id="none"),
        pytest.param(_RNG.random((1, 4, 5)) < 0.5, id="one"),
        pytest.param(np.repeat(_RNG.random((1, 9, 5)) < 0.5, 3, axis=0), id="identical"),
        pytest.param(np.ones((2, 6, 7), bool), id="full frame"),
        pytest.param(_ONE_PIXEL, id="single pixels"),
        pytest.param(np.zeros((3, 4, 5), bool), id="empty"),
        pytest.param(_RNG.random((300, 12, 11)) < 0.1, id="300"),
        pytest.param(np.array([True, False, True]).reshape(3, 1, 1), id="1x1"),
        pytest.param(_RNG.random((4, 1, 50)) < 0.5, id="one row"),
        pytest.param(np.zeros((2, 0, 5), bool), id="no pixel"),
    ],
)
def test_unusual_stacks_come_back(masks, dense_boxes):
    encoded = AtomMap.from_masks(masks)
    atoms, pairs = _encode_pixel_by_pixel(masks)
    assert np.array_equal(encoded.to_masks(), masks)
    assert np.array_equal(encoded.atoms, atoms)
    assert np.array_equal(encoded.pairs, pairs)
    assert np.array_equal(encoded.mask_areas(), masks.sum(axis=(1, 2)))
    assert np.array_equal(encoded.mask_boxes(), dense_boxes(masks))


def test_an_empty_list_needs_the_shape():
    assert AtomMap.from_masks([], (3, 4)) == AtomMap.empty((3, 4)) == AtomMap.from_masks(np.zeros((0, 3, 4), bool))
    assert AtomMap.from_masks([], (3, 4)).to_masks().shape == (0, 3, 4)
    with pytest.raises(ValueError, match=r"planes \(H, W\)"):
        AtomMap.from_masks([])


_LAYOUTS = {
    "copy": np.array,
    "columns first": np.asfortranarray,
    "transposed": lambda masks: masks.transpose(2, 1, 0).copy().T,
    "list of planes": list,
    "bytes of 255": lambda masks: masks.astype(np.uint8) * 255,
    "backwards": lambda masks: masks[:, ::-1, ::-1].copy()[:, ::-1, ::-1],
    "every third": lambda masks: masks.repeat(2, axis=1).repeat(3, axis=2)[:, ::2, ::3],
}


@pytest.mark.parametrize("arrange", _LAYOUTS.values(), ids=_LAYOUTS)
def test_encoding_is_repeatable_and_ignores_the_memory_layout(random_masks, arrange):
    masks = random_masks(np.random.default_rng(3), 25, 31, 47)
    expected = AtomMap.from_masks(masks)
    found = AtomMap.from_masks(arrange(masks))
    assert found == expected
    assert all(getattr(found, name).tobytes() == getattr(expected, name).tobytes() for name in ("atoms", "pairs"))


def test_a_collision_of_words_is_noticed_and_encoded_anew(random_masks, monkeypatch):
    masks = random_masks(np.random.default_rng(5), 6, 20, 20)
    expected, make, seeds = AtomMap.from_masks(masks), np.random.default_rng, []

    class Colliding:
        def integers(self, low, high, size, dtype, endpoint):
            return np.ones(size, dtype)

    def rng(seed):
        seeds.append(seed)
        return Colliding() if len(seeds) == 1 else make(seed)

    monkeypatch.setattr(np.random, "default_rng", rng)
    assert AtomMap.from_masks(masks) == expected
    assert len(set(seeds)) == len(seeds) == 2


@given(_stacks_and_windows())
def test_a_crop_is_the_encoding_of_the_cropped_masks(case):
    masks, window = case
    cut = _cut(masks, window)
    present = np.flatnonzero(cut.any(axis=(1, 2)))
    found, expected = AtomMap.from_masks(masks).crop(*window), AtomMap.from_masks(cut[present], cut.shape[1:])
    assert np.array_equal(found.atoms, expected.atoms)
    assert np.array_equal(found.pairs, expected.pairs)
    assert np.array_equal(found.mask_ids, present)
    assert np.array_equal(found.to_masks(), cut[present])
    assert (found.atoms.dtype, found.pairs.dtype, found.mask_ids.dtype) == (np.uint16, np.uint16, np.int32)


@given(st.data())
def test_a_crop_of_a_crop_is_one_crop(data):
    masks = data.draw(_stacks(max_side=9))
    top, left, height, width = data.draw(st.composite(_window)(masks.shape[1:]))
    y, x, h, w = data.draw(st.composite(_window)((height, width)))
    encoded = AtomMap.from_masks(masks)
    assert encoded.crop(top, left, height, width).crop(y, x, h, w) == encoded.crop(top + y, left + x, h, w)


def test_a_crop_of_the_whole_image_only_drops_empty_masks(random_masks):
    masks = random_masks(np.random.default_rng(1), 9, 14, 15)
    masks[4] = False
    whole = AtomMap.from_masks(masks).crop(0, 0, 14, 15)
    assert np.array_equal(whole.atoms, AtomMap.from_masks(masks).atoms)
    assert 4 not in whole.mask_ids
    full = AtomMap.from_masks(np.delete(masks, 4, axis=0))
    assert np.array_equal(whole.pairs, full.pairs)


@given(_stacks())
def test_areas_and_boxes_are_those_of_the_dense_masks(dense_boxes, masks):
    encoded = AtomMap.from_masks(masks)
    assert np.array_equal(encoded.mask_areas(), masks.sum(axis=(1, 2)))
    assert np.array_equal(encoded.mask_boxes(), dense_boxes(masks))
    assert np.array_equal(encoded.atom_areas(), np.bincount(_encode_pixel_by_pixel(masks)[0].ravel()))


def _all_different(height: int, width: int) -> np.ndarray:
    """17 masks, the binary digits of the pixel number from 1: every pixel is an atom."""
    numbers = np.arange(1, height * width + 1).reshape(height, width)
    return (numbers >> np.arange(17)[:, None, None]) & 1 > 0


def test_as_many_atoms_as_16_bits_can_name_are_encoded():
    masks = _all_different(255, 257)
    encoded = AtomMap.from_masks(masks)
    assert encoded.n_atoms == 65535
    assert np.array_equal(encoded.to_masks(), masks)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        pytest.param(_all_different(256, 256), "65536 atoms, at most 65535", id="atoms"),
        pytest.param(np.zeros((65536, 1, 1), bool), "65536 masks, at most 65535", id="masks"),
    ],
)
def test_more_than_16_bits_can_name_is_refused(masks, message):
    with pytest.raises(TooManyAtoms, match=message):
        AtomMap.from_masks(masks)


@pytest.mark.parametrize(
    ("masks", "shape", "named"),
    [
        ([np.zeros((2, 3)), np.zeros((3, 2))], None, r"\(2, 3\), \(3, 2\)"),
        (np.zeros((2, 3)), None, r"\(3,\)"),
        (np.zeros((2, 3, 4, 5)), None, r"\(3, 4, 5\)"),
        (np.zeros((2, 3, 4)), (3, 5), r"\(3, 4\)"),
    ],
)
def test_planes_of_a_wrong_shape_are_refused_and_named(masks, shape, named):
    with pytest.raises(ValueError, match=named):
        AtomMap.from_masks(masks, shape)


@pytest.mark.parametrize(
    "window",
    [(0, 0, 0, 3), (0, 0, 3, 0), (-1, 0, 2, 2), (0, -1, 2, 2), (5, 0, 2, 2), (0, 6, 2, 2), (6, 7, 1, 1), (0, 0, 7, 7)],
)
def test_windows_outside_the_image_are_refused_with_both_sizes(window):
    with pytest.raises(ValueError, match=r"window .* does not fit in an image of \(6, 7\)") as caught:
        AtomMap.empty((6, 7)).crop(*window)
    assert str(window) in str(caught.value)


def test_maps_compare_by_value_and_survive_copies(random_masks):
    encoded = AtomMap.from_masks(random_masks(np.random.default_rng(2), 5, 8, 9))
    assert encoded == pickle.loads(pickle.dumps(encoded)) == copy.deepcopy(encoded)
    assert encoded != AtomMap(encoded.atoms, encoded.pairs, encoded.mask_ids + 1)
    assert encoded != AtomMap(encoded.atoms, encoded.pairs[:-1], encoded.mask_ids)
    assert encoded != AtomMap(encoded.atoms[::-1], encoded.pairs, encoded.mask_ids)
    assert encoded != "masks"
    with pytest.raises(TypeError):
        hash(encoded)


@pytest.mark.parametrize("masks", [np.full((2, 3, 4), -1.5), np.full((2, 3, 4), 0.5), np.full((2, 3, 4), np.nan)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_numbers_that_are_no_masks_are_refused(masks, dtype):
    if dtype is np.int64:
        masks = np.full(masks.shape, -1)
    with pytest.raises(ValueError, match=r"got other numbers .*; compare with a threshold"):
        AtomMap.from_masks(masks.astype(dtype))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float32])
def test_masks_of_zeros_and_ones_may_be_of_any_type(dtype):
    masks = np.arange(24).reshape(2, 3, 4) % 5 == 0
    assert np.array_equal(AtomMap.from_masks(masks.astype(dtype)).to_masks(), masks)
    assert np.array_equal(AtomMap.from_masks(masks.astype(np.uint8) * 255).to_masks(), masks)
