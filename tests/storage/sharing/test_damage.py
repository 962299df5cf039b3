"""Every file of a store damaged in every way: verify names it, and reading never gives other masks."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest

from samdeblur.storage import ImageNotReady, StoreError, open_store
from samdeblur.storage.format.chunks import ABSENT, decode_index
from samdeblur.storage.sharing.export import export_hdf5, export_zip
from samdeblur.storage.sharing.verify import verify_store

FLIPS = 4  # positions in each file


def read_all(path):
    """Everything of every image, or the error it gives."""
    store = open_store(path)
    found = {}
    for key in store.keys:
        try:
            images = [store.image(name, key) for name in ("blurred", "sharp")] if store.header.images else []
            found[key] = [store.atoms(key), *store.records(key).values(), *images]
        except (StoreError, ImageNotReady):
            found[key] = None
    return found


def equal(mine, theirs):
    return mine is None or all(
        one == other if not isinstance(one, np.ndarray) else np.array_equal(one, other, equal_nan=True)
        for one, other in zip(mine, theirs, strict=True)
    )


@pytest.fixture(scope="module")
def sound(whole_store):
    return read_all(whole_store.path)


@pytest.fixture
def copy(whole_store, tmp_path):
    return shutil.copytree(whole_store.path, tmp_path / "copy.zarr")


def check(path, sound, what):
    """Verify reports it in single lines, and what can still be read is what was written."""
    problems = list(verify_store(path))
    assert problems, what
    assert not any("\n" in problem for problem in problems)
    try:
        found = read_all(path)
    except (StoreError, FileNotFoundError):
        return problems
    for key, content in found.items():
        assert key in sound, what
        assert equal(content, sound[key]) if sound[key] is not None else content is None, f"{what}: {key}"
    return problems


def files_of(path):
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("array", ["atoms", "pairs", "records", "images", "index", "zarr.json"])
def test_a_flipped_truncated_or_deleted_file_is_named_and_never_read_as_other_masks(copy, sound, array):
    rng = np.random.default_rng(1)
    files = [name for name in files_of(copy) if name.split("/")[0] == array]
    assert files
    for name in files:
        file, meaning = copy / name, None
        content = file.read_bytes()
        if name.endswith("zarr.json"):
            meaning = json.loads(content)
        folder = name.split("/c/")[0].removesuffix("/zarr.json")
        for position in {0, len(content) - 1, *rng.integers(0, len(content), FLIPS).tolist()}:
            flipped = content[:position] + bytes([content[position] ^ (1 << rng.integers(8))]) + content[position + 1 :]
            file.write_bytes(flipped)
            try:
                if meaning is not None and json.loads(flipped) == meaning:
                    continue  # blanks
            except ValueError:
                pass
            problems = check(copy, sound, f"byte {position} of {name}")
            if meaning is None:
                assert any(folder in problem for problem in problems)
        for size in (0, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:size])
            check(copy, sound, f"{name} cut to {size} bytes")
        file.unlink()
        check(copy, sound, f"{name} deleted")
        file.write_bytes(content)
    assert list(verify_store(copy)) == []


def test_any_two_files_swapped_are_named_and_never_read_as_other_masks(copy, sound):
    shards = [name for name in files_of(copy) if "/c/" in name]
    for one, other in itertools.combinations(shards, 2):
        same_array = one.split("/c/")[0] == other.split("/c/")[0]
        if not same_array and not (one.startswith("index") and other.startswith("index")):
            continue
        contents = (copy / one).read_bytes(), (copy / other).read_bytes()
        (copy / one).write_bytes(contents[1])
        (copy / other).write_bytes(contents[0])
        problems = check(copy, sound, f"{one} and {other} swapped")
        assert all(any(name in problem for problem in problems) for name in (one, other)) or not same_array
        (copy / one).write_bytes(contents[0])
        (copy / other).write_bytes(contents[1])


@pytest.mark.parametrize("name", ["atoms", "pairs", "records", "images/sharp"])
def test_a_flipped_byte_is_reported_with_the_image_it_hits(copy, name):
    store = open_store(copy)
    spec = store.header.arrays[name]
    file = copy / name / spec.part_path(0)
    content = file.read_bytes()
    index = decode_index(content[-spec.index_bytes :], spec)
    for position, key in enumerate(store.keys[:2]):
        chunks = index[position].reshape(-1, 2)
        start, size = (int(number) for number in chunks[chunks[:, 0] != ABSENT][0])
        where = start + size // 2
        file.write_bytes(content[:where] + bytes([content[where] ^ 2]) + content[where + 1 :])
        (problem,) = verify_store(copy)
        assert f"{file}: does not match its checksum ({key})" in problem


def test_masks_of_another_store_are_not_taken_for_its_own(copy, sound, store_case, tmp_path):
    store = open_store(copy)
    for name, spec in store.header.data_arrays().items():
        shard = copy / name / spec.part_path(0)
        content = shard.read_bytes()
        shard.write_bytes((copy / name / spec.part_path(1)).read_bytes())
        check(copy, sound, f"another shard of {name}")
        shard.write_bytes(content)


@pytest.mark.parametrize("kind", ["zip", "h5"])
def test_a_flipped_byte_of_a_share_is_named(whole_store, sound, tmp_path, kind):
    path = tmp_path / f"toy.{kind}"
    {"zip": export_zip, "h5": export_hdf5}[kind](whole_store.path, path, images=True)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for position in rng.integers(0, len(content), 40):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        check(path, sound, f"byte {position}")
    for size in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        check(path, sound, f"cut to {size} bytes")
