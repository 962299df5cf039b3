"""More bad input: options that go together, runs, results, devices, and jobs that are stopped."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch

from samdeblur.cli.messages import progress_bar
from samdeblur.pipeline.job import coordinator
from samdeblur.storage import open_store
from samdeblur.storage.writing.commits import Committer
from samdeblur.train import state


@pytest.fixture
def sam(random_sam, tmp_path):
    torch.save(random_sam().state_dict(), tmp_path / "sam.pth")
    return tmp_path / "sam.pth"


@pytest.fixture
def trained(samdeblur, store, tiny, tmp_path):
    """A finished run on the store."""
    assert samdeblur("train", store, *tiny, "--out", tmp_path / "run").code == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "grid.json"),
        ("", "grid.json"),
        ("{", "grid.json"),
        ("5", "grid.json"),
        ("[5]", "grid.json"),
        ("[[[0.5]]]", "grid 0 is not a list of points [x, y]"),
        ("[[0.5, 0.5]]", "grid 0 is not a list of points [x, y]"),
        ("[[[0.5, 0.5], [0.5]]]", "grid.json"),
        ('[[["a", "b"]]]', "grid.json"),
        ('{"a": [[0.5, 0.5]]}', "grid.json"),
        ("[]", "grid.json"),
    ],
    ids=str,
)
def test_point_grids_that_are_none_are_refused_and_no_store_is_made(prep_run, pairs, sam, tmp_path, content, words):
    if content is not None:
        (tmp_path / "grid.json").write_text(content)
    refused = prep_run(pairs, tmp_path / "s.zarr", "--sam", sam, "--point-grids", tmp_path / "grid.json")
    assert (refused.code, words in refused.error) == (2, True), refused.error
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--points-per-side", "4", "--point-grids", "grid.json"], "not both"),
        (["--points-per-side", "many"], "points-per-side"),
        (["--points-per-side", "0"], "points"),
        (["--points-per-batch", "0"], "points"),
        (["--block-size", "0"], "block-size"),
        (["--workers", "0"], "workers"),
        (["--channel-order", "gbr"], "channel-order"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_and_no_store_is_made(prep_run, pairs, sam, tmp_path, options, words):
    refused = prep_run(pairs, tmp_path / "s.zarr", "--sam", sam, *options)
    assert (refused.code, words in refused.error) == (2, True), refused.error
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_gpu_where_there_is_none_is_refused_and_nothing_is_made(samdeblur, prep_run, pairs, store, tiny, tmp_path):
    refused = prep_run(pairs, tmp_path / "s.zarr", "--device", "cuda")
    assert (refused.code, "torch sees no GPU" in refused.error) == (2, True)
    refused = samdeblur("train", store, *tiny, "--device", "cuda", "--out", tmp_path / "run")
    assert (refused.code, "torch sees no GPU" in refused.error) == (2, True)
    assert not (tmp_path / "s.zarr").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["prep run", "prep status", "train", "eval run"])
@pytest.mark.parametrize("kind", ["folder", "file", "other"])
def test_what_is_not_a_store_is_refused(samdeblur, prep_run, pairs, tiny, tmp_path, command, kind):
    path = tmp_path / "thing"
    if kind == "file":
        path.write_text("hello")
    else:
        path.mkdir()
    if kind == "other":
        (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    (tmp_path / "net.safetensors").write_bytes(b"")
    if command == "prep run":
        refused = prep_run(pairs, path)
        if kind != "other":
            used = kind == "folder"  # an empty one may be the top of a disk
            assert (refused.code, used or "a file, which can only be read" in refused.error) == (
                0 if used else 2,
                True,
            )
            return
    elif command == "train":
        refused = samdeblur("train", path, *tiny, "--out", tmp_path / "run")
    elif command == "eval run":
        torch.save({}, tmp_path / "net.pth")
        refused = samdeblur("eval", "run", _checkpoint(tmp_path), path, "--out", tmp_path / "o")
    else:
        refused = samdeblur("prep", "status", path)
    assert (refused.code, "not a mask store" in refused.error, str(path) in refused.error) == (2, True, True)


def _checkpoint(folder):
    from samdeblur.models import NAFNet

    torch.save(NAFNet(4, [1], 1, [1]).state_dict(), folder / "nafnet.pth")
    return folder / "nafnet.pth"


def test_evaluation_takes_runs_and_checkpoints_and_refuses_what_is_neither(samdeblur, store, sam, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("hello")
    for network, words in ((tmp_path / "empty", "no best.safetensors"), (tmp_path / "text.pth", "not a checkpoint"),
                           (sam, "it looks like"), (store, "is this the folder of a training run?")):  # fmt: skip
        refused = samdeblur("eval", "run", network, store, "--out", tmp_path / "o")
        assert (refused.code, words in refused.error, str(network) in refused.error) == (2, True, True), refused.error
    assert not (tmp_path / "o").exists()
    assert samdeblur("eval", "run", _checkpoint(tmp_path), store, "--out", tmp_path / "o").code == 0
    assert json.loads((tmp_path / "o/results.json").read_text())["method"] == "nafnet (none)"


def test_evaluation_refuses_stores_it_cannot_score(samdeblur, prep_run, pairs, store, tmp_path, monkeypatch):
    checkpoint = _checkpoint(tmp_path)
    prep_run(pairs, tmp_path / "masks.zarr", "--without-images")
    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "run_block", None)
        prep_run(pairs, tmp_path / "planned.zarr")
    for other, words in (("masks.zarr", "masks without images"), ("planned.zarr", "no image is ready"),
                         ("gone.zarr", "no such store")):  # fmt: skip
        refused = samdeblur("eval", "run", checkpoint, store, tmp_path / other, "--out", tmp_path / "o")
        assert (refused.code, words in refused.error) == (2, True), refused.error
    assert not (tmp_path / "o").exists()


def test_images_that_are_not_ready_are_counted_and_left_out(samdeblur, prep_run, pairs, tmp_path):
    (pairs / "blur/001.png").write_text("hello")
    assert prep_run(pairs, tmp_path / "s.zarr").code == 3
    done = samdeblur("eval", "run", _checkpoint(tmp_path), tmp_path / "s.zarr", "--out", tmp_path / "o")
    assert done.code == 3
    assert "4 of 5 images; 1 quarantined (001: " in done.err
    (result,) = json.loads((tmp_path / "o/results.json").read_text())["sets"]
    assert (result["unready"], len(result["images"])) == (1, 4)


def test_a_table_of_what_is_not_there_is_refused_before_anything_is_written(samdeblur, store, tmp_path):
    samdeblur("eval", "run", _checkpoint(tmp_path), store, "--report-images", 0, "--out", tmp_path / "o")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/results.json").write_text("{}")
    for arguments, words in (
        ([tmp_path / "o", tmp_path / "bad"], "not results of samdeblur-eval run"),
        ([tmp_path / "o", tmp_path / "gone"], "no such results"),
        ([tmp_path / "o", "--curves", tmp_path / "gone"], "gone"),
    ):
        refused = samdeblur("eval", "table", *arguments, "--out", tmp_path / "table")
        assert (refused.code, words in refused.error) == (2, True), refused.error
        assert not (tmp_path / "table").exists()


def test_settings_without_a_preset_or_with_yaml_that_is_none_are_refused_by_name(samdeblur, store, tmp_path):
    (tmp_path / "bad.yaml").write_text("steps: [1")
    (tmp_path / "typo.yaml").write_text("batch_sise: 4")
    for options, words in (
        (["--config", tmp_path / "bad.yaml"], "bad.yaml, line 1: not YAML"),
        (["--config", tmp_path / "typo.yaml"], "did you mean batch_size?"),
        (["--config", "tiny", "--set", "steps"], "write name=value"),
        (["--config", "tiny", "--steps", "0"], "steps: must be at least 1"),
        (["--config", "tiny", "--set", "learning_rate=-1"], "learning_rate"),
    ):
        refused = samdeblur("train", store, *options, "--out", tmp_path / "run")
        assert (refused.code, words in refused.error) == (2, True), refused.error
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "eval run"])
def test_a_target_below_a_file_is_refused_with_its_name(samdeblur, store, tiny, tmp_path, command):
    (tmp_path / "file").write_text("")
    before = [store, *tiny] if command == "train" else [_checkpoint(tmp_path), store, "--report-images", 0]
    failed = samdeblur(*command.split(), *before, "--out", tmp_path / "file/out")
    assert (failed.code, str(tmp_path / "file") in failed.error) == (2, True)


def test_training_on_a_full_disk_fails_and_the_next_run_goes_on(samdeblur, store, tiny, tmp_path, monkeypatch):
    write = state.write_durably
    longer = ["train", store, *tiny, "--set", "val_every=1"]

    def full(path, data):
        if path.name == "state.pt" and path.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(state, "write_durably", full)
        failed = samdeblur(*longer, "--out", tmp_path / "run")
    assert failed.code == 1
    assert failed.err.splitlines()[-1] == f"error: {tmp_path / 'run/state.pt'}: No space left on device"
    assert samdeblur(*longer, "--out", tmp_path / "run").code == 0
    assert samdeblur(*longer, "--out", tmp_path / "other").code == 0
    one, other = ((tmp_path / name / "last.safetensors").read_bytes() for name in ("run", "other"))
    assert one == other


def test_a_damaged_store_fails_in_one_line_that_names_the_file(samdeblur, store, tiny, tmp_path):
    shard = next(store.glob("images/sharp/c/*/*/*/*"))
    shard.unlink()
    failed = samdeblur("train", store, *tiny, "--out", tmp_path / "run")
    assert (failed.code, str(shard) in failed.err) == (1, True)
    assert failed.err.splitlines()[-1].startswith("error: ")  # on a line of its own, after the progress


def test_a_store_that_another_job_writes_to_is_left_alone(prep_run, pairs, store):
    job = Committer(store)
    try:
        failed = prep_run(pairs, store)
        assert (failed.code, f"job {os.getpid()}" in failed.error) == (1, True)
    finally:
        job.close()


@pytest.mark.parametrize("program", ["prep", "train"])
def test_who_interrupts_is_told_how_to_go_on(samdeblur, pairs, store, tiny, tmp_path, monkeypatch, program):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    if program == "prep":
        monkeypatch.setattr("samdeblur.pipeline.prepare", interrupted)
        stopped = samdeblur("prep", "run", pairs, tmp_path / "s.zarr", "--split", "test")
    else:
        monkeypatch.setattr(state, "save_state", interrupted)
        monkeypatch.setattr("samdeblur.train.running.save_state", interrupted)
        stopped = samdeblur("train", store, *tiny, "--out", tmp_path / "run")
    assert stopped.code == 130
    (line,) = stopped.err.split("\n")[1:-1]  # below the ^C
    assert line.startswith("interrupted; ")
    assert "run the same command again" in line
    assert ("nothing was written to" in line, "what was committed" in line) == (program == "prep", False)


def test_what_nobody_foresaw_is_one_line_with_the_way_to_the_traceback(samdeblur, pairs, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("samdeblur.pipeline.prepare", broken)
    failed = samdeblur("prep", "run", pairs, tmp_path / "s.zarr", "--split", "test")
    assert failed.code == 1
    assert failed.error == "error: RuntimeError: two lines (run with --debug for the traceback)"


@pytest.mark.parametrize("program", ["prep", "eval"])
def test_a_command_without_arguments_shows_its_help(samdeblur, program):
    shown = samdeblur(program)
    assert shown.code == 2
    assert "Usage:" in shown.out + shown.err


@pytest.mark.parametrize("program", ["prep", "train", "eval"])
def test_the_version_is_that_of_the_package(samdeblur, program):
    from importlib.metadata import version

    shown = samdeblur(program, "--version")
    assert (shown.code, version("samdeblur") in shown.out) == (0, True)


def test_every_setting_of_sam_has_an_option(samdeblur):
    from samdeblur.pipeline.segmenters.mask_generator import SAM_SETTINGS

    shown = samdeblur("prep", "run", "--help").out
    assert all(f"--{name.replace('_', '-')} " in shown for name in SAM_SETTINGS)


def test_status_of_a_store_that_is_only_planned_says_how_to_go_on(samdeblur, prep_run, pairs, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "run_block", None)
        prep_run(pairs, tmp_path / "s.zarr")
    shown = samdeblur("prep", "status", tmp_path / "s.zarr")
    assert shown.code == 0
    assert "0 of 5 images done, 5 pending" in shown.out
    assert "run the same samdeblur-prep run command again to finish" in shown.out
    assert open_store(tmp_path / "s.zarr").header.fingerprint[:12] in shown.out
    assert samdeblur("prep", "verify", tmp_path / "s.zarr").code == 0


def test_where_there_is_no_terminal_progress_is_told_in_lines(capsys):
    with progress_bar(total=2, desc="map") as bar:
        bar.start_t -= 5  # a bar waits before it shows
        bar.mininterval = 0
        bar.update()
        bar.update()
    said = capsys.readouterr().err
    assert "\r" not in said
    assert [line.split("|")[0].split()[:3] for line in said.splitlines()][:2] == [
        ["map:", "50%", "1/2"],
        ["map:", "100%", "2/2"],
    ]
