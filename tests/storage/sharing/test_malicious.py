"""Shares made to harm: each is refused in one line, and little memory is taken for it."""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import traceback
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor

import google_crc32c
import h5py
import numpy as np
import pytest
from numcodecs import Zstd

from samdeblur.storage import ImageNotReady, StoreError, open_store
from samdeblur.storage.format.layout import seal
from samdeblur.storage.sharing.export import export_hdf5, export_zip
from samdeblur.storage.sharing.verify import verify_store

HUGE = 1 << 40


def attempt(path):
    """In a process of its own: (lines said, MB of memory taken)."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = []
    try:
        for line in verify_store(path):
            said.append(line)
        store = open_store(path)
        for key in store.keys[:10]:
            try:
                store.atoms(key)
                store.records(key)
            except (StoreError, ImageNotReady) as error:
                said.append(str(error))
    except (StoreError, FileNotFoundError) as error:
        said.append(str(error))
    except BaseException:
        said.append(traceback.format_exc())
    return said, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


@pytest.fixture(scope="module")
def reader_process():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda path: pool.submit(attempt, str(path)).result()


def edit(name, change):
    def damage(path):
        file = path / name / "zarr.json"
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))

    return damage


def claim_images(path):
    """A number of images that would take terabytes, told by all arrays alike."""
    for file in path.rglob("zarr.json"):
        document = json.loads(file.read_text())
        if document["node_type"] == "array":
            document["shape"][0] = HUGE
            file.write_text(json.dumps(document))


def claim_pixels(path):
    for name in ("atoms", "images/blurred", "images/sharp"):

        def change(document):
            document["shape"][1:3] = [HUGE, HUGE]
            document["chunk_grid"]["configuration"]["chunk_shape"][1:3] = [HUGE, HUGE]

        edit(name, change)(path)


def claim_names(path):
    def change(document):
        document["shape"][1] = HUGE
        document["chunk_grid"]["configuration"]["chunk_shape"][1] = HUGE

    edit("index/key", change)(path)


def as_chunk(content):
    packed = bytes(Zstd(1).encode(content))
    return packed + google_crc32c.value(packed).to_bytes(4, "little")


def bomb_index(path):
    """A sound chunk of two gigabytes of zeros, in 60 kB."""
    (path / "index/counts/c/0/0").write_bytes(as_chunk(np.zeros(1 << 31, np.uint8)))


def claim_counts(path):
    counts = np.full((9, 3), 2**31 - 1, np.int32)
    (path / "index/counts/c/0/0").write_bytes(as_chunk(counts))


def claim_sizes(path):
    shapes = np.full((9, 2), 2**31 - 1, np.int32)
    (path / "index/shape/c/0/0").write_bytes(as_chunk(shapes))
    _seal_again(path, shapes)


def _seal_again(path, shapes):
    store = open_store(path.parent / "sound.zarr")
    keys = store.reader.read("index/key", store.header.arrays["index/key"], ...)

    def change(document):
        document["attributes"]["seal"] = seal(store.header.attributes(), keys, shapes)

    edit("", change)(path)


def bomb_atoms(path):
    """A chunk of the label plane that grows to two gigabytes, in a shard that says so itself."""
    store = open_store(path.parent / "sound.zarr")
    spec = store.header.arrays["atoms"]
    file = path / "atoms" / spec.part_path(0)
    chunk = as_chunk(np.zeros(1 << 31, np.uint8))
    index = np.full((2, 2, 2, 2), 2**64 - 1, np.uint64)
    index[:, 0, 0] = [index.nbytes + 4, len(chunk)]
    table = index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    _sign(path, store, file, table + chunk)


def spans_beyond(path):
    """An index of a shard with chunks far outside it."""
    store = open_store(path.parent / "sound.zarr")
    file = path / "atoms" / store.header.arrays["atoms"].part_path(0)
    index = np.full((2, 2, 2, 2), HUGE, np.uint64)
    _sign(path, store, file, index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little"))


def _sign(path, store, file, content):
    import hashlib

    digest = hashlib.sha256(content).digest()
    file.write_bytes(content + digest)
    digests = store.shard_digests.copy()
    digests[0, 0] = np.frombuffer(digest, np.uint8)
    (path / "index/shard_digest/c/0/0/0").write_bytes(as_chunk(digests))


def deep(path):
    (path / "zarr.json").write_text('{"attributes":' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}")


def deep_recipe(path):
    text = (path / "zarr.json").read_text()
    (path / "zarr.json").write_text(text.replace('"exact"', '{"a":' * 900 + "1" + "}" * 900))


def circle(path):
    shutil.rmtree(path / "atoms/c")
    (path / "atoms/c").symlink_to(path / "atoms")


def circle_of_metadata(path):
    (path / "atoms/zarr.json").unlink()
    (path / "atoms/zarr.json").symlink_to(path / "atoms/zarr.json")


FOLDERS = {
    "images without number": claim_images,
    "pixels without number": claim_pixels,
    "names without end": claim_names,
    "counts without number": claim_counts,
    "sizes without number": claim_sizes,
    "a bomb in the index": bomb_index,
    "a bomb in a shard": bomb_atoms,
    "chunks outside their shard": spans_beyond,
    "deep metadata": deep,
    "deep recipe": deep_recipe,
    "links in a circle": circle,
    "metadata in a circle": circle_of_metadata,
    "floats for atoms": edit("atoms", lambda document: document.update(data_type="float64")),
    "text for atoms": edit("atoms", lambda document: document.update(data_type="string")),
    "another codec": edit("pairs", lambda document: document.update(codecs=[{"name": "vlen-utf8"}])),
    "codecs in codecs": edit(
        "atoms",
        lambda document: document["codecs"][0]["configuration"].update(
            codecs=json.loads(json.dumps(document["codecs"]))
        ),
    ),
    "a negative shape": edit("atoms", lambda document: document.update(shape=[9, -512, 512])),
    "a shape of text": edit("index/key", lambda document: document.update(shape=["9", 40])),
    "a shape of booleans": edit("index/key", lambda document: document.update(shape=[True, True])),
    "a huge block": edit(
        "atoms", lambda document: document["chunk_grid"]["configuration"].update(chunk_shape=[HUGE, 512, 512])
    ),
    "no metadata": lambda path: (path / "pairs/zarr.json").unlink(),
    "a fill value": edit("atoms", lambda document: document.update(fill_value=1)),
}


@pytest.fixture
def copy(whole_store, tmp_path):
    shutil.copytree(whole_store.path, tmp_path / "sound.zarr")
    return shutil.copytree(whole_store.path, tmp_path / "bad.zarr")


def zipped(path):
    target = path.with_name("bad.zarr.zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(path.rglob("*")):
            if file.is_file() and not file.is_symlink():
                archive.write(file, file.relative_to(path).as_posix())
    return target


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("damage", FOLDERS.values(), ids=FOLDERS)
def test_a_malicious_store_is_refused_in_lines_and_little_memory(copy, damage, kind, reader_process):
    damage(copy)
    said, taken = reader_process(copy if kind == "folder" else zipped(copy))
    assert said
    assert not any("\n" in line for line in said)
    assert taken < 150


def escape(archive):
    archive.writestr("../../outside", b"x")


def absolute(archive):
    archive.writestr("/etc/outside", b"x")


def backslashes(archive):
    archive.writestr("..\\outside", b"x")


@pytest.mark.parametrize("entry", [escape, absolute, backslashes])
def test_a_zip_with_paths_that_lead_out_is_refused(copy, entry, reader_process):
    path = zipped(copy)
    with zipfile.ZipFile(path, "a") as archive:
        entry(archive)
    said, _ = reader_process(path)
    assert all("leads out of it" in line and "\n" not in line for line in said)
    assert said


def test_a_zip_that_claims_a_huge_directory_is_refused(copy, reader_process):
    path = zipped(copy)
    content = bytearray(path.read_bytes())
    end = content.rfind(b"PK\x05\x06")
    content[end + 12 : end + 20] = b"\xf0\xff\xff\xff\xf0\xff\xff\xff"
    path.write_bytes(content)
    said, taken = reader_process(path)
    assert said
    assert not any("\n" in line for line in said)
    assert taken < 50


def soft_circle(file):
    del file["atoms"]
    file["atoms"] = h5py.SoftLink("/atoms")


def hard_circle(file):
    del file["index/key"]
    file["index/key"] = file["index"]


def other_file(file):
    del file["atoms"]
    file["atoms"] = h5py.ExternalLink("/etc/passwd", "/")


def external_bytes(file):
    del file["atoms"]
    file.create_dataset("atoms", (9, 512, 512), "u2", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def huge_array(file):
    for name in ("key", "shape", "digest", "counts", "state", "error"):
        old = file[f"index/{name}"]
        shape, dtype = old.shape[1:], old.dtype
        del file[f"index/{name}"]
        file.create_dataset(f"index/{name}", (HUGE, *shape), dtype, chunks=(9, *shape))


def floats(file):
    del file["atoms"]
    file.create_dataset("atoms", (9, 512, 512), "f8", chunks=(1, 256, 256))


def no_attributes(file):
    del file.attrs["attributes"]


def odd_attributes(file):
    file.attrs["block_size"] = "many"


def wide_chunks(file):
    del file["atoms"]
    file.create_dataset("atoms", (9, 512, 512), "u2", chunks=(9, 512, 512))


def gzip_bomb(file):
    """A chunk of a gigabyte of zeros, in a megabyte."""
    packer = zlib.compressobj(9)
    content = b"".join([packer.compress(bytes(1 << 24)) for _ in range(64)] + [packer.flush()])
    file["atoms"].id.write_direct_chunk((0, 0, 0), content)


HDF5 = (
    gzip_bomb,
    soft_circle,
    hard_circle,
    other_file,
    external_bytes,
    huge_array,
    floats,
    no_attributes,
    odd_attributes,
    wide_chunks,
)


@pytest.mark.parametrize("damage", HDF5)
def test_a_malicious_hdf5_file_is_refused_in_one_line(whole_store, tmp_path, damage, reader_process):
    path = tmp_path / "bad.h5"
    export_hdf5(whole_store.path, path)
    path.with_name("bad.h5.sha256").unlink()
    with h5py.File(path, "r+") as file:
        damage(file)
    said, taken = reader_process(path)
    assert said
    assert not any("\n" in line for line in said)
    assert taken < 50


def test_the_sound_ones_are_taken(copy, reader_process, tmp_path, whole_store):
    export_zip(whole_store.path, tmp_path / "sound.zip")
    for path in (copy, zipped(copy), tmp_path / "sound.zip"):
        said, _ = reader_process(path)
        assert all("quarantined" in line for line in said)
