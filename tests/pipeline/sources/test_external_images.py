"""Images of a dataset for a store without: the same as a store with them, or an error that says why not."""

from __future__ import annotations

import pickle
import shutil
from collections import Counter
from functools import partial

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from samdeblur.pipeline import SourceLost, open_source
from samdeblur.pipeline.sources import external_images
from samdeblur.pipeline.sources import folders as sources
from samdeblur.pipeline.sources.external_images import DatasetImages, with_dataset
from samdeblur.storage import AtomMap, ExternalImageError, StoreError, open_store
from samdeblur.storage.format.layout import Header
from samdeblur.storage.writing.bulk import Row, fill_store, new_extent
from samdeblur.storage.writing.commits import ImageContent, geometry_records

SHAPES = {"night/000002": (40, 300), "night/000010": (270, 33), "day": (24, 32)}
DAY = "day"


@pytest.fixture
def folder(tmp_path, write_pairs):
    return write_pairs(tmp_path / "data", SHAPES)


@pytest.fixture
def make_store(tmp_path, random_masks):
    """(source, images=False, digest=the source's) -> a store of random masks of all its images."""

    def make(source, images=False, digest=None):
        shapes = np.array([source.shape(key) for key in source.keys], np.int32)
        kind = digest or source.digest
        header = Header("toy", source.split, {}, kind, len(shapes), new_extent(shapes), 64, 2, images)

        def row(position):
            pair = source.read(source.keys[position])
            masks = random_masks(np.random.default_rng(position), 5, *shapes[position])
            atoms = AtomMap.from_masks(masks)
            content = ImageContent(atoms, geometry_records(atoms), *((pair.blurred, pair.sharp) if images else ()))
            return Row.done(content, bytes(32) if kind == "none" else pair.digest)

        return fill_store(tmp_path / f"{images}-{kind}.zarr", header, source.keys, shapes, row)

    return make


@pytest.fixture
def joined(folder, make_store):
    source = open_source(str(folder), "test")
    return with_dataset(make_store(source), source, "data")


@pytest.fixture
def decodings(folder, monkeypatch):
    """File in the folder -> how often it was decoded."""
    counted = Counter()

    def count(path):
        counted[path.relative_to(folder).as_posix()] += 1
        return read(path)

    read = sources.read_image
    monkeypatch.setattr(sources, "read_image", count)
    return counted


def refusal(store, key=DAY, name="blurred"):
    with pytest.raises(ExternalImageError) as caught:
        store.image(name, key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("suffix", "digest"), [(".png", "pixels"), (".jpg", "file"), (".png", "none")])
def test_crops_are_those_of_a_store_that_holds_the_images(tmp_path, write_pairs, make_store, suffix, digest):
    source = open_source(str(write_pairs(tmp_path / "data", SHAPES, suffix=suffix)), "test")
    assert digest in (source.digest, "none")
    own, joined = make_store(source, images=True), with_dataset(make_store(source, digest=digest), source, "data")
    assert joined.header.digest == digest
    assert joined.ready_keys == own.ready_keys == sorted(SHAPES)
    rng = np.random.default_rng(0)
    for key in own.keys:
        height, width = own.shape(key)
        for window in [None, *((int(rng.integers(height - 19)), int(rng.integers(width - 19)), 20, 20),) * 3]:
            assert joined.atoms(key, window) == own.atoms(key, window)
            for name in ("blurred", "sharp"):
                mine, theirs = joined.image(name, key, window), own.image(name, key, window)
                assert (mine.dtype, mine.flags.writeable) == (theirs.dtype, theirs.flags.writeable)
                assert np.array_equal(mine, theirs)


def test_pairs_that_the_store_does_not_know_are_of_no_consequence(folder, joined, write_pairs):
    write_pairs(folder, {"night/000003": (24, 32), "another": (24, 32)})
    again = with_dataset(open_store(str(joined.path)), open_source(str(folder), "test"), "data")
    assert again.ready_keys == joined.ready_keys
    assert len(pickle.dumps(again)) == len(pickle.dumps(joined))


def test_crops_of_one_image_take_one_decoding(joined, decodings):
    for _ in range(2):
        for name in ("blurred", "sharp"):
            for window in [(0, 0, 5, 5), None]:
                joined.image(name, DAY, window)[:] = 0  # what is given away is not what is kept
    assert decodings == {"blur/day.png": 1, "sharp/day.png": 1}
    assert joined.image("blurred", DAY).any()


def test_the_pairs_used_last_are_kept_and_one_at_least(joined, decodings, monkeypatch):
    sizes = {key: 2 * 3 * height * width for key, (height, width) in SHAPES.items()}
    monkeypatch.setattr(external_images, "KEPT_BYTES", sizes["night/000002"] + sizes[DAY])
    for key in ("night/000002", DAY, "night/000002", "night/000010", "night/000002", "night/000010", "night/000010"):
        for name in ("blurred", "sharp"):
            joined.image(name, key)
    times = {DAY: 1, "night/000002": 2, "night/000010": 2}
    assert decodings == {f"{side}/{key}.png": n for key, n in times.items() for side in ("blur", "sharp")}


