"""Bad images, and images that are mended."""

from __future__ import annotations

import errno
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from toy_jobs import KEYS, SHAPES, Killed, killed_at, run

from samdeblur.pipeline import (
    SuperpixelSegmenter,
    open_source,
    status,
)
from samdeblur.pipeline.job import coordinator
from samdeblur.storage import ImageNotReady, open_store
from samdeblur.storage.sharing.verify import verify_store
from samdeblur.storage.writing.fence import Fence


def _cut(path):
    path.write_bytes(path.read_bytes()[:-300])


DAMAGES = {
    "cut off": (lambda folder: _cut(folder / "blur/c.png"), "c.png: "),
    "cut off, sharp": (lambda folder: _cut(folder / "sharp/c.png"), "sharp/c.png: "),
    "empty": (lambda folder: (folder / "blur/c.png").write_bytes(b""), "blur/c.png: not an image"),
    "of another size": (
        lambda folder: shutil.copy(folder / "sharp/b.png", folder / "sharp/c.png"),
        "blur/c.png: blurred and sharp differ in size, 42x60 and 80x44",
    ),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_bad_image_is_quarantined_with_its_reason_and_the_others_are_as_ever(
    own_folder, undisturbed, tmp_path, damage, reason
):
    damage(own_folder)
    case = undisturbed.at(tmp_path / "toy.zarr")
    summary = run(own_folder, case.path)
    assert (summary.images, summary.quarantined) == (5, 1)
    found = status(case.path)
    assert (found.done, found.pending, list(found.quarantined)) == (4, 0, ["c"])
    assert reason in found.quarantined["c"]
    assert str(own_folder) in found.quarantined["c"] or len(found.quarantined["c"]) > 150  # paths may be cut
    with pytest.raises(ImageNotReady, match="c is quarantined"):
        found.store.atoms("c")
    assert list(verify_store(case.path)) == []

    ours, theirs = case.files(), undisturbed.files()
    shards = [name for name in theirs if "/c/" in name and "index/" not in name]
    block = KEYS.index("c") // 2
    same = [name for name in shards if not name.split("/c/")[1].startswith(f"{block}/")]
    assert len(same) > 6
    assert {name: ours.get(name) for name in same} == {name: theirs[name] for name in same}
    reference = open_store(undisturbed.path)
    for key in KEYS:
        if key != "c":
            assert found.store.atoms(key) == reference.atoms(key)
            assert np.array_equal(found.store.image("sharp", key), reference.image("sharp", key))


def test_a_quarantined_image_is_not_tried_again(own_folder, tmp_path):
    _cut(own_folder / "blur/c.png")
    run(own_folder, tmp_path / "toy.zarr")
    summary = run(own_folder, tmp_path / "toy.zarr")
    assert (summary.images, summary.already_done) == (0, 5)
    assert list(status(tmp_path / "toy.zarr").quarantined) == ["c"]


def _mend(folder, key, of, *sides):
    for side in sides or ("blur", "sharp"):
        shutil.copy(of / f"{side}/{key}.png", folder / f"{side}/{key}.png")


@pytest.mark.parametrize("key", ["c", "a/1"])
@pytest.mark.parametrize("damage", ["cut off", "empty", "empty, both"])
def test_a_mended_image_is_tried_again_when_asked_and_the_store_is_as_if_it_had_never_been_damaged(
    own_folder, folder, undisturbed, tmp_path, damage, key
):
    case = undisturbed.at(tmp_path / "toy.zarr")
    for side in ("blur", "sharp") if damage.endswith("both") else ("blur",):
        (own_folder / side / f"{key}.png").write_bytes((own_folder / side / f"{key}.png").read_bytes()[:-300])
        if damage.startswith("empty"):
            (own_folder / side / f"{key}.png").write_bytes(b"")
    run(own_folder, case.path)
    assert list(status(case.path).quarantined) == [key]
    still_bad = run(own_folder, case.path, retry=True)
    assert (still_bad.quarantined, list(status(case.path).quarantined)) == (1, [key])
    _mend(own_folder, key, folder)
    summary = run(own_folder, case.path, retry=True)
    assert (summary.images, summary.quarantined) == (2, 0)  # its block
    assert case.files() == undisturbed.files()
    assert list(verify_store(case.path)) == []


def test_with_nothing_in_quarantine_a_retry_does_nothing(folder, undisturbed):
    before = undisturbed.files()
    assert run(folder, undisturbed.path, retry=True).images == 0
    assert undisturbed.files() == before


def test_a_retry_killed_at_any_write_is_finished_by_the_same_run(own_folder, folder, undisturbed, tmp_path):
    for side in ("blur", "sharp"):  # so that its size was not known, and is written now
        (own_folder / side / "c.png").write_bytes(b"")
    run(own_folder, tmp_path / "toy.zarr")
    _mend(own_folder, "c", folder)
    reached = 0
    for at in range(18):
        case = undisturbed.at(Path(shutil.copytree(tmp_path / "toy.zarr", tmp_path / f"{at}.zarr")))
        with killed_at(at):
            try:
                run(own_folder, case.path, retry=True)
            except Killed:
                reached += 1
        run(own_folder, case.path, retry=True)
        assert case.files() == undisturbed.files(), at
    assert reached > 10


def test_a_retry_that_a_full_disk_ends_loses_nothing(own_folder, folder, undisturbed, tmp_path, monkeypatch):
    (own_folder / "blur/c.png").write_bytes(b"")
    case = undisturbed.at(tmp_path / "toy.zarr")
    run(own_folder, case.path)
    before, done = case.files(), status(case.path).done
    _mend(own_folder, "c", folder)
    write, ended = Fence.write, 0
    for at in range(9):
        count = iter(range(10**6))

        def full(fence, path, data, at=at, count=count):
            if "index" in path.parts and next(count) == at:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            write(fence, path, data)

        with monkeypatch.context() as patch:
            patch.setattr(Fence, "write", full)
            try:
                run(own_folder, case.path, retry=True)
            except OSError:
                ended += 1
                assert case.files() == before, at
                assert status(case.path).done == done
    assert ended > 5
    run(own_folder, case.path, retry=True)
    assert case.files() == undisturbed.files()


def test_a_retried_image_beyond_the_extents_of_the_store_stays_in_quarantine(own_folder, tmp_path, save, random_image):
    (own_folder / "blur/c.png").write_bytes(b"")
    (own_folder / "sharp/c.png").write_bytes(b"")
    run(own_folder, tmp_path / "toy.zarr")
    for side in ("blur", "sharp"):
        save(own_folder / side / "c.png", random_image(9, 300, 20))
    run(own_folder, tmp_path / "toy.zarr", retry=True)
    assert (
        "unreadable, or too large beside the others, when the store was planned, is 20x300 now"
        in status(tmp_path / "toy.zarr").quarantined["c"]
    )
    assert list(verify_store(tmp_path / "toy.zarr")) == []


def test_broken_headers_that_claim_opposite_sides_cost_their_images_alone(
    own_folder, undisturbed, tmp_path, save, random_image
):
    for name, size in (("y", (32767, 10)), ("z", (10, 32767))):
        for side in ("blur", "sharp"):
            path = save(own_folder / side / f"{name}.png", random_image(0, 8, 8))
            head, rest = path.read_bytes()[:16], path.read_bytes()[24:]
            path.write_bytes(head + struct.pack(">II", *size) + rest)
    summary = run(own_folder, tmp_path / "toy.zarr")
    found = status(tmp_path / "toy.zarr")
    assert (summary.images, set(found.quarantined)) == (7, {"y", "z"})
    alone, store = open_store(undisturbed.path), open_store(tmp_path / "toy.zarr")
    assert all((store.atoms(key).atoms == alone.atoms(key).atoms).all() for key in alone.ready_keys)


def test_an_image_whose_segmentation_fails_is_quarantined_with_the_error(folder, undisturbed, tmp_path, monkeypatch):
    segment = SuperpixelSegmenter.segment

    def failing(self, image):
        if image.shape[:2] == SHAPES["c"]:
            raise RecursionError("é" * 200)
        return segment(self, image)

    monkeypatch.setattr(SuperpixelSegmenter, "segment", failing)
    run(folder, tmp_path / "toy.zarr")
    found = status(tmp_path / "toy.zarr")
    assert found.quarantined == {"c": "RecursionError: " + "é" * 72}  # 160 bytes
    assert found.store.digest("c") == open_store(undisturbed.path).digest("c")


@pytest.mark.parametrize("damaged", [("c",), ("a/1",), KEYS], ids=["one of five", "the first", "all"])
def test_images_that_cannot_be_opened_at_all_do_not_stop_the_plan(own_folder, tmp_path, damaged):
    for key in damaged:
        (own_folder / f"blur/{key}.png").write_bytes(b"")
    run(own_folder, tmp_path / "toy.zarr")
    assert set(status(tmp_path / "toy.zarr").quarantined) == set(damaged)


@pytest.mark.parametrize("shape", [(44, 33), (30, 90), (300, 20), None], ids=str)
def test_an_image_replaced_after_planning_is_never_stored_under_another_size(
    own_folder, tmp_path, monkeypatch, save, random_image, shape
):
    """None: the image could not be opened when the store was planned."""
    path = tmp_path / "toy.zarr"
    images = [own_folder / "blur/c.png", own_folder / "sharp/c.png"]
    contents = [file.read_bytes() for file in images]
    if shape is None:
        for file in images:
            file.write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "run_block", None)
        with pytest.raises(TypeError):
            run(own_folder, path)
    for file, content in zip(images, contents, strict=True):
        if shape is None:
            file.write_bytes(content)
        else:
            save(file, random_image(9, *shape))
    run(own_folder, path)
    found = status(path)
    assert found.pending == 0
    if "c" not in found.quarantined:
        whole = open_source(str(own_folder), "test").read("c").blurred
        assert found.store.shape("c") == whole.shape[:2]
        assert np.array_equal(found.store.image("blurred", "c"), whole)
    assert list(verify_store(path)) == []
