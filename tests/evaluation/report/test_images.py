from __future__ import annotations

import io
import json
import os
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from samdeblur.evaluation.report import images
from samdeblur.evaluation.report.images import (
    FILES,
    THUMBNAIL_SIDE,
    address,
    borrow_image,
    forget_images,
    keep_images,
    keep_thumbnail,
    kept_images,
    read_thumbnail,
    shown_path,
)
from samdeblur.storage import AtomMap

NAMES = [
    "a/b",
    "a%2Fb",
    "a_b",
    "..",
    ".",
    "",
    "../../etc/passwd",
    ".hidden",
    "nuit/été_夜",
    "'\"<>&?#\\",
    "ü" * 150,
    "x" * 400,
]


@pytest.fixture
def noise():
    """noise(seed, height=30, width=40) -> (H, W, 3) uint8"""
    return lambda seed, h=30, w=40: np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


@pytest.fixture
def keep(tmp_path, noise):
    """keep(key, **changes) -> the images that were kept, by name."""

    def keep(key="a/b", name="toy test", **changes):
        given = {"blurred": noise(0), "result": noise(1), "sharp": noise(2), "atoms": None, "records": None} | changes
        keep_images(tmp_path, name, key, **given)
        return given

    return keep


def pixels(path):
    return np.array(Image.open(path))


def handed_over(path):
    """What the script of the masks calls keepMasks with."""
    text = path.read_bytes().decode("ascii")
    assert text.startswith("keepMasks(")
    assert text.endswith(");\n")
    return json.loads(text[len("keepMasks(") : -len(");\n")])


def labels_of(data):
    values, lengths = data["runs"]
    width, height = data["size"]
    return np.repeat(values, lengths).reshape(height, width)


@pytest.mark.parametrize(("shape", "small"), [((720, 1280), (160, 90)), ((900, 300), (53, 160)), ((20, 30), (30, 20))])
def test_thumbnails_are_small_and_never_enlarged(tmp_path, noise, shape, small):
    smooth = np.tile(np.linspace(0, 255, shape[1], dtype=np.uint8)[None, :, None], (shape[0], 1, 3))
    keep_thumbnail(tmp_path, "toy test", "a/b", smooth)
    data = read_thumbnail(tmp_path, "toy test", "a/b")
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    assert image.size == small
    assert max(small) <= THUMBNAIL_SIDE
    assert len(data) < 8000
    assert read_thumbnail(tmp_path, "toy test", "a") is None
    assert read_thumbnail(tmp_path, "toy", "a/b") is None


def test_images_are_kept_pixel_for_pixel(tmp_path, keep):
    given = keep()
    found = kept_images(tmp_path, "toy test", "a/b")
    assert found.keys() == {"blurred", "result", "sharp"}
    assert all(np.array_equal(pixels(path), given[name]) for name, path in found.items())
    assert kept_images(tmp_path, "toy test", "a") == {}
    assert kept_images(tmp_path, "other", "a/b") == {}


def test_masks_and_records_are_handed_over_whole(tmp_path, keep, random_masks):
    masks = random_masks(np.random.default_rng(3), 12, 30, 40)
    atoms = AtomMap.from_masks(masks)
    records = {"area": atoms.mask_areas(), "predicted_iou": np.linspace(0, 1, 12), "point_x": np.full(12, np.nan)}
    keep(atoms=atoms, records=records)
    data = handed_over(kept_images(tmp_path, "toy test", "a/b")["masks"])
    assert np.array_equal(labels_of(data), atoms.atoms)
    for atom, covering in enumerate(data["atoms"]):
        assert sorted(covering) == np.flatnonzero(masks[:, atoms.atoms == atom].any(axis=1)).tolist()
        areas = [masks[mask].sum() for mask in covering]
        assert areas == sorted(areas)
    assert data["columns"] == list(records)
    assert [row[0] for row in data["records"]] == masks.sum(axis=(1, 2)).tolist()
    assert np.allclose([row[1] for row in data["records"]], records["predicted_iou"], rtol=1e-3)
    assert {row[2] for row in data["records"]} == {None}


@pytest.mark.parametrize("n", [0, 2])
def test_masks_without_pixels_or_records_are_masks_too(tmp_path, keep, n):
    keep(atoms=AtomMap.empty((30, 40), n))
    data = handed_over(kept_images(tmp_path, "toy test", "a/b")["masks"])
    assert not labels_of(data).any()
    assert data["atoms"] == [[]]
    assert data["records"] == [[]] * n


