from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import zarr

from samdeblur.storage import (
    AtomMap,
    ImageNotReady,
    MaskStore,
    StoreDamaged,
    StoreError,
    UnknownImage,
    open_store,
    store,
)
from samdeblur.storage.format.layout import RECORD_COLUMNS, pack_text, unpack_text
from samdeblur.storage.sharing.export import export_hdf5
from samdeblur.storage.writing.commits import Committer

DATA_ARRAYS = ("atoms", "pairs", "records", "images/blurred", "images/sharp")
INDEX_FILES = {
    "index/key": "c/0/0",
    "index/shape": "c/0/0",
    "index/digest": "c/0/0",
    "index/counts": "c/0/0",
    "index/state": "c/0",
    "index/error": "c/0/0",
    "index/shard_digest": "c/0/0/0",
}


def _shard(name: str, block: int = 0) -> str:
    return f"{name}/c/{block}" + "/0" * (3 if name.startswith("images") else 2)


def _content(case, key):
    return case.contents[case.keys.index(key)]


def _read_everything(store, key) -> list[np.ndarray]:
    atoms = store.atoms(key)
    return [
        *(atoms.atoms, atoms.pairs, atoms.mask_ids),
        *store.records(key).values(),
        *(store.image(name, key) for name in ("blurred", "sharp")),
        *(np.frombuffer(text, np.uint8) for text in (store.digest(key), store.error(key).encode())),
    ]


def test_masks_records_and_images_come_back(finished_store):
    store = open_store(finished_store.path)
    assert store.ready_keys == list(finished_store.masks)
    for key, masks in finished_store.masks.items():
        expected, found = _content(finished_store, key), store.atoms(key)
        assert np.array_equal(found.to_masks(), masks)
        assert found == AtomMap.from_masks(masks, masks.shape[1:])
        assert store.shape(key) == masks.shape[1:]
        records = store.records(key)
        assert tuple(records) == RECORD_COLUMNS
        for name, column in records.items():
            assert np.array_equal(column, expected.records.get(name, np.full(len(masks), np.nan)), equal_nan=True)
            assert column.dtype == np.float64
        for name in ("blurred", "sharp"):
            image = store.image(name, key)
            assert image.dtype == np.uint8
            assert np.array_equal(image, getattr(expected, name))


def test_windows_are_crops(finished_store):
    store, rng = open_store(finished_store.path), np.random.default_rng(0)
    for key, masks in finished_store.masks.items():
        whole, content = AtomMap.from_masks(masks, masks.shape[1:]), _content(finished_store, key)
        for _ in range(12):
            top, left = rng.integers(masks.shape[1:])
            height, width = rng.integers(1, np.array(masks.shape[1:]) - (top, left) + 1)
            window = int(top), int(left), int(height), int(width)
            assert store.atoms(key, window) == whole.crop(*window)
            assert np.array_equal(
                store.image("sharp", key, window), content.sharp[top : top + height, left : left + width]
            )


@pytest.mark.parametrize("read", [MaskStore.atoms, lambda store, *args: store.image("blurred", *args)])
@pytest.mark.parametrize("window", [(0, 0, 41, 1), (0, 0, 1, 51), (-1, 0, 2, 2), (0, 0, 0, 0)])
def test_windows_outside_the_image_are_refused_though_the_array_goes_on(finished_store, read, window):
    with pytest.raises(ValueError, match=r"does not fit in an image of \(40, 50\)"):
        read(open_store(finished_store.path), "GOPR0372_07_00/000048", window)


def test_the_index_lists_every_image_and_who_can_be_read(finished_store):
    store = open_store(str(finished_store.path))
    assert list(store) == store.keys == finished_store.keys
    assert len(store) == len(finished_store.keys)
    assert "nuit/été_夜" in store
    assert "scene/not_yet" in store
    assert "scene/nothing" not in store
    assert 3 not in store
    assert [store.shape(key) for key in store] == [tuple(shape) for shape in finished_store.shapes]
    assert {key: store.error(key) for key in store if store.error(key)} == finished_store.quarantined


def test_digests_are_those_of_the_blurred_pixels(finished_store):
    store = open_store(finished_store.path)
    for key in store.ready_keys:
        blurred = _content(finished_store, key).blurred
        expected = hashlib.sha256(np.array(blurred.shape[:2], "<i8").tobytes() + blurred.tobytes()).digest()
        assert store.digest(key) == expected


