from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from samdeblur.storage import AtomMap, StoreError, TooManyAtoms
from samdeblur.storage.exchange import annotations as foreign
from samdeblur.storage.exchange import rle
from samdeblur.storage.exchange.annotations import stack_masks
from samdeblur.storage.exchange.rle import ExchangeError, decode_segmentation, encode_masks

# pycocotools 2.0.11 with numpy 2, when it decodes
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

sides = st.integers(1, 24)
stacks = st.tuples(st.integers(0, 7), sides, sides).flatmap(lambda shape: hnp.arrays(bool, shape))


def compressed(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def uncompressed(mask):
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    changes = np.flatnonzero(np.diff(flat.astype(int)) != 0)
    return {"size": list(mask.shape), "counts": np.diff(changes, prepend=0).tolist()}


@given(stacks)
def test_encoding_is_that_of_pycocotools(masks):
    expected = [compressed(mask) for mask in masks]
    assert encode_masks(AtomMap.from_masks(masks, masks.shape[1:])) == expected


@given(stacks)
def test_decoding_gives_the_masks_of_every_kind_of_rle(masks):
    for mask in masks:
        rle = compressed(mask)
        for segmentation in (rle, rle | {"counts": rle["counts"].encode()}, uncompressed(mask)):
            decoded = decode_segmentation(json.loads(json.dumps(segmentation, default=bytes.decode)), *mask.shape)
            assert decoded.dtype == bool
            assert np.array_equal(decoded, mask)


@pytest.mark.parametrize("batch", [1, 40 * 50 * 3, 1 << 26])
def test_batches_do_not_change_the_masks(batch, random_masks, monkeypatch):
    masks = random_masks(np.random.default_rng(3), 11, 40, 50)
    masks[[4, 10]] = False
    whole = AtomMap.from_masks(masks)
    monkeypatch.setattr(rle, "BATCH_BYTES", batch)
    monkeypatch.setattr(foreign, "BATCH_BYTES", batch)
    assert encode_masks(whole) == [compressed(mask) for mask in masks]
    assert stack_masks(iter(masks), len(masks), (40, 50)) == whole


@given(stacks)
def test_masks_stacked_one_by_one_are_those_stacked_at_once(masks):
    shape = masks.shape[1:]
    stacked = AtomMap.empty(shape)
    for mask in masks:
        stacked = foreign._joined(stacked, AtomMap.from_masks([mask], shape))
    assert stacked == AtomMap.from_masks(masks, shape)


def test_more_masks_than_a_store_holds_are_refused_before_any_is_decoded():
    def masks():
        raise AssertionError("decoded")
        yield

    with pytest.raises(TooManyAtoms, match="4097 masks"):
        stack_masks(masks(), 4097, (2, 2))


def test_polygons_are_drawn_as_by_pycocotools():
    polygons = [[1.5, 1, 20, 3.25, 12, 15], [-4, 8, 30, 8, 30, 12, -4, 12], [5, 5, 5, 5, 5, 5]]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 18, 25)))
    assert np.array_equal(decode_segmentation(polygons, 18, 25), expected)
    assert 0 < expected.sum() < expected.size


@given(hnp.arrays(float, st.integers(3, 9).map(lambda n: 2 * n), elements=st.floats(-60, 60)), sides, sides)
def test_any_finite_polygon_is_drawn(points, height, width):
    assert decode_segmentation([points.tolist()], height, width).shape == (height, width)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        7,
        "text",
        [],
        {},
        {"size": [3, 4]},
        {"counts": "<"},
        {"size": [4, 3], "counts": "<"},
        {"size": [3, 4, 1], "counts": "<"},
        {"size": "34", "counts": "<"},
        {"size": [-3, -4], "counts": "<"},
        {"size": [3, 10**30], "counts": "<"},
        {"size": [3, 4], "counts": None},
        {"size": [3, 4], "counts": 12},
        {"size": [3, 4], "counts": ""},
        {"size": [3, 4], "counts": ";"},  # 11 pixels
        {"size": [3, 4], "counts": "=?"},
        {"size": [3, 4], "counts": "<o"},  # another piece should follow
        {"size": [3, 4], "counts": "P"},
        {"size": [3, 4], "counts": "0L@"},
        {"size": [3, 4], "counts": "o" * 40 + "0"},  # a count of 200 bits
        {"size": [3, 4], "counts": "é"},
        {"size": [3, 4], "counts": "<\0"},
        {"size": [3, 4], "counts": []},
        {"size": [3, 4], "counts": [5, 6]},
        {"size": [3, 4], "counts": [13, -1]},
        {"size": [3, 4], "counts": [2**32, 12]},
        {"size": [3, 4], "counts": [6.0, 6.0]},
        {"size": [3, 4], "counts": [True, 11]},
        {"size": [3, 4], "counts": [[12]]},
        [[0, 0, 2, 2]],
        [[0, 0, 2, 0, 2, 2, 1]],
        [[0, 0, 2, 0, 2, float("nan")]],
        [[0, 0, 2, 0, 2, float("inf")]],
        [[0, 0, 2, 0, 2, 10**400]],
        [[0, 0, 2, 0, 2, "2"]],
        [[0, 0, 2, 0, 2, [2]]],
        [[0, 0, 2, 0, 2, 2], None],
        [[0, 0, 1e6, 1e6] * 2000],  # gigabytes in pycocotools
    ],
    ids=lambda segmentation: str(segmentation)[:40],
)
def test_malformed_segmentations_are_refused_in_one_line(segmentation):
    with pytest.raises(ExchangeError) as caught:
        decode_segmentation(segmentation, 3, 4)
    assert "segmentation" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    assert isinstance(caught.value, StoreError)


@given(st.binary(max_size=12))
def test_any_counts_give_a_mask_or_a_refusal(counts):
    printable = bytes(ord("0") + byte % 64 for byte in counts)
    for attempt in (counts, printable):
        try:
            mask = decode_segmentation({"size": [3, 4], "counts": attempt}, 3, 4)
        except ExchangeError:
            continue
        assert np.array_equal(mask, coco_mask.decode({"size": [3, 4], "counts": attempt}))


@given(hnp.arrays(bool, (6, 7)), st.integers(0, 40), st.integers(0, 63))
def test_a_flipped_character_never_gives_a_mask_of_another_size(mask, position, character):
    rle = compressed(mask)
    counts = bytearray(rle["counts"].encode())
    counts[position % len(counts)] = ord("0") + character
    try:
        decoded = decode_segmentation(rle | {"counts": bytes(counts)}, 6, 7)
    except ExchangeError:
        return
    assert decoded.shape == (6, 7)
