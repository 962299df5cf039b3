from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samdeblur.pipeline import BadImage, FolderSource, SourceError, open_source
from samdeblur.pipeline.sources.base import SourceLost
from samdeblur.storage import decode

SHAPES = {"night/000002": (9, 8), "night/000010": (7, 11), "day": (8, 8)}


@pytest.mark.parametrize("inside", [".", "test"], ids=["in the root", "in the split's folder"])
@pytest.mark.parametrize("sharp", ["sharp", "target", "gt"])
@pytest.mark.parametrize("blurred", ["blur", "blurred", "input", "lq"])
def test_pairs_are_found_in_folders_of_every_naming(tmp_path, write_pairs, random_image, blurred, sharp, inside):
    write_pairs(tmp_path / inside, SHAPES, blurred, sharp)
    source = open_source(str(tmp_path), "test")
    assert source.keys == sorted(SHAPES)
    assert (source.dataset, source.split, source.digest) == (tmp_path.name, "test", "pixels")
    for seed, key in enumerate(SHAPES):
        pair = source.read(key)
        assert np.array_equal(pair.sharp, random_image(seed, *SHAPES[key]))
        assert pair.blurred.shape == pair.sharp.shape
        assert not np.array_equal(pair.blurred, pair.sharp)


def test_the_split_folder_goes_before_the_root(tmp_path, write_pairs):
    write_pairs(tmp_path, {"of_the_root": (8, 8)})
    write_pairs(tmp_path / "test", {"of_the_split": (8, 8)})
    assert open_source(str(tmp_path), "test").keys == ["of_the_split"]
    with pytest.raises(SourceError, match="no split 'train' there"):  # it may be misspelt
        open_source(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("blurred", "sharp"), [(".png", ".bmp"), (".PNG", ".png"), (".tif", ".TIFF"), (".jpg", ".png")]
)
def test_the_suffixes_of_a_pair_may_differ(tmp_path, save, random_image, blurred, sharp):
    save(tmp_path / f"input/a.b{blurred}", random_image(0, 9, 8))
    save(tmp_path / f"gt/a.b{sharp}", random_image(1, 9, 8))
    source = open_source(str(tmp_path), "test")
    assert source.keys == ["a.b"]
    assert np.array_equal(source.read("a.b").sharp, random_image(1, 9, 8))


def test_files_that_are_no_images_and_hidden_files_are_left_out(tmp_path, write_pairs, save, random_image):
    write_pairs(tmp_path, {"a": (8, 8)})
    (tmp_path / "blur/Thumbs.db").write_bytes(b"")
    (tmp_path / "blur/list.txt").write_text("a")
    save(tmp_path / "blur/._b.png", random_image(0, 8, 8))
    assert open_source(str(tmp_path), "test").keys == ["a"]


@pytest.mark.parametrize("layout", ["auto", "gopro"])
def test_gopro_pairs_blur_and_not_blur_gamma_with_sharp(tmp_path, save, random_image, layout):
    frames = [("GOPR0372_07_00", "000047"), ("GOPR0372_07_00", "000048"), ("GOPR0384_11_00", "000047")]
    for number, (sequence, frame) in enumerate(frames):
        for kind, folder in enumerate(["sharp", "blur", "blur_gamma"]):
            save(tmp_path / "train" / sequence / folder / f"{frame}.png", random_image(3 * number + kind, 9, 8))
    save(tmp_path / "test/GOPR0001/sharp/000001.png", random_image(0, 9, 8))  # of another split, and unpaired
    source = open_source(str(tmp_path), "train", layout)
    assert (source.dataset, source.split) == ("GoPro", "train")
    assert source.keys == [f"{sequence}/{frame}" for sequence, frame in frames]
    for number, key in enumerate(source.keys):
        pair = source.read(key)
        assert np.array_equal(pair.sharp, random_image(3 * number, 9, 8))
        assert np.array_equal(pair.blurred, random_image(3 * number + 1, 9, 8))


@pytest.fixture
def uneven(tmp_path, save, random_image):
    """Four blurred and four sharp images whose positions agree and whose names do not."""
    for number in range(4):
        save(tmp_path / f"blur/{number}.png", random_image(number, 9, 8))
        save(tmp_path / f"sharp/{number + 1}.png", random_image(number + 1, 9, 8))
    return tmp_path


