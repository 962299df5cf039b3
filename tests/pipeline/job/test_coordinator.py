from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from samdeblur.models import CheckpointError, NAFNet, deblur, load_network, with_prior
from samdeblur.models.checkpoints.loading import encode_network
from samdeblur.pipeline import (
    PrepSettings,
    Resources,
    StoreOptions,
    SuperpixelSegmenter,
    Weights,
    Workers,
    make_plan,
    open_source,
    prepare,
    status,
)
from samdeblur.pipeline.job import coordinator, worker
from samdeblur.pipeline.job.cluster import InProcess
from samdeblur.pipeline.segmenters.mask_generator import MaskGenerator
from samdeblur.pipeline.segmenters.speed import Speed
from samdeblur.storage import ImageNotReady, StoreError, files, open_store
from samdeblur.storage.format import durable
from samdeblur.storage.sharing.verify import verify_store
from samdeblur.storage.writing.commits import run_folder
from samdeblur.storage.writing.compare import best_iou
from samdeblur.storage.writing.fence import Fence, StoreBusy

SHAPES = {"a/1": (40, 56), "a/2": (64, 48), "b": (44, 80), "c": (60, 42), "d": (1, 1)}
KEYS = sorted(SHAPES)
MASKLESS = "d"  # its only pixel is too large a share for a mask
CPU = PrepSettings(device="cpu")
TWO = StoreOptions(block_size=2)