@pytest.mark.parametrize("read", ["atoms", "records", "blurred", "sharp"])
@pytest.mark.parametrize(
    ("key", "error", "words"),
    [
        ("scene/not_yet", ImageNotReady, ["scene/not_yet", "not prepared yet"]),
        ("scene/unreadable", ImageNotReady, ["scene/unreadable", "quarantined", "cannot be read: file is truncated"]),
        ("scene/too_many", ImageNotReady, ["scene/too_many", "quarantined", "70000 atoms"]),
        ("scene/nothing", UnknownImage, ["scene/nothing", "GOPR0372_07_00/000047"]),
    ],
)
def test_what_is_not_there_is_refused_by_name_and_reason(finished_store, read, key, error, words):
    store = open_store(finished_store.path)
    with pytest.raises(error) as caught:
        store.image(read, key) if read in ("blurred", "sharp") else getattr(store, read)(key)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in [*words, str(finished_store.path)])
    assert isinstance(caught.value, KeyError)


def test_an_image_without_masks_is_ready_and_not_missing(finished_store):
    store = open_store(finished_store.path)
    assert store.atoms("scene/without_masks") == AtomMap.empty((17, 256))
    assert all(len(column) == 0 for column in store.records("scene/without_masks").values())


def test_images_that_are_not_stored_are_refused_with_what_to_do(store_case, finished_store, tmp_path):
    header = dataclasses.replace(store_case.header, images=False)
    case = dataclasses.replace(store_case, path=tmp_path / "masks.zarr", header=header)
    assert not (case.create() / "images").exists()
    with pytest.raises(
        StoreError, match=r"masks\.zarr: holds masks without images; add them with samdeblur-prep add-images"
    ):
        open_store(case.path).image("sharp", "scene/small")
    with pytest.raises(StoreError, match=r"'depth'.* blurred, sharp"):
        open_store(finished_store.path).image("depth", "scene/small")


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """Images that count: the row of an image in the store is its red."""

    there: tuple[str, ...]

    def __contains__(self, key):
        return key in self.there

    def image(self, store, name, key):
        image = np.indices((*store.shape(key), 3)).sum(axis=0).astype(np.uint8)
        image[..., 0] = store.position(key)
        return image if name == "blurred" else ~image


@pytest.fixture(params=[True, False], ids=["over its own", "without its own"])
def masks(request, store_case, tmp_path):
    """A store with a pending block, with images and without."""
    header = dataclasses.replace(store_case.header, images=request.param)
    case = dataclasses.replace(store_case, path=tmp_path / "masks.zarr", header=header)
    case.create()
    committer = Committer(case.path)
    committer.commit([case.stage(committer, block) for block in range(case.header.n_blocks - 1)])
    committer.close()
    return open_store(case.path)


