"""samdeblur-prep run as a batch job: job files, dry runs, machine-readable progress, quarantine, clusters."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from distributed import LocalCluster
from PIL import Image

from samdeblur.cli.support import progress as progress_module
from samdeblur.cli.support.jobfile import JOBS
from samdeblur.pipeline import SuperpixelSegmenter
from samdeblur.pipeline.job import coordinator
from samdeblur.pipeline.sources.opening import LAYOUTS
from samdeblur.storage import open_store
from samdeblur.storage.writing.lease import Lease


def files(store):
    return {file.relative_to(store): file.read_bytes() for file in store.rglob("*") if file.is_file()}


@pytest.fixture
def job(tmp_path, pairs):
    """job(*entries, **common) -> path of a job file; each entry is a mapping over source, store, split."""

    def write(*entries, **common):
        stores = [
            {"source": str(pairs), "store": str(tmp_path / f"{n}.zarr"), "split": "test"} | entry
            for n, entry in enumerate(entries)
        ]
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump({**common, "stores": stores}))
        return path

    return write


def events(result):
    return [json.loads(line) for line in result.out.splitlines()]


def test_a_job_file_prepares_its_stores_as_single_commands_would(samdeblur, job, store, tmp_path):
    path = job({}, {"split": "val", "with-images": False, "block-size": 3}, segmenter="superpixels", block_size=2)
    assert samdeblur("prep", "run", "--job", path, "--workers", 1).code == 0
    assert files(tmp_path / "0.zarr") == files(store)
    second = open_store(tmp_path / "1.zarr").header
    assert (second.split, second.images, second.block_size) == ("val", False, 3)


def test_the_command_line_goes_before_the_job_file_and_split_selects(samdeblur, job, tmp_path):
    path = job({}, {"split": "val"}, segmenter="superpixels", block_size=2)
    result = samdeblur("prep", "run", "--job", path, "--workers", 1, "--block-size", 4, "--split", "val")
    assert result.code == 0
    assert not (tmp_path / "0.zarr").exists()
    assert open_store(tmp_path / "1.zarr").header.block_size == 4


def test_names_of_the_environment_are_replaced_in_a_job_file(samdeblur, job, monkeypatch, tmp_path):
    monkeypatch.setenv("STORES", str(tmp_path / "deep"))
    assert samdeblur("prep", "run", "--job", job({"store": "$STORES/a.zarr"}, segmenter="superpixels")).code == 0
    assert (tmp_path / "deep/a.zarr").exists()


@pytest.mark.parametrize(
    ("entries", "common", "options", "words"),
    [
        ([{"segmentre": "sam"}], {}, [], "store 1: segmentre: no such setting; did you mean segmenter?"),
        ([{}], {"sementer": "sam"}, [], "sementer: no such setting; did you mean segmenter?"),
        ([{}, {"precision": "fp8"}], {}, [], "store 2: precision: 'fp8' is not one of"),
        ([{"block_size": "many"}], {}, [], "store 1: block_size: 'many' is not a valid integer"),
        ([{"source": "$NOWHERE/x"}], {}, [], "store 1: source: the environment has no NOWHERE"),
        ([{"split": ""}], {}, [], "store 1: split is missing"),
        ([{}, {}], {"store": "x"}, ["--split", "val"], "no store of split val"),
        ([{"store": "a"}, {"store": "a"}], {}, [], "a is the store of two entries"),
        ([{}], {"workers": 3}, [], "workers applies to the whole run; give it on the command line"),
        ([5], {}, [], "store 1: not a mapping"),
        ([], {}, [], "a list of `stores`"),
        ([{}], {}, ["source", "store"], "not both"),
        ([{"sam": "x", "segmenter": "superpixels"}], {}, [], "--sam needs --segmenter sam"),
    ],
    ids=str,
)
def test_a_job_file_with_mistakes_is_refused_before_anything_is_made(
    samdeblur, job, tmp_path, entries, common, options, words
):
    path = job(*(entry for entry in entries if isinstance(entry, dict)), **common)
    if 5 in entries:
        path.write_text("stores: [5]")
    result = samdeblur("prep", "run", "--job", path, *options)
    assert (result.code, words in result.error) == (2, True), result.err
    assert not list(tmp_path.glob("*.zarr"))


@pytest.mark.parametrize(
    ("content", "words"), [("a: [", "not YAML"), ("5", "a list of `stores`"), (None, "realblur-j, reds, reloblur")]
)
def test_a_job_file_that_is_none_is_refused(samdeblur, tmp_path, content, words):
    if content is not None:
        (tmp_path / "job.yaml").write_text(content)
    result = samdeblur("prep", "run", "--job", tmp_path / "job.yaml")
    assert (result.code, words in result.error) == (2, True), result.err


@pytest.mark.parametrize("name", sorted(path.stem for path in JOBS.glob("*.yaml")))
def test_the_job_files_that_come_with_the_package_plan_their_datasets(
    samdeblur, name, tmp_path, monkeypatch, random_sam
):
    """On miniature datasets, with other weights."""
    monkeypatch.setenv("DATASETS", str(tmp_path / "data"))
    monkeypatch.setenv("STORES", str(tmp_path / "stores"))
    entries = yaml.safe_load((JOBS / f"{name}.yaml").read_text())["stores"]
    for entry in entries:
        _miniature(name, tmp_path / "data" / entry["source"].split("/")[1], entry["split"])
    torch.save(random_sam().state_dict(), tmp_path / "sam.pth")
    result = samdeblur("prep", "run", "--job", name, "--dry-run", "--sam", tmp_path / "sam.pth", "--predeblur", "none")
    assert result.code == 0, result.err
    assert result.out.count("2 images in 1 block; to do: 2 images in 1 block") == len(entries)
    assert {entry["split"] for entry in entries} > {"train"}
    assert all((entry["predeblur"] == "none") == (entry["split"] != "train") for entry in entries)  # the paper
    assert not (tmp_path / "stores").exists()


def _miniature(name, root, split):
    names = {
        "gopro": (f"{split}/GOPR0001/blur/{{}}.png", f"{split}/GOPR0001/sharp/{{}}.png"),
        "realblur-j": ("R/scene001/blur/blur_{}.png", "R/scene001/gt/gt_{}.png"),
        "reds": (f"{split}/{split}_blur/000/{{}}.png", f"{split}/{split}_sharp/000/{{}}.png"),
        "reloblur": (f"{split}/s01/01/{{}}_blur.png", f"{split}/s01/01/{{}}_sharp.png"),
    }[name]
    for number in range(2):
        for side in names:
            path = root / side.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 8), (number, 0, 0)).save(path)
    if name == "realblur-j":
        lines = [f"{names[1].format(number)} {names[0].format(number)} " for number in range(2)]
        (root / f"RealBlur_J_{split}_list.txt").write_text("\n".join(lines))
    assert name in LAYOUTS


def test_a_dry_run_says_what_there_is_to_do_and_writes_nothing(samdeblur, prep_run, pairs, tmp_path):
    (pairs / "blur/003.png").write_bytes(b"")
    (pairs / "sharp/003.png").write_bytes(b"")
    planned = prep_run(pairs, tmp_path / "s.zarr", "--dry-run")
    assert planned.code == 0
    for words in (
        "pairs test -> ",
        "5 images in 3 blocks; to do: 5 images in 3 blocks; quarantined: 0",
        "a rough estimate",
        "time: not known before a block is done",
        "cannot be opened, and would be quarantined: 003: ",
    ):
        assert words in planned.out
    assert not list(tmp_path.glob("s.zarr*"))
    assert prep_run(pairs, tmp_path / "s.zarr").code == 3
    (plan,) = events(prep_run(pairs, tmp_path / "s.zarr", "--dry-run", "--retry-quarantined", "--progress", "json"))
    assert (plan["event"], plan["pending_images"], plan["quarantined"], plan["measured"]) == ("plan", 2, 1, True)
    assert plan["bytes_expected"] > 0 < plan["seconds_expected"]


def test_progress_as_json_is_one_object_per_line_and_nothing_else(prep_run, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(coordinator, "COMMIT_SECONDS", -1)
    (pairs / "blur/003.png").write_bytes(b"")
    monkeypatch.setattr(progress_module.time, "monotonic", iter(range(10**6)).__next__)
    result = prep_run(pairs, tmp_path / "s.zarr", "--progress", "json")
    assert (result.code, result.err) == (3, "")
    told = events(result)
    assert [event["event"] for event in told] == ["start", "workers", "progress", "progress", "progress", "end"]
    assert [event["done"] for event in told if event["event"] == "progress"] == [2, 4, 5]
    assert all(event["images"] == 5 and event["images_per_second"] > 0 for event in told[2:5])
    end = told[-1]
    assert (end["done"], end["pending"], list(end["quarantined"])) == (4, 0, ["003"])
    assert (end["run"]["images"], end["run"]["quarantined"], end["run"]["workers"]) == (5, 1, 1)
    assert end["run"]["seconds_by_stage"].keys() >= {"read", "segment", "encode", "write"}


def test_progress_without_a_terminal_is_a_line_now_and_then(prep_run, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(coordinator, "COMMIT_SECONDS", -1)
    monkeypatch.setattr(progress_module, "INTERVAL", -1)
    lines = prep_run(pairs, tmp_path / "s.zarr").err.splitlines()
    assert [line.split(" images")[0] for line in lines] == [f"pairs test: {n}/5" for n in (2, 4, 5)]
    assert all("images/s" in line and "left" in line for line in lines)
    assert prep_run(pairs, tmp_path / "t.zarr", "--progress", "none").err == ""


def test_a_run_ends_with_a_summary(prep_run, pairs, tmp_path):
    out = prep_run(pairs, tmp_path / "s.zarr").out
    for words in ("5 images in ", "images/s", "worker time: ", "segment ", "networks busy", "slowest: 00"):
        assert words in out
    (logged,) = (json.loads(line) for line in (tmp_path / "s.zarr.run/runs.jsonl").read_text().splitlines())
    assert (logged["images"], len(logged["slowest"])) == (5, 5)


def test_mended_files_are_tried_again_when_asked(prep_run, pairs, store, tmp_path):
    shutil.copytree(pairs, tmp_path / "whole")
    (pairs / "blur/003.png").write_bytes(b"")
    first = prep_run(pairs, tmp_path / "s.zarr")
    assert (first.code, "--retry-quarantined" in first.out) == (3, True)
    shutil.copy(tmp_path / "whole/blur/003.png", pairs / "blur/003.png")
    assert prep_run(pairs, tmp_path / "s.zarr").code == 3
    again = prep_run(pairs, tmp_path / "s.zarr", "--retry-quarantined", "--progress", "json")
    assert again.code == 0
    assert [(event["done"], event["images"]) for event in events(again) if event["event"] == "start"] == [(3, 5)]
    assert files(tmp_path / "s.zarr") == files(store)


def test_no_memory_on_the_device_is_a_reason_with_advice(prep_run, pairs, tmp_path, monkeypatch):
    def full(self, image):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(SuperpixelSegmenter, "segment", full)
    result = prep_run(pairs, tmp_path / "s.zarr")
    assert result.code == 3
    assert result.out.count("out of GPU memory; use a GPU with more, or a lower --points-per-batch") == 5


def test_status_names_the_job_that_is_at_work(samdeblur, prep_run, pairs, tmp_path):
    prep_run(pairs, tmp_path / "s.zarr")
    lease = Lease(tmp_path / "s.zarr.run")
    try:
        assert "is at work (seen 0 s ago)" in samdeblur("prep", "status", tmp_path / "s.zarr").out
    finally:
        lease.release()
    assert "is at work" not in samdeblur("prep", "status", tmp_path / "s.zarr").out


def test_a_running_scheduler_is_joined(samdeblur, pairs, store, tmp_path):
    with LocalCluster(
        n_workers=1, processes=False, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        command = ("prep", "run", pairs, tmp_path / "s.zarr", "--split", "test", "--segmenter", "superpixels")
        result = samdeblur(*command, "--block-size", 2, "--scheduler", cluster.scheduler_address)
    assert (result.code, "1 worker" in result.out) == (0, True), result.err
    assert files(tmp_path / "s.zarr") == files(store)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--scheduler", "tcp://127.0.0.1:1", "--patience", "1"], 1, "no Dask scheduler answered for 1 s"),
        (["--scheduler", "nonsense://x"], 1, "not the address of a Dask scheduler"),
        (["--memory-limit", "lots"], 2, "'lots' is not a size; write 4GB"),
        (["--patience", "0"], 2, "patience"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(samdeblur, pairs, tmp_path, options, code, words):
    command = ("prep", "run", pairs, tmp_path / "s.zarr", "--split", "test", "--segmenter", "superpixels")
    result = samdeblur(*command, *options)
    assert (result.code, words in result.error) == (code, True), result.err


@pytest.mark.parametrize(
    ("given", "missing"),
    [(["a", "--split", "test"], "STORE"), (["--split", "test"], "SOURCE and STORE"), (["a", "b"], "--split")],
    ids=str,
)
def test_what_to_prepare_must_be_said(samdeblur, given, missing):
    result = samdeblur("prep", "run", *given)
    said = f"error: {missing} missing: give SOURCE, STORE and --split, or --job FILE"
    assert (result.code, result.error.startswith(said)) == (2, True), result.error


def test_a_run_that_finds_no_masks_at_all_says_so(samdeblur, tmp_path):
    strict = ("--sam", "bundled", "--points-per-side", 1, "--pred-iou-thresh", 1, "--workers", 1)
    done = samdeblur("prep", "run", "worlds:1:64", tmp_path / "s.zarr", "--split", "test", *strict)
    assert done.code == 0
    assert "note: no masks were found in 1 image;" in done.out


def test_a_dataset_of_any_shape_is_prepared_by_a_function(samdeblur, random_image, save, tmp_path, monkeypatch):
    for number in range(4):
        save(tmp_path / "lab" / f"{number}.png", random_image(number, 40, 50))
    code = "def even(folder, split):\n    return {f'{split}/{n}': (f'{n}.png', f'{n + 1}.png') for n in (0, 2)}\n"
    (tmp_path / "even_layouts.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    given = ("--layout", "even_layouts:even", "--segmenter", "superpixels", "--predeblur", "none", "--workers", 1)
    made = samdeblur("prep", "run", tmp_path / "lab", tmp_path / "lab.zarr", "--split", "train", *given)
    assert made.code == 0, made.err
    assert open_store(tmp_path / "lab.zarr").ready_keys == ["train/0", "train/2"]