def test_images_are_read_in_the_workers_of_a_loader(joined):
    keys = joined.ready_keys
    expected = [joined.image("sharp", key) for key in keys]
    assert len(pickle.dumps(joined)) < 2000  # no image goes along
    read = partial(joined.image, "sharp")
    loader = DataLoader(keys, None, num_workers=1, collate_fn=read, multiprocessing_context="forkserver")
    assert all(map(np.array_equal, loader, expected))


def test_another_image_than_the_masks_were_made_of_is_named(folder, joined):
    file = folder / "blur/day.png"
    random_image = cv2.imread(str(file))
    random_image[3, 4, 1] ^= 1
    cv2.imwrite(str(file), random_image)
    for name in ("blurred", "sharp", "sharp"):
        message = refusal(joined, name=name)
        assert message.startswith("data: day: its masks are of another image")
        assert "restore the image" in message
    assert joined.image("blurred", "night/000002").any()


def test_files_of_lossy_images_are_compared_by_their_bytes(tmp_path, write_pairs, make_store):
    source = open_source(str(write_pairs(tmp_path / "data", SHAPES, suffix=".jpg")), "test")
    joined = with_dataset(make_store(source), source, "data")
    with open(tmp_path / "data/blur/day.jpg", "ab") as file:
        file.write(b"\0")  # decodes as before
    assert "another image" in refusal(joined)


@pytest.mark.parametrize("digest", ["pixels", "none"])
def test_images_of_another_size_are_named_with_both(folder, make_store, save, random_image, digest):
    source = open_source(str(folder), "test")
    joined = with_dataset(make_store(source, digest=digest), source, "data")
    for side in ("blur", "sharp"):
        save(folder / side / "day.png", random_image(0, 25, 33))
    assert "data: day: its masks are 32x24, the image in the dataset is 33x25;" in refusal(joined)


def test_without_digests_any_image_of_the_size_is_taken(folder, make_store, save, random_image):
    source = open_source(str(folder), "test")
    joined = with_dataset(make_store(source, digest="none"), source, "data")
    save(folder / "blur/day.png", random_image(9, 24, 32))
    assert np.array_equal(joined.image("blurred", DAY), random_image(9, 24, 32))


@pytest.mark.parametrize("side", ["blur", "sharp"])
@pytest.mark.parametrize("damage", ["gone", "cut", "no image"])
def test_files_that_cannot_be_read_are_named(folder, joined, side, damage):
    file = folder / side / "day.png"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:60] if damage == "cut" else b"text")
    message = refusal(joined)
    assert all(words in message for words in ("data: day: ", str(file), "restore the image"))


def test_a_disk_that_is_gone_is_no_fault_of_an_image(folder, joined):
    shutil.rmtree(folder)
    with pytest.raises(SourceLost, match="cannot be read now"):
        joined.image("blurred", DAY)


def test_images_that_the_dataset_lacks_are_not_ready(folder, make_store):
    masks = make_store(open_source(str(folder), "test"))
    (folder / "blur/day.png").unlink()
    joined = with_dataset(masks, open_source(str(folder), "test", skip_unpaired=True), "data")
    assert joined.ready_keys == ["night/000002", "night/000010"]
    assert joined.atoms(DAY).n_masks
    message = refusal(joined)
    assert all(words in message for words in ("data: no image of day", str(masks.path)))


def test_a_dataset_without_any_image_of_the_store_is_refused(folder, make_store, tmp_path, write_pairs):
    masks = make_store(open_source(str(folder), "test"))
    other = open_source(str(write_pairs(tmp_path / "other", {"night": (24, 32)})), "test")
    with pytest.raises(
        StoreError, match=r"of .*pixels\.zarr, such as day; the folder's are such as night: name the folder, and list"
    ):
        with_dataset(masks, other, "other")


def test_digests_of_another_kind_are_refused(folder, make_store, tmp_path, write_pairs):
    masks = make_store(open_source(str(folder), "test"))
    lossy = open_source(str(write_pairs(tmp_path / "lossy", SHAPES, suffix=".jpg")), "test")
    with pytest.raises(StoreError, match=r"of pixels, those of lossy of file; they cannot be compared"):
        with_dataset(masks, lossy, "lossy")


def test_the_same_key_in_another_store_is_compared_anew(folder, make_store, tmp_path, write_pairs):
    source = open_source(str(folder), "test")
    shared = DatasetImages(source, "data")
    assert make_store(source).with_external_images(shared).image("blurred", DAY).shape == (24, 32, 3)
    other = open_source(str(write_pairs(tmp_path / "other", SHAPES | {DAY: (30, 30)})), "test")
    assert "its masks are 30x30" in refusal(make_store(other, images=True).with_external_images(shared))


def test_procedural_scenes_are_a_dataset_too(make_store):
    source = open_source("worlds:2:64", "test")
    own, joined = make_store(source, images=True), with_dataset(make_store(source), source, "worlds:2:64")
    for key in own.keys:
        assert np.array_equal(joined.image("sharp", key), own.image("sharp", key))