def test_unpaired_names_are_listed_with_what_they_lack(uneven):
    with pytest.raises(SourceError) as caught:
        open_source(str(uneven), "test")
    message = str(caught.value)
    assert all(
        part in message for part in (str(uneven), "2 images", "0 (no sharp)", "4 (no blurred)", "--skip-unpaired")
    )
    assert "\n" not in message


def test_a_long_list_of_unpaired_names_is_cut(tmp_path, write_pairs):
    write_pairs(tmp_path, {f"{number:02d}": (2, 2) for number in range(13)})
    for number in range(12):
        (tmp_path / f"sharp/{number:02d}.png").unlink()
    with pytest.raises(SourceError, match=r"12 images .* 00 \(no sharp\).* 07 \(no sharp\) and 4 more"):
        open_source(str(tmp_path), "test")


def test_pairs_are_matched_by_name_never_by_position(uneven):
    source = open_source(str(uneven), "test", skip_unpaired=True)
    assert source.keys == ["1", "2", "3"]
    for key in source.keys:
        pair = source.read(key)
        assert np.array_equal(pair.blurred, pair.sharp)  # equal images have equal names here


def test_unpaired_frames_of_gopro_are_listed_with_their_sequence(tmp_path, save, random_image):
    for folder, frame in [("blur", 1), ("sharp", 1), ("blur", 2)]:
        save(tmp_path / f"train/GOPR0001/{folder}/{frame}.png", random_image(0, 9, 8))
    with pytest.raises(SourceError, match=r"GOPR0001/2 \(no sharp\)"):
        open_source(str(tmp_path), "train")
    assert open_source(str(tmp_path), "train", skip_unpaired=True).keys == ["GOPR0001/1"]


def test_two_images_of_one_name_are_ambiguous(tmp_path, write_pairs, save, random_image):
    write_pairs(tmp_path, {"a": (8, 8)})
    save(tmp_path / "blur/a.jpg", random_image(0, 8, 8))
    with pytest.raises(SourceError, match=r"a\.png.*a\.jpg.* same name"):
        open_source(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("folders", "arguments", "error", "said"),
    [
        ([], {}, SourceError, "an empty folder; mount the disk"),
        ([], {"layout": "gopro"}, SourceError, "an empty folder; mount the disk"),
        (
            ["images"],
            {},
            SourceError,
            "no known layout; two folders named blur and sharp.* one of gopro: .*; pairs: folders blur",
        ),
        (
            ["blur"],
            {},
            SourceError,
            "no known layout; two folders named blur and sharp.* one of gopro: .*; pairs: folders blur",
        ),
        (["blur", "sharp"], {}, SourceError, r"no images \(\.bmp"),
        (["test/a/blur", "test/a/sharp"], {}, SourceError, r"no images \(\.bmp.* gopro layout"),
        (["blur", "sharp"], {"layout": "red"}, SourceError, "choose from auto, sample, worlds, gopro, realblur-j"),
        (["blur"], {"layout": "pairs"}, SourceError, r"no folders blur\|.* and sharp\|"),
        (["train/a/blur", "train/a/sharp"], {"layout": "gopro"}, SourceError, "no split 'test' there"),
        (None, {}, FileNotFoundError, "no such folder"),
    ],
    ids=str,
)
def test_a_folder_without_pairs_is_refused_with_what_was_expected(tmp_path, folders, arguments, error, said):
    root = tmp_path / "data"
    for folder in folders or []:
        (root / folder).mkdir(parents=True)
    if folders == []:
        root.mkdir()
    with pytest.raises(error, match=said) as caught:
        open_source(str(root), "test", **arguments)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value) or "layout" in arguments


def test_the_word_sample_is_the_embedded_source_and_a_folder_of_that_name_needs_its_layout(
    tmp_path, write_pairs, monkeypatch
):
    write_pairs(tmp_path / "sample", {"a": (8, 8)})
    monkeypatch.chdir(tmp_path)
    assert len(open_source("sample", "test").keys) > 1
    assert open_source("sample", "test", "pairs").keys == ["a"]
    assert open_source("./sample", "test").keys == ["a"]
    with pytest.raises(SourceError, match="no split 'val'"):
        open_source("sample", "val")


def test_the_name_of_the_dataset_can_be_given(tmp_path, write_pairs):
    assert open_source(str(write_pairs(tmp_path, SHAPES)), "test", dataset="mine").dataset == "mine"


