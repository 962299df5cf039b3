from __future__ import annotations

import json

import numpy as np
import pytest
import zarr

from samdeblur.storage import open_store
from samdeblur.storage.format.layout import finish_shard
from samdeblur.storage.sharing.verify import verify_store
from samdeblur.storage.writing.commits import Committer

DATA_ARRAYS = ("atoms", "pairs", "records", "images/blurred", "images/sharp")
INDEX_ARRAYS = ("key", "shape", "digest", "counts", "state", "error", "shard_digest")
SHARDS = [
    f"{name}/c/{block}" + "/0" * (3 if name.startswith("images") else 2)
    for name in DATA_ARRAYS
    for block in range(4)
    if block < 3 or name.startswith("images")  # block 3 holds a quarantined image and one without masks
]
INDEX_CHUNKS = [f"index/{name}/c/0" + {"state": "", "shard_digest": "/0/0"}.get(name, "/0") for name in INDEX_ARRAYS]
METADATA = [f"{name}/zarr.json" for name in (*DATA_ARRAYS, *(f"index/{name}" for name in INDEX_ARRAYS))]


def _problems(case) -> list[str]:
    before = case.files()
    problems = list(verify_store(case.path))
    assert case.files() == before  # nothing is changed
    assert all("\n" not in problem for problem in problems)
    return problems


def test_the_damages_below_cover_every_file(finished_store):
    assert sorted(finished_store.files()) == sorted(
        [*SHARDS, *INDEX_CHUNKS, *METADATA, "zarr.json", "images/zarr.json", "index/zarr.json"]
    )


def test_a_sound_store_gives_no_line(finished_store, store_case, tmp_path):
    assert _problems(finished_store) == []
    empty = store_case.at(tmp_path / "empty.zarr")
    empty.create()
    assert _problems(empty) == []


def test_a_commit_killed_before_the_state_is_written_gives_no_line(store_case, tmp_path, monkeypatch):
    case = store_case.at(tmp_path / "killed.zarr")
    case.create()
    committer = Committer(case.path)
    write = committer._write

    def killed_write(name, rows, values):
        if name == "index/state":
            raise KeyboardInterrupt
        write(name, rows, values)

    monkeypatch.setattr(committer, "_write", killed_write)
    with pytest.raises(KeyboardInterrupt):
        committer.commit([case.stage(committer, 0)])
    committer.close()
    assert (case.path / SHARDS[0]).exists()
    assert _problems(case) == []


@pytest.mark.parametrize("file", [*SHARDS, *INDEX_CHUNKS])
def test_a_flipped_byte_is_named(store_copy, file):
    path = store_copy.path / file
    content = path.read_bytes()
    for where in (0, len(content) // 3, len(content) - 1):
        path.write_bytes(content[:where] + bytes([content[where] ^ 0x40]) + content[where + 1 :])
        assert any(file.split("/c/")[0] in problem for problem in _problems(store_copy))


@pytest.mark.parametrize("file", [*SHARDS, *METADATA, "zarr.json"])
def test_a_deleted_file_is_named(store_copy, file):
    (store_copy.path / file).unlink()
    assert any(file.removesuffix("/zarr.json") in problem for problem in _problems(store_copy))


@pytest.mark.parametrize("file", [*INDEX_CHUNKS, "index/zarr.json", "images/zarr.json"])
def test_a_deleted_piece_of_the_index_or_a_group_is_noticed(store_copy, file):
    (store_copy.path / file).unlink()
    assert _problems(store_copy)


@pytest.mark.parametrize("name", DATA_ARRAYS)
def test_swapped_shards_are_both_named(store_copy, name):
    first, second = [store_copy.path / shard for shard in SHARDS if shard.startswith(f"{name}/c/")][:2]
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])
    problems = _problems(store_copy)
    assert all(any(str(shard) in problem for problem in problems) for shard in (first, second))


@pytest.mark.parametrize("block", [3, 4])
def test_a_shard_the_index_does_not_know_is_named_unless_the_block_is_pending(store_copy, block):
    extra = store_copy.path / f"atoms/c/{block}/0/0"
    extra.parent.mkdir(parents=True, exist_ok=True)
    extra.write_bytes((store_copy.path / "atoms/c/0/0/0").read_bytes())
    problems = _problems(store_copy)
    assert ([str(extra) in problem for problem in problems] == [True]) if block == 3 else problems == []


def _change(case, name, where, change) -> None:
    """Write values with zarr-python and sign the shards anew: what a faulty writer would leave."""
    spec = open_store(case.path).header.arrays[name]
    group = zarr.open_group(case.path, mode="r+")
    array = group[name]
    array[where] = np.asarray(change(array[where]), array.dtype)
    if name in DATA_ARRAYS:
        block = (where[0] if isinstance(where, tuple) else where) // 2
        shard = case.path / next(shard for shard in SHARDS if shard.startswith(f"{name}/c/{block}/"))
        digest = np.frombuffer(finish_shard(shard, spec), np.uint8)
        group["index/shard_digest"][block, DATA_ARRAYS.index(name)] = digest


