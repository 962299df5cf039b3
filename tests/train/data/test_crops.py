from __future__ import annotations

import numpy as np
import pytest
import torch

from samdeblur.models import AtomBatch
from samdeblur.storage import AtomMap, StoreDamaged, StoreError
from samdeblur.train.data import loader
from samdeblur.train.data.crops import (
    CropDataset,
    Cutting,
    Share,
    collate,
    orient,
    orient_atoms,
    shifted_masks,
    tile_starts,
)
from samdeblur.train.data.loader import crop_loader

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
    return CropDataset(store, store.keys, Cutting(SIZE), seed=3, with_atoms=True)


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
def test_an_orientation_turns_images_and_masks_alike(turn, random_masks):
    masks = random_masks(np.random.default_rng(0), 7, 9, 9)
    atoms = orient_atoms(AtomMap.from_masks(masks), turn)
    assert np.array_equal(atoms.to_masks(), [orient(mask, turn) for mask in masks])
    image = np.random.default_rng(1).integers(0, 256, (9, 9, 3), np.uint8)
    turned = orient(image, turn)
    flat = [tuple(pixel) for pixel in image.reshape(-1, 3)]
    assert sorted(map(tuple, turned.reshape(-1, 3))) == sorted(flat)
    assert all(np.array_equal(orient(image[..., c], turn), turned[..., c]) for c in range(3))


def test_the_eight_orientations_differ():
    image = np.arange(9).reshape(3, 3)
    assert len({orient(image, turn).tobytes() for turn in range(8)}) == 8


def same(one, other):
    return (
        np.array_equal(one.blurred, other.blurred)
        and np.array_equal(one.sharp, other.sharp)
        and one.atoms == other.atoms
    )


def test_a_sample_does_not_depend_on_what_was_read_before(store, dataset):
    forward = [dataset[sample] for sample in range(12)]
    again = CropDataset(store, store.keys, Cutting(SIZE), seed=3, with_atoms=True)
    np.random.default_rng()
    assert all(same(again[sample], forward[sample]) for sample in reversed(range(12)))