def test_a_file_that_is_no_image_and_a_missing_one_are_bad_images(tmp_path, write_pairs):
    source = open_source(str(write_pairs(tmp_path, {"a": (9, 8), "b": (7, 8)})), "test")
    (tmp_path / "blur/a.png").write_text("hello")
    (tmp_path / "blur/b.png").unlink()
    for key, reason in (("a", "not an image"), ("b", "No such file or directory")):
        with pytest.raises(BadImage, match=rf"blur/{key}\.png: {reason}"):
            source.read(key)


def test_an_image_that_cannot_be_opened_has_the_shape_of_its_counterpart(tmp_path, write_pairs):
    source = open_source(str(write_pairs(tmp_path, {"a": (9, 8), "b": (7, 8), "c": (6, 8)})), "test")
    (tmp_path / "blur/a.png").write_text("hello")
    (tmp_path / "blur/b.png").unlink()
    (tmp_path / "sharp/c.png").unlink()
    assert [source.shape(key) for key in "abc"] == [(9, 8), (7, 8), (6, 8)]
    (tmp_path / "sharp/a.png").write_bytes(b"")
    with pytest.raises(BadImage, match=r"blur/a\.png: not an image"):  # what is wrong with the blurred one
        source.shape("a")


LOST = ["ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "ENODEV", "EMFILE", "ENFILE"]


@pytest.fixture
def failing_disk(monkeypatch):
    """(error number, words) -> None: from now on opening an image whose path holds the words fails."""

    def fail(code, words=""):
        def opened(path):
            if words in str(path):
                raise OSError(code, os.strerror(code), str(path))
            return open(path, "rb")

        monkeypatch.setattr(decode, "open_regular", opened)

    return fail


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("side", ["blur", "sharp"])
def test_a_lost_disk_is_not_a_bad_image(tmp_path, write_pairs, failing_disk, name, side):
    source = open_source(str(write_pairs(tmp_path, {"a": (9, 8)})), "test")
    code = getattr(errno, name)
    failing_disk(code, f"/{side}/")
    with pytest.raises(SourceLost) as caught:
        source.read("a")
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert type(error) is SourceLost
        assert (error.errno, error.filename) == (code, str(tmp_path / side / "a.png"))
        assert error.strerror.startswith(f"{os.strerror(code)}; {tmp_path} cannot be read now")
    if side == "blur":
        with pytest.raises(SourceLost):
            source.shape("a")
    else:
        assert source.shape("a") == (9, 8)


@pytest.mark.parametrize("name", ["EIO", "EACCES", "ELOOP", "ENAMETOOLONG"])
def test_a_file_that_cannot_be_read_on_a_disk_that_can_is_a_bad_image(tmp_path, write_pairs, failing_disk, name):
    source = open_source(str(write_pairs(tmp_path, {"a": (9, 8)})), "test")
    failing_disk(getattr(errno, name))
    for use in (source.read, source.shape):
        with pytest.raises(BadImage, match=rf"blur/a\.png: {os.strerror(getattr(errno, name))}$"):
            use("a")


def test_a_disk_that_goes_while_an_image_is_read_is_lost(tmp_path, write_pairs, monkeypatch):
    class Stale(io.FileIO):
        def readinto(self, *_):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    source = open_source(str(write_pairs(tmp_path, {"a": (9, 8)})), "test")
    monkeypatch.setattr(decode, "open_regular", lambda path: io.BufferedReader(Stale(path)))
    for use in (source.read, source.shape):
        with pytest.raises(SourceLost, match="Stale"):
            use("a")


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a file"])
def test_a_missing_file_is_lost_with_its_root(tmp_path, write_pairs, left):
    root = tmp_path / "data"
    source = open_source(str(write_pairs(root, {"a": (9, 8)})), "test")
    shutil.rmtree(root)
    if left == "an empty folder":
        root.mkdir()
    elif left == "a file":
        root.write_text("")
    for use in (source.read, source.shape):
        with pytest.raises(SourceLost, match="cannot be read now") as caught:
            use("a")
        assert caught.value.filename == str(root / "blur/a.png")


def test_missing_files_beside_others_are_bad_images(tmp_path, write_pairs):
    root = tmp_path / "data"
    source = open_source(str(write_pairs(root, {"a": (9, 8), "b": (9, 8)})), "test")
    for side in ("blur", "sharp"):
        (root / side / "a.png").unlink()
    for use in (source.read, source.shape):
        with pytest.raises(BadImage, match=r"blur/a\.png: No such file"):
            use("a")


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_folder_that_was_full_and_is_empty_is_lost_whatever_lies_beside_it(tmp_path, write_pairs, left):
    """It may be a link to another disk."""
    source = open_source(str(write_pairs(tmp_path, {"a": (9, 8)})), "test")
    shutil.rmtree(tmp_path / "blur")
    if left == "an empty folder":
        (tmp_path / "blur").mkdir()
    for use in (source.read, source.shape):
        with pytest.raises(SourceLost, match="cannot be read now"):
            use("a")


def test_a_lossy_source_that_goes_before_its_digest_is_taken_is_lost(tmp_path, save, random_image, monkeypatch):
    root = tmp_path / "data"
    for side in ("blur", "sharp"):
        save(root / side / "a.jpg", random_image(0, 9, 8))
    source = open_source(str(root), "test")
    monkeypatch.setattr(
        "samdeblur.pipeline.sources.folders.sha256_file", lambda path: shutil.rmtree(root) or path.read_bytes()
    )
    with pytest.raises(SourceLost):
        source.read("a")


def test_sizes_that_differ_within_a_pair_are_named(tmp_path, save, random_image):
    save(tmp_path / "blur/a.png", random_image(0, 9, 8))
    save(tmp_path / "sharp/a.png", random_image(0, 8, 9))
    with pytest.raises(BadImage, match=r"blur/a\.png: .* 8x9 and 9x8"):
        open_source(str(tmp_path), "test").read("a")


def test_shapes_are_those_of_the_blurred_images_and_nothing_is_decoded(tmp_path, write_pairs, monkeypatch):
    source = open_source(str(write_pairs(tmp_path, SHAPES)), "test")
    (tmp_path / "sharp/day.png").write_bytes(b"")
    monkeypatch.setattr(Image.Image, "load", None)  # PIL decodes in load
    assert {key: source.shape(key) for key in source.keys} == SHAPES


def test_the_digest_of_lossless_sources_is_that_of_size_and_pixels(tmp_path, write_pairs):
    source = open_source(str(write_pairs(tmp_path, {"a": (9, 300)})), "test")
    pair = source.read("a")
    size = (9).to_bytes(8, "little") + (300).to_bytes(8, "little")
    assert pair.digest == hashlib.sha256(size + pair.blurred.tobytes()).digest()


def test_the_digest_of_lossy_sources_is_that_of_the_file(tmp_path, write_pairs, save, random_image):
    write_pairs(tmp_path, {"a": (9, 8)})
    save(tmp_path / "blur/b.jpg", random_image(0, 9, 8))
    save(tmp_path / "sharp/b.png", random_image(0, 9, 8))
    source = open_source(str(tmp_path), "test")
    assert source.digest == "file"
    for key, file in (("a", "a.png"), ("b", "b.jpg")):  # one kind for the whole set
        assert source.read(key).digest == hashlib.sha256((tmp_path / "blur" / file).read_bytes()).digest()


@pytest.mark.parametrize("kind", ["folder", "sample"])
def test_a_subset_is_small_to_send_and_reads_the_same(tmp_path, write_pairs, kind):
    if kind == "folder":
        source = open_source(str(write_pairs(tmp_path, SHAPES)), "test")
        many = {f"sequence/{number:06d}": (Path("a"), Path("b")) for number in range(5000)}
        notes = ("what is missing, at length " * 100,)
        large = FolderSource("set", "test", dict(source.files) | many, "pixels", tmp_path, notes)
    else:
        source = large = open_source("sample", "test")
    keys = source.keys[1:3]
    sent = pickle.dumps(large.subset(keys))
    assert len(sent) < 1500
    received = pickle.loads(sent)
    assert (received.split, received.keys) == ("test", keys)
    for key in keys:
        assert received.shape(key) == source.shape(key)
        for ours, theirs in zip(vars(received.read(key)).values(), vars(source.read(key)).values(), strict=True):
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("location", ["sample", "worlds"])
def test_sources_of_this_package_lack_nothing(location):
    source = open_source(location, "test")
    assert source.notes == source.subset(source.keys[:1]).notes == ()