def test_images_from_elsewhere_are_cropped_like_its_own(masks):
    joined = masks.with_external_images(Elsewhere(tuple(masks.keys)))
    joined.require_images()
    assert joined.ready_keys == masks.ready_keys
    for key in masks.ready_keys:
        height, width = masks.shape(key)
        for name in ("blurred", "sharp"):
            whole = joined.image(name, key)
            assert np.array_equal(whole, Elsewhere(()).image(masks, name, key))
            window = (height // 2, width // 3, height - height // 2, width - width // 3)
            crop = joined.image(name, key, window)
            assert np.array_equal(crop, whole[window[0] :, window[1] :])
            assert crop.flags.owndata
        with pytest.raises(ValueError, match="does not fit"):
            joined.image("blurred", key, (0, 0, height + 1, width))
    with pytest.raises(StoreError, match=r"'depth'.* blurred, sharp"):
        joined.image("depth", masks.ready_keys[0])


def test_a_store_is_not_changed_by_images_from_elsewhere(masks, store_case, monkeypatch):
    monkeypatch.setattr(store, "TABLE_BYTES", 100)  # both drop tables
    joined = masks.with_external_images(Elsewhere(()))
    for _ in range(2):
        for key in masks.ready_keys:
            assert joined.atoms(key) == masks.atoms(key)
    if masks.header.images:
        key = masks.ready_keys[0]
        assert np.array_equal(masks.image("blurred", key), _content(store_case, key).blurred)
    else:
        with pytest.raises(StoreError, match="masks without images"):
            masks.require_images()


def test_images_without_an_image_elsewhere_are_not_ready(masks):
    some = tuple(masks.keys[1:])  # quarantined and pending ones too
    joined = masks.with_external_images(Elsewhere(some))
    assert joined.ready_keys == [key for key in masks.ready_keys if key in some]
    assert len(joined) == len(masks)
    assert joined.atoms(masks.keys[0]) == masks.atoms(masks.keys[0])
    for key in set(some) - set(masks.ready_keys):
        with pytest.raises(ImageNotReady):
            joined.image("blurred", key)


def test_files_elsewhere_that_changed_are_known_by_it(masks, tmp_path, monkeypatch):
    path = tmp_path / "sharp.png"
    monkeypatch.setattr(Elsewhere, "files", lambda self, key: (path,), raising=False)
    joined, found = masks.with_external_images(Elsewhere(tuple(masks.keys))), []
    for content in (None, b"1", b"12", b"34"):
        if content is not None:
            path.write_bytes(content)
        found.append(joined.images_known_by(masks.ready_keys)["files"])
    assert len(set(found)) == 3
    assert found[2] == found[3]


def test_another_file_of_hdf5_is_of_another_content(whole_store, tmp_path):
    export_hdf5(whole_store.path, tmp_path / "a.h5", images=True)
    before = open_store(tmp_path / "a.h5")
    key = before.ready_keys[0]
    found = before.content(key), before.images_known_by([key])
    with open(tmp_path / "a.h5", "ab") as file:
        file.write(b"\0")
    assert before.content(key) != found[0]
    assert before.images_known_by([key]) != found[1]


def test_images_go_with_the_store_to_another_process(masks):
    there = tuple(masks.keys[:2])
    received = pickle.loads(pickle.dumps(masks.with_external_images(Elsewhere(there))))
    assert received.ready_keys == list(there)
    assert received.image("blurred", there[1], (3, 4, 1, 1)).tolist() == [[[1, 8, 9]]]


def _edit_attributes(**changes):
    def edit(path):
        file = path / "zarr.json"
        content = json.loads(file.read_text())
        content["attributes"] |= changes
        file.write_text(json.dumps(content))

    return edit


def _edit_metadata(name, *where, value):
    def edit(path):
        file = path / name / "zarr.json"
        content = part = json.loads(file.read_text())
        for step in where[:-1]:
            part = part[step]
        part[where[-1]] = value
        file.write_text(json.dumps(content))

    return edit


_GRID = ("chunk_grid", "configuration", "chunk_shape")
_NO_STORES = {
    "empty group": (
        lambda path: (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}'),
        "'attributes' is missing",
    ),
    "no metadata": (lambda path: (path / "zarr.json").unlink(), "zarr.json is missing"),
    "text": (lambda path: (path / "zarr.json").write_text("hello"), "not a mask store"),
    "bytes": (lambda path: (path / "zarr.json").write_bytes(b"\xff\xfe"), "not a mask store"),
    "list": (lambda path: (path / "zarr.json").write_text("[]"), "not a mask store"),
    "no atoms": (lambda path: (path / "atoms/zarr.json").unlink(), "atoms"),
    "future format": (_edit_attributes(format=2), "format 2, this version reads format 1"),
    "altered recipe": (_edit_attributes(recipe={"mode": "fast"}), "fingerprint"),
    "altered fingerprint": (_edit_attributes(fingerprint="0" * 64), "fingerprint"),
    "recipe of another type": (_edit_attributes(recipe=3), "recipe"),
    "seal of another type": (_edit_attributes(seal=3), "not a mask store"),
    "flat keys": (_edit_metadata("index/key", "shape", value=[9]), "not a mask store"),
    "empty blocks": (_edit_metadata("atoms", *_GRID, value=[0, 512, 512]), "not a mask store"),
    "no blocks": (_edit_metadata("atoms", *_GRID, value=3), "not a mask store"),
}


@pytest.mark.parametrize(("damage", "words"), _NO_STORES.values(), ids=_NO_STORES)
def test_a_folder_that_is_no_store_of_this_format_is_refused_in_one_line(store_copy, damage, words):
    damage(store_copy.path)
    with pytest.raises(StoreError) as caught:
        open_store(store_copy.path)
    message = str(caught.value)
    assert str(store_copy.path) in message
    assert words in message
    assert "\n" not in message


def test_a_place_with_nothing_is_not_found_and_a_file_is_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.zarr: no such store"):
        open_store(tmp_path / "gone.zarr")
    (tmp_path / "file.zarr").write_text("hello")
    with pytest.raises(StoreError, match=r"file\.zarr: not a mask store"):
        open_store(tmp_path / "file.zarr")


@pytest.mark.parametrize("name", DATA_ARRAYS)
def test_a_missing_shard_is_damage_and_never_zeros(store_copy, name):
    (store_copy.path / _shard(name)).unlink()
    store = open_store(store_copy.path)
    for key in store_copy.keys[:2]:
        with pytest.raises(StoreDamaged, match="missing") as caught:
            _read_everything(store, key)
        assert name in str(caught.value)
    _read_everything(store, store_copy.keys[2])  # other blocks are not concerned


@pytest.mark.parametrize("name", INDEX_FILES)
def test_a_missing_chunk_of_the_index_never_changes_what_is_read(finished_store, store_copy, name):
    (store_copy.path / name / INDEX_FILES[name]).unlink()
    sound = open_store(finished_store.path)
    try:
        store = open_store(store_copy.path)
    except StoreError:
        return
    for key in sound.ready_keys:
        try:
            found = _read_everything(store, key)
        except (ImageNotReady, StoreDamaged):
            continue
        for mine, theirs in zip(found, _read_everything(sound, key), strict=True):
            np.testing.assert_array_equal(mine, theirs, f"{name} missing, {key}")


@pytest.mark.parametrize("name", [*DATA_ARRAYS, *INDEX_FILES])
def test_a_flipped_byte_is_damage_or_harmless(finished_store, store_copy, name):
    file = store_copy.path / (_shard(name) if name in DATA_ARRAYS else f"{name}/{INDEX_FILES[name]}")
    sound, content = open_store(finished_store.path), file.read_bytes()
    keys = store_copy.keys[:2]
    expected = {key: _read_everything(sound, key) for key in keys}
    damages = []
    for position in np.unique(np.linspace(0, len(content) - 1, 14).astype(int)):
        file.write_bytes(content[:position] + bytes([content[position] ^ 0x24]) + content[position + 1 :])
        for key in keys:
            try:
                found = _read_everything(open_store(store_copy.path), key)
            except StoreDamaged as error:
                damages.append(str(error))
                continue
            for mine, theirs in zip(found, expected[key], strict=True):
                np.testing.assert_array_equal(mine, theirs, f"byte {position} of {file}, {key}")
    assert damages
    assert all(name in message for message in damages)


@pytest.mark.parametrize("name", DATA_ARRAYS)
@pytest.mark.parametrize("size", [0, 5, -1])
def test_a_truncated_shard_is_damage(store_copy, name, size):
    file = store_copy.path / _shard(name)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(StoreDamaged, match=name):
        _read_everything(open_store(store_copy.path), store_copy.keys[0])


def test_a_store_opened_before_a_commit_keeps_its_snapshot_and_a_new_one_sees_it(store_case, tmp_path):
    case = store_case.at(tmp_path / "gopro.zarr")
    before = open_store(case.create())
    committer = Committer(case.path)
    committer.commit([case.stage(committer, 0)])
    committer.close()
    assert before.ready_keys == []
    assert open_store(case.path).ready_keys == case.keys[:2]


def test_a_store_can_be_sent_to_a_spawned_process(finished_store):
    store = open_store(finished_store.path)
    expected = store.atoms("nuit/été_夜")  # read before it is sent: the handles must not travel
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(MaskStore.atoms, store, "nuit/été_夜").result() == expected
        with pytest.raises(ImageNotReady, match="quarantined"):
            pool.submit(MaskStore.atoms, store, "scene/unreadable").result()
    assert pickle.loads(pickle.dumps(store)).atoms("nuit/été_夜") == expected


_I, _F, _BLOCKS = 9, 13, 5  # images, record columns, blocks of two
_AXES = {  # names of the axes; xarray asks for them
    "atoms": ("image", "y", "x"),
    "pairs": ("image", "pair", "side"),
    "records": ("image", "mask", "column"),
    "images/blurred": ("image", "y", "x", "channel"),
    "images/sharp": ("image", "y", "x", "channel"),
    "index/key": ("image", "key_byte"),
    "index/shape": ("image", "side"),
    "index/digest": ("image", "digest_byte"),
    "index/counts": ("image", "count"),
    "index/state": ("image",),
    "index/error": ("image", "error_byte"),
    "index/shard_digest": ("block", "array", "digest_byte"),
}
_FORMAT_1 = {  # array: dtype, shape, inner chunk, shard
    "atoms": ("uint16", (_I, 512, 512), (1, 256, 256), (2, 512, 512)),
    "pairs": ("uint16", (_I, 65536, 2), (1, 2048, 2), (2, 65536, 2)),
    "records": ("float64", (_I, 4096, _F), (1, 128, _F), (2, 4096, _F)),
    "images/blurred": ("uint8", (_I, 512, 512, 3), (1, 256, 256, 3), (2, 512, 512, 3)),
    "images/sharp": ("uint8", (_I, 512, 512, 3), (1, 256, 256, 3), (2, 512, 512, 3)),
    "index/key": ("uint8", (_I, 40), (_I, 40), None),
    "index/shape": ("int32", (_I, 2), (_I, 2), None),
    "index/digest": ("uint8", (_I, 32), (_I, 32), None),
    "index/counts": ("int32", (_I, 3), (_I, 3), None),
    "index/state": ("uint8", (_I,), (_I,), None),
    "index/error": ("uint8", (_I, 160), (_I, 160), None),
    "index/shard_digest": ("uint8", (_BLOCKS, 5, 32), (_BLOCKS, 5, 32), None),
}
_PORTABLE = {"bytes", "zstd", "crc32c", "sharding_indexed", "transpose"}


@pytest.mark.parametrize("name", _FORMAT_1)
def test_arrays_have_the_documented_grids_and_portable_checked_codecs(finished_store, name):
    array = zarr.open_group(finished_store.path, mode="r")[name]
    assert (str(array.dtype), array.shape, array.chunks, array.shards) == _FORMAT_1[name]
    metadata = json.loads((finished_store.path / name / "zarr.json").read_text())
    assert (metadata["zarr_format"], metadata["fill_value"]) == (3, 0)
    assert metadata["dimension_names"] == list(_AXES[name])
    codecs = metadata["codecs"]
    if array.shards:
        (sharding,) = codecs
        assert sharding["name"] == "sharding_indexed"
        assert sharding["configuration"]["index_codecs"][-1]["name"] == "crc32c"
        assert sharding["configuration"]["index_location"] == "end"
        codecs = sharding["configuration"]["codecs"]
    assert codecs[-1]["name"] == "crc32c"
    assert {codec["name"] for codec in codecs} <= _PORTABLE


def test_zarr_python_alone_reads_the_store(finished_store):
    group = zarr.open_group(finished_store.path, mode="r")
    assert sorted(name for name, _ in group.members(None) if name in _FORMAT_1) == sorted(_FORMAT_1)
    keys = [bytes(row).rstrip(b"\0").decode() for row in group["index/key"][:]]
    assert keys == finished_store.keys
    assert [int(s) for s in group["index/state"][:]] == [1, 1, 1, 2, 1, 1, 1, 2, 0]
    assert bytes(group["index/error"][3]).rstrip(b"\0").decode() == finished_store.quarantined[keys[3]]
    assert group["records"].attrs["columns"] == list(RECORD_COLUMNS)
    for row, key in enumerate(keys):
        if key not in finished_store.masks:
            continue
        height, width = group["index/shape"][row]
        n_masks, n_atoms, n_pairs = group["index/counts"][row]
        table = np.zeros((n_atoms + 1, n_masks), bool)
        table[tuple(group["pairs"][row, :n_pairs].T)] = True
        plane = group["atoms"][row]
        assert np.array_equal(table[plane[:height, :width]].transpose(2, 0, 1), finished_store.masks[key])
        assert not plane[height:].any()
        assert not plane[:, width:].any()
        assert np.array_equal(group["records"][row, :n_masks, 0], finished_store.masks[key].sum(axis=(1, 2)))
        assert np.array_equal(group["images/blurred"][row, :height, :width], _content(finished_store, key).blurred)
    for block, digests in enumerate(group["index/shard_digest"][:]):
        for name, digest in zip(DATA_ARRAYS, digests, strict=True):
            shard = finished_store.path / _shard(name, block)
            if not shard.exists():
                assert bytes(digest) == bytes(32)
                continue
            (_, _, inner, whole), content = _FORMAT_1[name], shard.read_bytes()
            index = len(content) - 16 * math.prod(whole) // math.prod(inner) - 4
            assert bytes(digest) == content[index - 32 : index]
            assert bytes(digest) == hashlib.sha256(content[: index - 32] + content[index:]).digest()


def test_attributes_say_what_the_store_is(finished_store):
    attributes = dict(zarr.open_group(finished_store.path, mode="r").attrs)
    recipe = finished_store.header.recipe
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    packed = b"".join(key.encode().ljust(40, b"\0") for key in finished_store.keys)
    sealed = {"format": 1, "dataset": "gopro", "split": "train", "recipe": recipe, "digest": "pixels"}
    sealed_text = json.dumps(sealed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    seal = hashlib.sha256(sealed_text.encode() + packed + finished_store.shapes.astype("<i4").tobytes())
    assert attributes == {
        "seal": seal.hexdigest(),
        "format": 1,
        "dataset": "gopro",
        "split": "train",
        "recipe": recipe,
        "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
        "digest": "pixels",
    }
    assert open_store(finished_store.path).header == finished_store.header


def test_names_and_reasons_are_cut_between_characters():
    for size in range(9):
        packed = pack_text("a夜é", size)
        assert packed.shape == (size,)
        assert unpack_text(packed) == "a夜é"[: (0, 1, 1, 1, 2, 2, 3, 3, 3)[size]]