class Killed(BaseException):
    """Stands for a kill: nothing that handles errors handles this."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_pairs):
    """Five pairs: three blocks. For reading only."""
    return write_pairs(tmp_path_factory.mktemp("data") / "toy", SHAPES)


@pytest.fixture
def own_folder(folder, tmp_path):
    """A copy of the pairs to damage."""
    return Path(shutil.copytree(folder, tmp_path / "toy"))


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory, store_case):
    """The store of the pairs, made in one go. For reading only."""
    path = tmp_path_factory.mktemp("undisturbed") / "toy.zarr"
    run(folder, path)
    return store_case.at(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("network") / "tiny.safetensors", seed=0)


def save_network(path, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        path.write_bytes(encode_network(with_prior(NAFNet(8, [1], 1, [1]), None)))
    return path


def run(folder, path, settings=CPU, options=TWO, workers=1, **arguments):
    return prepare(open_source(str(folder), "test"), path, settings, options, workers, **arguments)


@pytest.fixture
def commit_each_block(monkeypatch):
    monkeypatch.setattr(coordinator, "COMMIT_SECONDS", -1)


def test_a_run_stores_masks_records_and_images_of_every_pair(folder, undisturbed):
    source, store = open_source(str(folder), "test"), open_store(undisturbed.path)
    assert store.keys == store.ready_keys == KEYS
    assert (store.header.dataset, store.header.split, store.header.block_size) == ("toy", "test", 2)
    for key in KEYS:
        pair = source.read(key)
        expected, records = SuperpixelSegmenter().segment(pair.blurred)
        assert store.atoms(key) == expected
        assert all(np.array_equal(store.records(key)[name], records[name]) for name in records)
        assert np.isnan(store.records(key)["predicted_iou"]).all()
        assert np.array_equal(store.image("blurred", key), pair.blurred)
        assert np.array_equal(store.image("sharp", key), pair.sharp)
        assert store.digest(key) == pair.digest
        assert store.shape(key) == SHAPES[key]
    assert store.atoms(MASKLESS).n_masks == 0 < store.atoms("b").n_masks
    assert list(verify_store(undisturbed.path)) == []


def test_a_run_reports_what_it_did(folder, tmp_path):
    reported = []
    summary = run(folder, tmp_path / "toy.zarr", progress=lambda *numbers: reported.append(numbers))
    assert (summary.images, summary.already_done, summary.quarantined, summary.workers) == (5, 0, 0, 1)
    assert np.sum(reported, axis=0).tolist() == [5, 0]
    assert summary.seconds_by_stage.keys() >= {"read", "segment", "write"}
    rows = [json.loads(line) for line in (tmp_path / "toy.zarr.run/blocks.jsonl").read_text().splitlines()]
    assert [(row["block"], row["images"]) for row in rows] == [(0, 2), (1, 2), (2, 1)]
    assert all(row["environment"]["torch"] == torch.__version__ for row in rows)
    left = [path.name for path in (tmp_path / "toy.zarr.run").rglob("*") if path.is_file()]
    assert sorted(left) == ["blocks.jsonl", "runs.jsonl"]  # no lease, nothing staged


def test_a_second_run_does_nothing_and_the_bytes_stay(folder, undisturbed, monkeypatch):
    before = undisturbed.files()
    times = {file: (undisturbed.path / file).stat().st_mtime_ns for file in before}
    monkeypatch.setattr(coordinator, "run_block", None)
    summary = run(folder, undisturbed.path)
    assert (summary.images, summary.already_done, summary.quarantined) == (0, 5, 0)
    assert undisturbed.files() == before
    assert {file: (undisturbed.path / file).stat().st_mtime_ns for file in before} == times


def test_bytes_do_not_depend_on_the_number_of_workers(folder, undisturbed, tmp_path):
    summary = run(folder, tmp_path / "toy.zarr", workers=2)
    assert (summary.images, summary.workers) == (5, 2)
    assert undisturbed.at(tmp_path / "toy.zarr").files() == undisturbed.files()


def test_no_more_workers_than_blocks_are_started():
    with Workers(Resources(workers=64)) as workers:
        assert isinstance(workers.runner(1), InProcess)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_run_killed_while_working_redoes_only_what_was_not_committed(
    folder, undisturbed, tmp_path, monkeypatch, commit_each_block, block
):
    case = undisturbed.at(tmp_path / "toy.zarr")
    work = worker.run_block

    def killed(task):
        if task.block == block:
            work(task)
            raise Killed
        return work(task)

    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "run_block", killed)
        with pytest.raises(Killed):
            run(folder, case.path)
    assert status(case.path).done == 2 * block
    assert status(case.path).pending == 5 - 2 * block
    summary = run(folder, case.path)
    assert (summary.images, summary.already_done) == (5 - 2 * block, 2 * block)
    assert case.files() == undisturbed.files()


@contextmanager
def killed_at(write):
    """Killed at this write of a file of the store or beside it."""
    count, durably, through_fence = iter(range(10**6)), files.write_durably, Fence.write

    def write_half(path, data):
        if next(count) == write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(path.name + files.PARTIAL).write_bytes(bytes(data)[:5])
            raise Killed
        durably(path, data)

    def do_not_rename(fence, path, data):
        if next(count) == write:
            raise Killed
        through_fence(fence, path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "write_durably", write_half)
        patch.setattr(Fence, "write", do_not_rename)
        yield


@pytest.mark.parametrize(
    ("write", "group"),
    [(0, -1), (12, -1), (19, -1), (26, -1), (38, -1), (27, 1e9), (30, 1e9)],
    ids=lambda value: {-1: "a commit per block", 1e9: "one commit"}.get(value, value),
)
def test_a_run_killed_at_any_write_and_run_again_equals_an_undisturbed_one(
    folder, undisturbed, tmp_path, monkeypatch, write, group
):
    case = undisturbed.at(tmp_path / "toy.zarr")
    monkeypatch.setattr(coordinator, "COMMIT_SECONDS", group)
    with killed_at(write), pytest.raises(Killed):
        run(folder, case.path)
    run(folder, case.path)
    assert case.files() == undisturbed.files()


def test_a_full_disk_ends_the_run_and_a_later_run_goes_on(folder, undisturbed, tmp_path, monkeypatch):
    case = undisturbed.at(tmp_path / "toy.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(worker, "stage_block", _full)
        with pytest.raises(OSError, match="No space left"):
            run(folder, case.path)
    assert status(case.path).pending == 5
    run(folder, case.path)
    assert case.files() == undisturbed.files()


def _full(*_):
    raise OSError(28, "No space left on device", "/mnt/shard")


def test_two_jobs_on_one_store_are_refused(folder, tmp_path):
    path = tmp_path / "toy.zarr"

    def second_job(images, quarantined):
        with pytest.raises(StoreBusy):
            run(folder, path)
        raise Killed

    with pytest.raises(Killed):
        run(folder, path, progress=second_job)


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


def test_the_top_of_a_disk_keeps_the_things_of_its_job_in_it(folder, undisturbed, tmp_path, monkeypatch):
    disk, stat = tmp_path / "disk", os.stat
    (disk / "lost+found").mkdir(parents=True)

    def mounted(path, *arguments, **options):
        found = stat(path, *arguments, **options)
        if os.fspath(path) == str(disk):
            found = os.stat_result([*found[:2], found.st_dev + 1, *found[3:10]])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", mounted)
        assert run_folder(disk) == disk / ".run"
        run(folder, disk)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk"]
    assert list(verify_store(disk)) == []
    shutil.rmtree(disk / ".run")
    (disk / "lost+found").rmdir()
    assert undisturbed.at(disk).files() == undisturbed.files()


def test_a_job_on_a_link_to_a_store_keeps_its_things_beside_the_store(folder, undisturbed, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.zarr").symlink_to(tmp_path / "disk/toy.zarr")
    monkeypatch.chdir(tmp_path / "disk")
    run(folder, tmp_path / "link.zarr")
    assert run_folder(Path("../link.zarr")) == tmp_path / "disk/toy.zarr.run"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link.zarr"]
    assert undisturbed.at(tmp_path / "disk/toy.zarr").files() == undisturbed.files()


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


def test_a_plan_says_what_there_is_to_do_and_writes_nothing(own_folder, tmp_path, monkeypatch, commit_each_block):
    path = tmp_path / "toy.zarr"
    source = open_source(str(own_folder), "test")
    (own_folder / "blur/c.png").write_bytes(b"")
    (own_folder / "sharp/c.png").write_bytes(b"")

    def plan(**more):
        before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
        found = make_plan(source, path, CPU, TWO, **more)
        assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
        return found

    new = plan()
    assert (new.images, new.blocks, new.pending_images, new.pending_blocks, new.quarantined) == (5, 3, 5, 3, 0)
    assert (new.measured, new.seconds_per_image) == (False, None)
    assert list(new.unreadable) == ["c"]
    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "run_block", lambda task: _stop_at(task, 1))
        with pytest.raises(Killed):
            run(own_folder, path)
    begun = plan()
    assert (begun.pending_images, begun.pending_blocks, begun.measured) == (3, 2, True)
    assert begun.seconds_per_image > 0
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert 0.5 * size / 2 < begun.bytes_per_image <= size / 2  # metadata of the arrays is not counted
    run(own_folder, path)
    assert plan().pending_images == 0
    again = plan(retry=True)
    assert (again.pending_images, again.pending_blocks, again.quarantined) == (2, 1, 1)
    assert list(again.unreadable) == ["c"]
    with pytest.raises(StoreError, match="made by another recipe"):
        make_plan(source, path, replace(CPU, predeblur=Weights("/x", "ab" * 32)), TWO)


def _stop_at(task, block):
    if task.block == block:
        raise Killed
    return worker.run_block(task)


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


def test_a_source_that_lists_its_images_in_another_order_is_refused_or_changes_nothing(
    folder, undisturbed, tmp_path, monkeypatch
):
    source, path = open_source(str(folder), "test"), tmp_path / "toy.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "run_block", None)
        with pytest.raises(TypeError):
            prepare(source, path, CPU, TWO, 1)
    try:
        prepare(source.subset(reversed(source.keys)), path, CPU, TWO, 1)
    except StoreError:
        return
    assert undisturbed.at(path).files() == undisturbed.files()


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"predeblur": Weights("/x", "ab" * 32)}, "pre-deblurring: was none, now network abababababab"),
        ({"sam": Weights("/x", "ab" * 32)}, "segmenter: was superpixels, now sam"),
    ],
    ids=["predeblur", "sam"],
)
def test_another_recipe_is_refused_with_what_differs(folder, undisturbed, change, differs):
    before = undisturbed.files()
    with pytest.raises(StoreError) as caught:
        run(folder, undisturbed.path, replace(CPU, **change))
    assert differs in str(caught.value)
    assert str(undisturbed.path) in str(caught.value)
    assert undisturbed.files() == before


def test_other_settings_of_sam_are_refused_one_by_one(tmp_path, write_pairs, random_sam, dense_boxes):
    folder = write_pairs(tmp_path / "one", {"a": (40, 40)})
    torch.save(random_sam().state_dict(), tmp_path / "sam.pth")
    loose = {"pred_iou_thresh": -1.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    settings = PrepSettings(sam=Weights.of_sam(str(tmp_path / "sam.pth")), sam_settings={"points_per_side": 2} | loose)
    settings = replace(settings, channel_order="bgr", device="cpu")
    path = tmp_path / "one.zarr"
    run(folder, path, settings)
    pair = open_source(str(folder), "test").read("a")
    generator = MaskGenerator(random_sam(), **settings.sam_settings)
    atoms, records = generator.generate(np.ascontiguousarray(pair.blurred[..., ::-1]))
    store = open_store(path)
    assert store.atoms("a") == atoms
    assert atoms.n_masks > 1
    boxes = dense_boxes(atoms.to_masks())  # where the reference's are a pixel narrower
    records |= {f"bbox_{side}": boxes[:, column] for column, side in enumerate("xywh")}
    for name, values in store.records("a").items():
        assert np.array_equal(values, records[name], equal_nan=True), name
    for change, differs in (
        ({"sam_settings": {"points_per_side": 3} | loose}, r"\(segmenter.points_per_side: was 2, now 3\)"),
        ({"sam_settings": loose}, r"\(segmenter.points_per_side: was 2, now 32\)"),
        ({"channel_order": "rgb"}, r"\(segmenter.channel_order: was bgr, now rgb\)"),
        (
            {"sam": Weights("/x", "ab" * 32)},
            r"\(segmenter.checkpoint: was [0-9a-f]{12}\.\.\., now abababababab\.\.\.\)",
        ),
        (
            {"channel_order": "rgb", "sam_settings": {"points_per_side": 2} | loose | {"crop_n_layers": 1}},
            r"\(segmenter.channel_order: was bgr, now rgb; segmenter.crop_n_layers: was 0, now 1\)",
        ),
    ):
        with pytest.raises(StoreError, match=differs):
            run(folder, path, replace(settings, **change))


def _source_of(folder, **changes):
    return replace(open_source(str(folder), "test"), **changes)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        (lambda f: _source_of(f, dataset="other"), TWO, "dataset is toy in the store, other was asked for"),
        (lambda f: _source_of(f, split="train"), TWO, "split is test in the store, train was asked for"),
        (lambda f: _source_of(f).subset(KEYS[1:]), TWO, "lists 5 images, the source 4 (first difference: a/1)"),
        (lambda f: _source_of(f, files=_renamed(f)), TWO, "lists 5 images, the source 5 (first difference: d)"),
        (_source_of, StoreOptions(images=False, block_size=2), "with images is True in the store, False was asked for"),
        (_source_of, StoreOptions(block_size=3), "block size is 2 in the store, 3 was asked for"),
    ],
    ids=["dataset", "split", "fewer images", "other images", "without images", "block size"],
)
def test_a_store_of_something_else_is_refused(folder, undisturbed, source, options, said):
    before = undisturbed.files()
    with pytest.raises(StoreError) as caught:
        prepare(source(folder), undisturbed.path, CPU, options, 1)
    assert said in str(caught.value)
    assert undisturbed.files() == before


def _renamed(folder):
    found = dict(open_source(str(folder), "test").files)
    return found | {"e": found.pop("d")}


def test_a_store_that_exists_keeps_its_block_size_when_none_is_asked_for(folder, undisturbed):
    assert run(folder, undisturbed.path, options=StoreOptions()).already_done == 5


def test_a_store_without_images_holds_the_same_masks(folder, undisturbed, tmp_path):
    path = tmp_path / "toy.zarr"
    run(folder, path, options=StoreOptions(images=False, block_size=2))
    ours, theirs = undisturbed.at(path).files(), undisturbed.files()
    assert not (path / "images").exists()
    shards = [name for name in theirs if name.split("/")[0] in ("atoms", "pairs", "records")]
    assert {name: ours[name] for name in shards} == {name: theirs[name] for name in shards}
    assert open_store(path).digest("b") == open_store(undisturbed.path).digest("b")
    with pytest.raises(StoreError, match="without images"):
        open_store(path).image("blurred", "b")
    assert list(verify_store(path)) == []


def test_predeblurring_changes_what_is_segmented_and_not_what_is_stored(folder, undisturbed, tmp_path, checkpoint):
    settings = replace(CPU, predeblur=Weights.of_network(str(checkpoint)))
    run(folder, tmp_path / "toy.zarr", settings)
    store, plain = open_store(tmp_path / "toy.zarr"), open_store(undisturbed.path)
    network = load_network(checkpoint)
    for key in KEYS:
        blurred = plain.image("blurred", key)
        assert np.array_equal(store.image("blurred", key), blurred)
        assert np.array_equal(store.image("sharp", key), plain.image("sharp", key))
        assert store.digest(key) == plain.digest(key)
        assert store.atoms(key) == SuperpixelSegmenter().segment(deblur(network, blurred))[0]
    assert any(store.atoms(key) != plain.atoms(key) for key in KEYS)
    assert store.header.recipe["predeblur"] == {"checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest()}


def test_a_checkpoint_changed_after_planning_is_refused_and_no_store_is_made(folder, tmp_path):
    path = save_network(tmp_path / "net.safetensors", seed=1)
    settings = replace(CPU, predeblur=Weights.of_network(str(path)))
    save_network(path, seed=2)
    with pytest.raises(CheckpointError, match=r"net\.safetensors: the file changed since the job was planned"):
        run(folder, tmp_path / "toy.zarr", settings)
    assert not (tmp_path / "toy.zarr").exists()


def test_a_checkpoint_changed_before_a_worker_loads_it_is_refused(folder, tmp_path, monkeypatch):
    path = save_network(tmp_path / "net.safetensors", seed=1)
    settings = replace(CPU, predeblur=Weights.of_network(str(path)))
    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "run_block", None)
        with pytest.raises(TypeError):
            run(folder, tmp_path / "toy.zarr", settings)
    save_network(path, seed=2)
    with pytest.raises(CheckpointError, match="changed"):
        run(folder, tmp_path / "toy.zarr", settings)
    assert status(tmp_path / "toy.zarr").pending == 5


def test_weights_that_cannot_be_used_leave_no_store_behind(folder, tmp_path):
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"junk\.pth: not a checkpoint"):
        run(folder, tmp_path / "toy.zarr", replace(CPU, predeblur=Weights.of_network(str(tmp_path / "junk.pth"))))
    assert not (tmp_path / "toy.zarr").exists()
    assert not run_folder(tmp_path / "toy.zarr").exists()


def test_results_do_not_depend_on_the_threads_of_the_caller(folder, undisturbed, tmp_path, monkeypatch):
    used = []
    segment = SuperpixelSegmenter.segment
    monkeypatch.setattr(
        SuperpixelSegmenter,
        "segment",
        lambda self, image: used.append(torch.get_num_threads()) or segment(self, image),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run(folder, tmp_path / "toy.zarr")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(used) == {1}


def test_the_status_of_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such store"):
        status(tmp_path / "gone.zarr")


def test_images_are_embedded_together_and_a_bad_one_among_them_is_quarantined(tmp_path, write_pairs):
    folder = write_pairs(
        tmp_path / "pairs", {"a": (40, 50), "b": (50, 40), "c": (2000, 1), "d": (30, 30), "e": (44, 44)}
    )
    (folder / "blur" / "d.png").write_bytes(b"no image")
    settings = {"points_per_side": 3, "pred_iou_thresh": -1.0, "stability_score_thresh": -1.0}
    found = {}
    for batch in (1, 3):
        path, speed = tmp_path / f"{batch}.zarr", Speed(batch=batch)
        prep = PrepSettings(sam=Weights.of_sam("bundled"), sam_settings=settings, device="cpu", speed=speed)
        prepare(open_source(str(folder), "test"), path, prep, workers=1)
        found[batch] = open_store(path)
        assert found[batch].ready_keys == ["a", "b", "e"]
        assert "too narrow" in found[batch].error("c")
    for key in ("a", "b", "e"):
        exact, together = found[1].atoms(key), found[3].atoms(key)
        assert exact.n_masks == together.n_masks > 3
        assert np.median(best_iou(exact, together)) > 0.99