def test_another_seed_gives_other_crops(store, dataset):
    other = CropDataset(store, store.keys, Cutting(SIZE), seed=4, with_atoms=True)
    assert not all(same(other[sample], dataset[sample]) for sample in range(4))


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own(dataset):
    epochs = [[int(places(dataset[4 * epoch + place])[2]) for place in range(4)] for epoch in range(12)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3


def test_windows_reach_every_border(store):
    dataset = CropDataset(store, ["last"], Cutting(SIZE), seed=0, with_atoms=False)
    found = [places(dataset[sample]) for sample in range(200)]
    tops, lefts = ({int(at[axis].min()) for at in found} for axis in (0, 1))
    assert tops == lefts == set(range(40 - SIZE + 1))


def test_masks_are_read_only_when_asked_for(store, monkeypatch):
    monkeypatch.setattr(type(store), "atoms", None)
    assert CropDataset(store, store.keys, Cutting(SIZE), seed=0, with_atoms=False)[0].atoms is None


def test_images_smaller_than_the_crop_are_continued_by_reflection_all_three(store):
    dataset = CropDataset(store, store.keys, Cutting(40), seed=3, with_atoms=True)
    assert dataset.n_small == 3
    for sample in range(16):
        crop = dataset[sample]
        rows, columns, number = places(crop)
        assert rows.shape == crop.atoms.shape == (40, 40)
        assert np.array_equal(dense(crop.atoms, 6), masks_at(rows, columns, number)), sample
        height, _ = list(SHAPES.values())[number]
        assert set(np.unique(rows)) >= set(range(height)) if height <= 40 else np.ptp(rows) == 39
        assert np.abs(np.diff(rows, axis=0)).max() <= 1  # reflected, not repeated or filled
        assert np.abs(np.diff(columns, axis=1)).max() <= 1
    (small,) = (CropDataset(store, [key], Cutting(40), seed=0, with_atoms=True) for key in ["last"])
    assert small.n_small == 0


@pytest.mark.parametrize("size", [41, 1000])
def test_a_crop_larger_than_all_images_is_refused_in_one_line(store, size):
    with pytest.raises(StoreError, match=r"the largest has 40x40\); set crop_size to at most 40") as caught:
        CropDataset(store, store.keys, Cutting(size), seed=0, with_atoms=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("side", "tile", "starts"),
    [(720, 512, [0, 208]), (1280, 512, [0, 256, 512, 768]), (512, 512, [0]), (300, 512, [0]), (513, 512, [0, 1])],
)
def test_tiles_are_half_a_tile_apart_and_end_where_the_image_does(side, tile, starts):
    assert tile_starts(side, tile) == starts


def test_windows_of_subimages_lie_in_a_tile_and_in_every_tile(store):
    dataset = CropDataset(store, ["last"], Cutting(8, subimage=16), seed=0, with_atoms=False)
    tops = {int(places(dataset[sample])[0].min()) for sample in range(400)}
    assert tops == set(range(33))  # tiles start at 0, 8, 16 and 24
    narrow = CropDataset(store, ["last"], Cutting(15, subimage=16), seed=0, with_atoms=False)
    tops = {int(places(narrow[sample])[0].min()) for sample in range(200)}
    assert tops == {start + shift for start in (0, 8, 16, 24) for shift in (0, 1)}


def test_several_samples_in_a_row_are_of_one_image_with_windows_of_their_own(store):
    dataset = CropDataset(store, store.keys, Cutting(SIZE, per_image=3), seed=3, with_atoms=False)
    found = [places(dataset[sample]) for sample in range(24)]
    numbers = [int(number) for _, _, number in found]
    assert numbers == [number for number in numbers[::3] for _ in range(3)]
    assert sorted(numbers[:12:3]) == [0, 1, 2, 3]
    assert len({(int(rows.min()), int(columns.min()), *orientation(rows, columns)) for rows, columns, _ in found}) > 12


def test_the_released_mistake_turns_masks_otherwise_only_where_images_are_transposed(store, dataset):
    wrong = CropDataset(store, store.keys, Cutting(SIZE, misrotated=True), seed=3, with_atoms=True)
    seen = set()
    for sample in range(24):
        right, mistaken = dataset[sample], wrong[sample]
        assert np.array_equal(right.blurred, mistaken.blurred)
        rows, columns, _ = places(right)
        transposed = orientation(rows, columns)[0]
        seen.add(bool(transposed))
        expected = np.rot90(right.atoms.atoms.T) if transposed else right.atoms.atoms
        assert np.array_equal(mistaken.atoms.atoms, expected)
        assert np.array_equal(mistaken.atoms.pairs, right.atoms.pairs)
    assert seen == {True, False}


def test_masks_that_move_do_so_one_by_one_by_the_seed_and_images_stay(store, dataset):
    moving = Cutting(SIZE, shift=2.0)
    shifted = CropDataset(store, store.keys, moving, seed=3, with_atoms=True)
    crops = [(dataset[sample], shifted[sample]) for sample in range(12)]
    for still, moved in crops:
        assert np.array_equal(still.blurred, moved.blurred)
        assert np.array_equal(still.sharp, moved.sharp)
        assert still.dropout_seed == moved.dropout_seed
    assert all(still.atoms != moved.atoms for still, moved in crops)
    again = CropDataset(store, store.keys, moving, seed=3, with_atoms=True)
    assert all(same(again[sample], moved) for sample, (_, moved) in reversed(list(enumerate(crops))))


def test_a_mask_moves_by_what_was_asked_for_at_most_in_every_direction():
    true = np.zeros((3000, 20, 22), bool)
    true[:, 8:12, 8:14] = True
    moved = shifted_masks(AtomMap.from_masks(true), 3.0, np.random.default_rng(0)).to_masks()
    assert (moved.sum(axis=(1, 2)) == 24).all()
    steps = np.array([np.argwhere(mask)[0] for mask in moved]) - (8, 8)
    assert np.abs(steps).max() == 3
    assert np.abs(steps.mean(axis=0)).max() < 0.1
    assert np.abs(steps).mean() == pytest.approx(1.5 * 2 / np.pi, abs=0.15)  # the mean of |cos|, and of 0 to 3 pixels
    assert {tuple(np.sign(step)) for step in steps.tolist()} == {(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)}


def test_masks_at_an_edge_still_reach_it_and_keep_their_numbers_when_others_leave():
    masks = np.zeros((3, 16, 16), bool)
    masks[0, :8], masks[1, 0, 0], masks[2] = True, True, True
    atoms = AtomMap.from_masks(masks)
    atoms = AtomMap(atoms.atoms, atoms.pairs, np.array([4, 7, 9], np.int32))
    lost = 0
    for seed in range(20):
        moved = shifted_masks(atoms, 4.0, np.random.default_rng(seed))
        planes = dict(zip(moved.mask_ids.tolist(), moved.to_masks(), strict=True))
        assert planes[9].all()
        assert planes[4][0].all()
        assert not planes[4][-1].any()
        lost += 7 not in planes
    assert 0 < lost < 20
    none = shifted_masks(AtomMap.empty((4, 5)), 2.0, np.random.default_rng(0))
    assert none == AtomMap.empty((4, 5))


def test_dropout_seeds_follow_from_seed_and_sample_and_reach_the_batch(store, dataset):
    crops = [dataset[sample] for sample in (5, 6, 5)]
    assert crops[0].dropout_seed == crops[2].dropout_seed != crops[1].dropout_seed
    assert collate(crops).atoms.seeds.tolist() == [crop.dropout_seed for crop in crops]
    other = CropDataset(store, store.keys, Cutting(SIZE), seed=4, with_atoms=True)
    assert other[5].dropout_seed != crops[0].dropout_seed


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_processes_of_a_run_share_the_samples_of_each_part_of_each_step(world, parts):
    shares = [list(Share(8, 3, 5, parts, rank, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {len(Share(8, 3, 5, parts, 0, world))} == {3 * parts}
    for place, numbers in enumerate(zip(*shares, strict=True)):
        start = 16 + place * 8 // parts
        assert sorted(n for mine in numbers for n in mine) == list(range(start, start + 8 // parts))
        assert all(mine == list(range(start + rank, start + 8 // parts, world)) for rank, mine in enumerate(numbers))


def test_no_images_to_draw_from_are_refused(store):
    with pytest.raises(StoreError, match="no image is ready to train on"):
        CropDataset(store, [], Cutting(SIZE), seed=0, with_atoms=True)


def test_collate_joins_samples(dataset):
    crops = [dataset[sample] for sample in range(3)]
    batch = collate(crops)
    for name in ("blurred", "sharp"):
        images = getattr(batch, name)
        assert (images.dtype, images.shape) == (torch.uint8, (3, 3, SIZE, SIZE))
        for image, crop in zip(images, crops, strict=True):
            assert np.array_equal(image.permute(1, 2, 0), getattr(crop, name))
    expected = AtomBatch.collate([crop.atoms for crop in crops], [crop.dropout_seed for crop in crops])
    assert all(map(torch.equal, batch.atoms, expected))
    moved = batch.to(torch.device("cpu"))
    assert moved.blurred.dtype == torch.float32
    assert torch.equal(moved.blurred * 255, batch.blurred.float())
    assert collate([crop._replace(atoms=None) for crop in crops]).atoms is None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gives_consecutive_samples_from_any_start_with_any_workers(dataset, workers):
    batches = list(crop_loader(dataset, Share(2, first_step=2, last_step=4), workers))
    samples = [(2, 3), (4, 5), (6, 7)]
    assert len(batches) == len(samples)
    for batch, numbers in zip(batches, samples, strict=True):
        expected = collate([dataset[number] for number in numbers])
        assert torch.equal(batch.blurred, expected.blurred)
        assert torch.equal(batch.sharp, expected.sharp)
        assert all(map(torch.equal, batch.atoms, expected.atoms))


def test_an_image_that_cannot_be_read_is_no_worker_that_died(tmp_path, make_store, monkeypatch):
    """Its worker ends in good order just then; whoever asks how at that moment may hear anything."""
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    damaged = make_store(tmp_path / "damaged.zarr", {"x": (image, image, np.zeros((0, 30, 30), bool))})
    dataset = CropDataset(damaged, ["x"], Cutting(SIZE), 0, with_atoms=False)
    (tmp_path / "damaged.zarr/images/sharp/c/0/0/0/0").unlink()
    monkeypatch.setattr(loader, "_how_a_worker_died", lambda workers: loader.LoaderFailed("it ended with 255"))
    with pytest.raises(StoreDamaged, match="this shard is missing"):
        list(crop_loader(dataset, Share(2, 1, 2), 1))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_said_in_one_line_from_a_worker_too(tmp_path, make_store, workers):
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    damaged = make_store(tmp_path / "damaged.zarr", {"x": (image, image, np.zeros((0, 30, 30), bool))})
    dataset = CropDataset(damaged, ["x"], Cutting(SIZE), 0, with_atoms=False)
    (tmp_path / "damaged.zarr/images/sharp/c/0/0/0/0").unlink()
    with pytest.raises(StoreDamaged, match=r"images/sharp/c/0/0/0/0: this shard is missing") as caught:
        list(crop_loader(dataset, Share(2, 1, 2), workers))
    assert "\n" not in str(caught.value)
