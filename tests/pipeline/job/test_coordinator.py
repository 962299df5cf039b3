"""What a run makes of a source: masks, records, images, its report and its plan."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_jobs import CPU, KEYS, MASKLESS, SHAPES, TWO, Killed, run

from samdeblur.models import deblur, load_network
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
)
from samdeblur.pipeline.job import coordinator, worker
from samdeblur.pipeline.job.cluster import InProcess
from samdeblur.pipeline.segmenters.speed import Speed
from samdeblur.storage import StoreError, open_store
from samdeblur.storage.sharing.verify import verify_store
from samdeblur.storage.writing.commits import run_folder
from samdeblur.storage.writing.compare import best_iou


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