def test_what_is_kept_again_replaces_what_was_kept(tmp_path, keep, noise):
    keep(atoms=AtomMap.empty((30, 40)))
    assert kept_images(tmp_path, "toy test", "a/b").keys() == FILES.keys()
    leftover = shown_path(tmp_path, "toy test", "a/b", "result").with_suffix(".png.partial")
    leftover.write_bytes(b"cut off by a kill")
    given = keep(result=noise(9), sharp=None)
    found = kept_images(tmp_path, "toy test", "a/b")
    assert found.keys() == {"blurred", "result"}
    assert np.array_equal(pixels(found["result"]), given["result"])
    assert not leftover.exists()


def test_an_image_whose_images_were_not_all_written_is_not_shown(tmp_path, keep):
    keep()
    shown_path(tmp_path, "toy test", "a/b", "result").unlink()
    assert kept_images(tmp_path, "toy test", "a/b") == {}


def test_any_name_is_a_file_of_its_own_inside_the_folder(tmp_path):
    folder = tmp_path / "report"
    both = [*((name, "key") for name in NAMES), *(("set", key) for key in NAMES)]
    for value, (name, key) in enumerate(both):
        pixel = np.full((1, 1, 3), value, np.uint8)
        keep_images(folder, name, key, pixel, pixel, None, None, None)
        keep_thumbnail(folder, name, key, pixel)
    assert {path.name for path in tmp_path.iterdir()} == {"report"}
    assert {path.name for path in folder.iterdir()} == {"images", "thumbnails"}
    for value, (name, key) in enumerate(both):
        assert (pixels(kept_images(folder, name, key)["result"]) == value).all()
        assert read_thumbnail(folder, name, key)
    assert all(path.is_dir() for path in (folder / "thumbnails").iterdir())


def test_addresses_lead_back_to_the_file(tmp_path):
    path = shown_path(tmp_path, "toy test", "é #?%/x", "masks")
    assert path.name.startswith("é _____x-")
    assert unquote(address(path, tmp_path)) == path.relative_to(tmp_path).as_posix()
    assert not set(address(path, tmp_path)) & set(" é#?\\")


def test_files_are_called_what_a_person_calls_the_image(tmp_path):
    assert shown_path(tmp_path, "GoPro test (masks 0123abcd)", "GOPR0372_07_00/000047", "result") == (
        tmp_path / "images/GoPro test (masks 0123abcd)/GOPR0372_07_00__000047.result.png"
    )
    for kind in FILES:
        for key in ("夜" * 90, "x" * 248, "夜/" * 60 + "夜"):
            path = shown_path(tmp_path, "路" * 80, key, kind, 7)
            assert all(len(part.encode()) < 240 for part in path.parts)  # what is written first has a longer name
            assert "%" not in str(path)


def test_images_of_earlier_evaluations_are_forgotten(tmp_path, keep, noise):
    for key in ("a", "b", "c"):
        keep(key)
        keep("b", name="other set")
        keep_thumbnail(tmp_path, "toy test", key, noise(0))
    forget_images(tmp_path, "toy test", shown=["b"], thumbnails=["a", "b"])
    forget_images(tmp_path, "never evaluated", [], [])
    assert [bool(kept_images(tmp_path, "toy test", key)) for key in ("a", "b", "c")] == [False, True, False]
    assert [bool(read_thumbnail(tmp_path, "toy test", key)) for key in ("a", "b", "c")] == [True, True, False]
    assert kept_images(tmp_path, "other set", "b")


@pytest.mark.parametrize("links", [True, False])
def test_borrowed_images_are_linked_or_copied_and_stay_when_the_lender_changes(tmp_path, monkeypatch, links):
    source, target = tmp_path / "run/a.png", tmp_path / "new/deep/b.png"
    source.parent.mkdir()
    source.write_bytes(b"one")
    if not links:

        def refuse(*_):
            raise OSError("no links across disks")

        monkeypatch.setattr(images.os, "link", refuse)
    for _ in range(2):  # the second time it is there
        borrow_image(source, target)
        assert target.read_bytes() == b"one"
        assert target.samefile(source) == links
    os.replace(source.with_name("other") if source.with_name("other").write_bytes(b"two") else source, source)
    assert target.read_bytes() == b"one"
    borrow_image(source, target)
    assert target.read_bytes() == b"two"
    borrow_image(source, source)
    assert source.read_bytes() == b"two"
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.png", "b.png"]
