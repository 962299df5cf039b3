from __future__ import annotations

import numpy as np
import pytest
import torch

from samdeblur.models import AtomBatch
from samdeblur.storage import AtomMap, StoreError
from samdeblur.train.crops import CropDataset, collate, crop_loader, orient, orient_atoms

SIZE = 24
SHAPES = {"small": (24, 31), "b/long": (27, 280), "tall": (270, 25), "last": (40, 40)}  # past a chunk's border too


def masks_at(rows, columns, number):
    """Overlapping masks as functions of where a pixel is, (M, ...) bool."""
    return np.stack([(rows // 5 + k * columns // 7 + number) % 4 < 2 for k in range(5)] + [(rows < 12) & (columns > 9)])


@pytest.fixture(scope="module")
def store(tmp_path_factory, make_store):
    """Images whose pixels say where they are: blurred holds row, column, number of the image; sharp the high bits."""
    images = {}
    for number, (key, shape) in enumerate(SHAPES.items()):
        rows, columns = np.indices(shape)
        blurred, sharp = (
            np.stack([part(rows), part(columns), np.full(shape, number)], axis=2).astype(np.uint8)
            for part in (lambda at: at % 256, lambda at: at // 256)
        )
        images[key] = (blurred, sharp, masks_at(rows, columns, number))
    return make_store(tmp_path_factory.mktemp("crops") / "coordinates.zarr", images)


@pytest.fixture(scope="module")
def dataset(store):
    return CropDataset(store, store.keys, SIZE, seed=3, with_atoms=True)


def places(crop):
    """Rows, columns and number of the image of the pixels of a crop."""
    high, low = crop.sharp.astype(int), crop.blurred.astype(int)
    assert (high[..., 2] == low[..., 2]).all()
    return high[..., 0] * 256 + low[..., 0], high[..., 1] * 256 + low[..., 1], low[0, 0, 2]


def orientation(rows, columns):
    """Whether the axes are swapped, and the directions of rows and columns."""
    swapped = rows[0, 1] != rows[0, 0]
    return swapped, *(int(np.sign(at[-1, -1] - at[0, 0])) for at in (rows, columns))


def dense(atoms, n_masks):
    masks = np.zeros((n_masks, *atoms.shape), bool)
    masks[atoms.mask_ids] = atoms.to_masks()
    return masks


def test_blurred_sharp_and_masks_are_of_the_same_pixels_in_all_eight_orientations(dataset):
    seen = set()
    for sample in range(80):
        crop = dataset[sample]
        rows, columns, number = places(crop)
        seen.add(orientation(rows, columns))
        assert rows.shape == crop.atoms.shape == (SIZE, SIZE)
        assert np.array_equal(dense(crop.atoms, 6), masks_at(rows, columns, number)), sample
        assert len(np.unique(rows)) == len(np.unique(columns)) == SIZE
        assert np.ptp(rows) == np.ptp(columns) == SIZE - 1  # one window without gaps
    assert len(seen) == 8


@pytest.mark.parametrize("turn", range(8))
def test_an_orientation_turns_pictures_and_masks_alike(turn, random_masks):
    masks = random_masks(np.random.default_rng(0), 7, 9, 9)
    atoms = orient_atoms(AtomMap.from_masks(masks), turn)
    assert np.array_equal(atoms.to_masks(), [orient(mask, turn) for mask in masks])
    picture = np.random.default_rng(1).integers(0, 256, (9, 9, 3), np.uint8)
    turned = orient(picture, turn)
    flat = [tuple(pixel) for pixel in picture.reshape(-1, 3)]
    assert sorted(map(tuple, turned.reshape(-1, 3))) == sorted(flat)
    assert all(np.array_equal(orient(picture[..., c], turn), turned[..., c]) for c in range(3))


def test_the_eight_orientations_differ():
    picture = np.arange(9).reshape(3, 3)
    assert len({orient(picture, turn).tobytes() for turn in range(8)}) == 8


def same(one, other):
    return (
        np.array_equal(one.blurred, other.blurred)
        and np.array_equal(one.sharp, other.sharp)
        and one.atoms == other.atoms
    )


def test_a_sample_does_not_depend_on_what_was_read_before(store, dataset):
    forward = [dataset[sample] for sample in range(12)]
    again = CropDataset(store, store.keys, SIZE, seed=3, with_atoms=True)
    np.random.default_rng()
    assert all(same(again[sample], forward[sample]) for sample in reversed(range(12)))


def test_another_seed_gives_other_crops(store, dataset):
    other = CropDataset(store, store.keys, SIZE, seed=4, with_atoms=True)
    assert not all(same(other[sample], dataset[sample]) for sample in range(4))


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own(dataset):
    epochs = [[int(places(dataset[4 * epoch + place])[2]) for place in range(4)] for epoch in range(12)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3


def test_windows_reach_every_border(store):
    dataset = CropDataset(store, ["last"], SIZE, seed=0, with_atoms=False)
    found = [places(dataset[sample]) for sample in range(200)]
    tops, lefts = ({int(at[axis].min()) for at in found} for axis in (0, 1))
    assert tops == lefts == set(range(40 - SIZE + 1))


def test_masks_are_read_only_when_asked_for(store, monkeypatch):
    monkeypatch.setattr(type(store), "atoms", None)
    assert CropDataset(store, store.keys, SIZE, seed=0, with_atoms=False)[0].atoms is None


@pytest.mark.parametrize("size", [25, 1000])
def test_crops_larger_than_an_image_are_refused_in_one_line_with_the_image(store, size):
    with pytest.raises(StoreError, match=r"small is 31x24, .* set crop_size to at most 24") as caught:
        CropDataset(store, store.keys, size, seed=0, with_atoms=True)
    assert "\n" not in str(caught.value)
    assert CropDataset(store, ["last"], min(size, 40), seed=0, with_atoms=True)[0].blurred.shape[0] == min(size, 40)


def test_no_images_to_draw_from_are_refused(store):
    with pytest.raises(StoreError, match="no image is ready to train on"):
        CropDataset(store, [], SIZE, seed=0, with_atoms=True)


def test_collate_joins_samples(dataset):
    crops = [dataset[sample] for sample in range(3)]
    batch = collate(crops)
    for name in ("blurred", "sharp"):
        images = getattr(batch, name)
        assert (images.dtype, images.shape) == (torch.uint8, (3, 3, SIZE, SIZE))
        for image, crop in zip(images, crops, strict=True):
            assert np.array_equal(image.permute(1, 2, 0), getattr(crop, name))
    expected = AtomBatch.collate([crop.atoms for crop in crops])
    assert all(map(torch.equal, batch.atoms, expected))
    moved = batch.to(torch.device("cpu"))
    assert moved.blurred.dtype == torch.float32
    assert torch.equal(moved.blurred * 255, batch.blurred.float())
    assert collate([crop._replace(atoms=None) for crop in crops]).atoms is None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gives_consecutive_samples_from_any_start_with_any_workers(dataset, workers):
    batches = list(crop_loader(dataset, 2, first_sample=3, last_sample=8, workers=workers))
    samples = [(3, 4), (5, 6), (7,)]
    assert len(batches) == len(samples)
    for batch, numbers in zip(batches, samples, strict=True):
        expected = collate([dataset[number] for number in numbers])
        assert torch.equal(batch.blurred, expected.blurred)
        assert torch.equal(batch.sharp, expected.sharp)
        assert all(map(torch.equal, batch.atoms, expected.atoms))