def _set(value):
    return lambda old: np.full_like(old, value)


_ROW = 0  # the first image has overlapping masks and many pairs
_WRONG = {
    "pairs swapped": ("pairs", (_ROW, slice(0, 2)), lambda rows: rows[::-1]),
    "pairs repeated": ("pairs", (_ROW, 1), lambda row: row * 0 + 1),
    "pair of another atom": ("pairs", (_ROW, 0, 0), _set(9)),
    "pair of no atom": ("pairs", (_ROW, 0, 0), _set(0)),
    "pair of an atom past the last": ("pairs", (_ROW, 0, 0), _set(60000)),
    "pair of a mask past the last": ("pairs", (_ROW, 0, 1), _set(12)),
    "pair of another mask": ("pairs", (_ROW, 0, 1), lambda mask: (mask + 1) % 12),
    "pairs all zero": ("pairs", _ROW, _set(0)),
    "pixel of another atom": ("atoms", (_ROW, 150, 140), lambda atom: atom % 3 + 1),
    "pixel of an atom past the last": ("atoms", (_ROW, 0, 0), _set(60000)),
    "atoms all zero": ("atoms", _ROW, _set(0)),
    "atom of an image without masks": ("atoms", (5, 0, 0), _set(60)),
    "area": ("records", (_ROW, 2, 0), lambda area: area + 1),
    "box x": ("records", (_ROW, 2, 1), lambda x: x + 1),
    "box height": ("records", (_ROW, 2, 4), lambda h: h - 1),
    "records not a number": ("records", (_ROW, 2), _set(np.nan)),
    "blurred pixel": ("images/blurred", (_ROW, 299, 279, 2), lambda value: value ^ 1),
    "fewer masks": ("index/counts", (_ROW, 0), lambda n: n - 1),
    "more atoms": ("index/counts", (_ROW, 1), lambda n: n + 1),
    "fewer atoms": ("index/counts", (_ROW, 1), lambda n: n - 1),
    "more pairs": ("index/counts", (_ROW, 2), lambda n: n + 1),
    "fewer pairs": ("index/counts", (_ROW, 2), lambda n: n - 1),
    "counts of a row": ("index/counts", _ROW, lambda row: row * 0),
    "counts past the array": ("index/counts", _ROW, _set(70000)),
    "counts below zero": ("index/counts", _ROW, _set(-1)),
    "height": ("index/shape", (_ROW, 0), lambda h: h - 1),
    "height past the extent": ("index/shape", (_ROW, 0), _set(513)),
    "shape below zero": ("index/shape", _ROW, _set(-1)),
    "shape of a row": ("index/shape", _ROW, lambda row: row * 0),
    "digest": ("index/digest", _ROW, lambda row: row ^ 1),
    "unknown state": ("index/state", _ROW, _set(7)),
}


@pytest.mark.parametrize(("name", "where", "change"), _WRONG.values(), ids=_WRONG)
def test_wrong_values_are_named_with_the_image(store_copy, name, where, change):
    _change(store_copy, name, where, change)
    key = store_copy.keys[where[0] if isinstance(where, tuple) else where]
    named = "index/shape" if name == "index/shape" else key  # sizes are sealed together
    assert any(named in problem for problem in _problems(store_copy))


@pytest.mark.parametrize("row", [3, 8], ids=["quarantined", "pending"])
def test_an_image_called_done_that_is_not_is_named(store_copy, row):
    _change(store_copy, "index/state", row, _set(1))
    assert any(store_copy.keys[row] in problem for problem in _problems(store_copy))


def test_repeated_and_unreadable_keys_are_named(store_copy):
    _change(store_copy, "index/key", 1, lambda row: row * 0 + zarr.open_group(store_copy.path)["index/key"][0])
    assert any("index/key" in problem and "not unique" in problem for problem in _problems(store_copy))
    _change(store_copy, "index/key", (1, 0), _set(0xFF))
    assert _problems(store_copy)


@pytest.mark.parametrize(
    ("name", "where", "value"),
    [
        ("atoms", ("shape",), [9, 512, 256]),
        ("pairs", ("data_type",), "int32"),
        ("records", ("chunk_grid", "configuration", "chunk_shape"), [3, 4096, 13]),
        ("index/state", ("shape",), [8]),
        ("index/counts", ("chunk_grid",), None),
        ("index/key", ("shape",), [9]),
        ("atoms", ("chunk_grid", "configuration", "chunk_shape"), [0, 512, 512]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_metadata_that_is_not_of_the_format_is_named(store_copy, name, where, value):
    file = store_copy.path / name / "zarr.json"
    content = part = json.loads(file.read_text())
    for step in where[:-1]:
        part = part[step]
    part[where[-1]] = value
    file.write_text(json.dumps(content))
    assert any(str(store_copy.path) in problem for problem in _problems(store_copy))


def test_a_place_with_no_store_is_one_line(tmp_path):
    (problem,) = verify_store(tmp_path / "gone.zarr")
    assert "gone.zarr" in problem
    (problem,) = verify_store(tmp_path)
    assert "not a mask store" in problem
