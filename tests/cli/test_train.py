"""samdeblur-train as people call it: what it says, and what it refuses in one line."""

from __future__ import annotations

import shutil
import signal
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import pytest
import torch
import yaml

from samdeblur.cli import prep
from samdeblur.models import NAFNet
from samdeblur.pipeline.job import coordinator
from samdeblur.train import running, state
from samdeblur.train.config import parse_assignment


@pytest.fixture(autouse=True)
def _quick_curves(monkeypatch):
    monkeypatch.setattr(state, "draw_curves", lambda history: repr(history).encode())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, write_pairs):
    """Five pairs and their store, made once."""
    folder = tmp_path_factory.mktemp("prepared")
    write_pairs(folder / "pairs", {f"{n:03d}": (48, 64) for n in range(5)})
    command = ["run", folder / "pairs", folder / "prepared.zarr", "--split", "test", "--workers", 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["samdeblur-prep", *map(str, command), "--segmenter", "superpixels"])
        with pytest.raises(SystemExit) as ended:
            prep.main()
    assert not ended.value.code
    return folder


@pytest.fixture
def pairs(prepared, tmp_path):
    return Path(shutil.copytree(prepared / "pairs", tmp_path / "pairs"))


@pytest.fixture
def store(prepared, tmp_path):
    return Path(shutil.copytree(prepared / "prepared.zarr", tmp_path / "prepared.zarr"))


@pytest.fixture
def train(samdeblur, store, tiny, tmp_path):
    """train(options, out="run") -> Result, for two steps on the prepared pairs."""

    def call(*options, out="run", on=store):
        return samdeblur("train", on, *tiny, *options, "--out", tmp_path / out)

    return call


@pytest.fixture
def small(tmp_path, tiny):
    """Those settings in a file, which an architecture given with --set would not be."""
    values = dict(parse_assignment(value) for option, value in pairwise(tiny) if option == "--set")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"base": "tiny", "steps": 2, **values}))
    return tmp_path / "small.yaml"


@pytest.fixture
def refused(train, tmp_path):
    """refused(options) -> the one line that refuses them, before anything is made."""

    def call(*options, **where):
        result = train(*options, **where)
        assert (result.code, result.out) == (2, ""), result
        assert not (tmp_path / where.get("out", "run")).exists()
        return result.error

    return call


# Settings


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("steps=ten", "steps: 'ten' is not of type int"),
        ("steps=0", "steps: must be at least 1, is 0"),
        ("steps=2.5", "steps: 2.5 is not of type int"),
        ("steps=true", "steps: True is not of type int"),
        ("steps=", "steps: None is not of type int"),
        ("learning_rate=fast", "learning_rate: 'fast' is not a number"),
        ("learning_rate=.nan", "learning_rate: must be at least 0, is nan"),
        ("betas=[0.9]", "betas: two numbers, got 1"),
        ("betas=[0.9, 1]", "betas: must be in [0, 1)"),
        ("enc_blk_nums=[1]", "enc_blk_nums and dec_blk_nums must have as many levels"),
        ("enc_blk_nums=[one]", "enc_blk_nums: 'one' is not of type int"),
        ("ema=1", "ema: must be in [0, 1), is 1.0"),
        ("channels_last=1", "channels_last: 1 is not of type bool"),
        ("loss=psrn", "loss: no 'psrn'; did you mean psnr?"),
        ("precision=half", "precision: no 'half'; choose from float32, tf32, bfloat16, float16, float64"),
        ("semantics=relased", "semantics: no 'relased'; did you mean released?"),
        ("method=mapp", "method: no 'mapp'; did you mean map?"),
        ("freeze_backbone=2", "freeze_backbone: method none has no prior to train alone"),
        ("subimage_size=16", "subimage_size: 16 is smaller than the crops, 96"),
        ("acumulate=2", "acumulate: no such setting; did you mean accumulate?"),
        ("batchsize=2", "batchsize: no such setting; did you mean batch_size?"),
        ("zzz=2", "zzz: no such setting; known: method, "),
        ("accumulate", "'accumulate': write name=value"),
        ("accumulate=[1", "accumulate: '[1' is not a YAML value"),
        ("seed=-1", "seed: must be in [0, 9223372036854775808), is -1"),
        ("seed=9223372036854775808", "seed: must be in [0, 9223372036854775808)"),
    ],
)
def test_settings_that_cannot_be_are_refused(samdeblur, tmp_path, assignment, words):
    result = samdeblur("train", "nowhere", "--config", "tiny", "--set", assignment, "--out", tmp_path / "run")
    assert (result.code, words in result.error) == (2, True), result
    assert not (tmp_path / "run").exists()


def test_a_setting_that_is_given_twice_is_refused(refused):
    said = refused("--set", "batch_size=4", "--batch-size", "2")
    assert said == "error: batch_size: given by --set and by --batch-size; leave one of them out"


def test_a_batch_that_does_not_part_is_refused(refused):
    said = refused("--set", "accumulate=3")
    assert said == "error: batch_size: 2 cannot be divided among 1 processes with 3 parts each (accumulate)"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "0"], "steps: must be at least 1"),
        (["--steps", "ten"], "'ten' is not a valid integer"),
        (["--set", "batch_size=0"], "batch_size: must be at least 1"),
        (["--config", "tinny"], "tinny: no such configuration file, nor a preset"),
        (["--device", "tpu"], "'tpu'"),
        (["--method", "sam"], "'sam'"),
        (["--images-layout", "pairs"], "--images-layout is for --images"),
        (["--config", "tiny", "--seed", "1.5"], "'1.5' is not a valid integer"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(refused, options, words):
    assert words in refused(*options)


def test_the_architecture_of_a_checkpoint_is_not_to_be_set(samdeblur, store, small, tmp_path):
    """But a file of settings may say another: then that of the checkpoint counts."""
    torch.save(NAFNet(6, [1], 1, [1]).state_dict(), tmp_path / "net.pth")
    command = ["train", store, "--config", small, "--weights", tmp_path / "net.pth", "--out", tmp_path / "run"]
    for name, value in (("width", 8), ("enc_blk_nums", [1]), ("middle_blk_num", 1), ("dec_blk_nums", [1])):
        result = samdeblur(*command, "--set", f"{name}={value}")
        said = f"error: {name}: follows from the checkpoint {tmp_path / 'net.pth'}; leave it out"
        assert (result.code, result.error) == (2, said)
    assert not (tmp_path / "run").exists()
    assert samdeblur(*command).code == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["width"] == 6


# Stores


def test_a_store_without_images_trains_with_the_images_of_a_folder_or_not_at_all(
    samdeblur, train, refused, prep_run, store, pairs, tmp_path
):
    bare = tmp_path / "masks.zarr"
    assert prep_run(pairs, bare, "--without-images").code == 0
    assert "masks without images" in refused(on=bare)
    assert "--images" in refused(on=bare)
    assert train("--method", "map", "--images", pairs, on=bare).code == 0
    assert train("--method", "map", out="whole").code == 0
    one, other = (tmp_path / name / "last.safetensors" for name in ("run", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_images_of_other_content_are_refused_with_their_name(train, prep_run, pairs, tmp_path):
    bare = tmp_path / "masks.zarr"
    assert prep_run(pairs, bare, "--without-images").code == 0
    for file in sorted((pairs / "blur").glob("*.png")):
        cv2.imwrite(str(file), cv2.imread(str(file)) ^ 1)
    result = train("--images", pairs, on=bare)
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.code == 1
    assert f"{pairs}: 00" in line
    assert "its masks are of another image" in line


def test_images_of_another_size_are_refused_with_their_name(train, prep_run, pairs, tmp_path):
    bare = tmp_path / "masks.zarr"
    assert prep_run(pairs, bare, "--without-images").code == 0
    for file in sorted(pairs.rglob("*.png")):
        cv2.imwrite(str(file), cv2.imread(str(file))[:-2])
    result = train("--images", pairs, on=bare)
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert (result.code, str(pairs) in line) == (1, True), result


def test_crops_larger_than_all_images_are_refused(refused, store):
    said = refused("--set", "crop_size=49")
    assert (
        f"{store}: all images are smaller than the crop of 49 (the largest has 64x48); set crop_size to at most 48"
        in said
    )


@pytest.mark.parametrize("given", ["train", "val"])
def test_stores_of_which_nothing_is_ready_are_refused(
    refused, samdeblur, prep_run, store, pairs, tmp_path, monkeypatch, given
):
    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "run_block", None)
        prep_run(pairs, tmp_path / "pending.zarr")
    for file in pairs.rglob("*.png"):
        file.write_text("hello")
    assert prep_run(pairs, tmp_path / "quarantined.zarr").code == 3
    for name, words in (("pending", "pending"), ("quarantined", "not an image")):
        path = tmp_path / f"{name}.zarr"
        said = refused(on=path) if given == "train" else refused("--val", path)
        assert str(path) in said
        assert words in said or "no image is ready" in said or "0 images are ready" in said, said


@pytest.mark.parametrize("where", ["nowhere", "s3://"])
def test_stores_that_are_not_there_are_refused(train, tmp_path, where):
    place = where if ":" in where else tmp_path / where
    for result in (train(on=place), train("--val", place)):
        assert result.code == 2
        assert where.partition(":")[0] in result.error
    assert not (tmp_path / "run").exists()


# Runs


def test_a_folder_that_holds_another_run_is_left_as_it_is(train, tmp_path):
    assert train().code == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    for options, words in (
        (["--method", "cat"], "method none -> cat"),
        (["--seed", 1], "seed 0 -> 1"),
        (["--set", "learning_rate=0.5"], "learning_rate 0.004 -> 0.5"),
        (["--set", "val_share=0.6"], "train: other images, masks or weights"),
    ):
        result = train(*options)
        assert (result.code, words in result.error, "use another --out" in result.error) == (2, True, True), result
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}


def test_a_folder_with_other_files_is_not_taken_for_a_run(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    refused = train()
    assert (refused.code, "holds files that are not of a training run (notes.txt)" in refused.error) == (2, True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_state_that_cannot_be_read_is_named(train, tmp_path):
    assert train().code == 0
    path = tmp_path / "run/state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    result = train()
    assert (result.code, f"{path}: cut" in result.error) == (2, True)


def test_a_checkpoint_of_another_method_or_none_is_refused(samdeblur, train, store, small, tmp_path):
    assert train("--method", "cat").code == 0
    for weights, words in (
        (tmp_path / "run", f"weights: {tmp_path / 'run'} has another prior than method map"),
        (tmp_path / "gone.pth", "gone.pth: no such checkpoint"),
        (small, "small.yaml: not a checkpoint"),
    ):
        other = ("--method", "map", "--weights", weights, "--out", tmp_path / "other")
        result = samdeblur("train", store, "--config", small, *other)
        assert (result.code, words in result.error) == (2, True), result
    assert not (tmp_path / "other").exists()


def test_a_run_says_how_it_went_and_a_finished_one_says_it_again(train, tmp_path):
    first, again = train(), train()
    for result in (first, again):
        assert (result.code, result.err) == (0, "")
        *_, done, files = result.out.splitlines()
        assert done.startswith(f"{tmp_path / 'run'}: 2 steps of none on cpu, ")
        assert files == f"curves: {tmp_path / 'run/curves.png'}   weights: {tmp_path / 'run/best.safetensors'}"
    assert ", 2 of them now, in " in first.out
    assert ", nothing to do, all done before; " in again.out
    assert first.out.split("validation PSNR")[1] == again.out.split("validation PSNR")[1]


def test_the_settings_of_a_run_begin_another_that_is_the_same(train, samdeblur, store, tmp_path):
    assert train("--method", "map-dropout", "--seed", 3).code == 0
    settings = tmp_path / "run/config.yaml"
    assert samdeblur("train", store, "--config", settings, "--out", tmp_path / "again").code == 0
    assert settings.read_bytes() == (tmp_path / "again/config.yaml").read_bytes()
    one, other = ((tmp_path / name / "last.safetensors").read_bytes() for name in ("run", "again"))
    assert one == other


def test_without_tensorboard_the_command_that_installs_it_is_named(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert refused("--set", "tensorboard=true").endswith(
        "tensorboard: not installed; pip install samdeblur[tensorboard]"
    )


def test_a_loss_that_diverges_fails_in_one_line(train, tmp_path):
    result = train("--set", "learning_rate=1e30", "--set", "grad_clip=0")
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.code == 1
    assert line.startswith(f"error: {tmp_path / 'run'}: ")
    assert line.endswith("The state of step 0 is intact")


def test_a_store_that_is_gone_is_refused_when_a_run_is_to_go_on(train, store, tmp_path):
    assert train().code == 0
    shutil.move(store, tmp_path / "elsewhere.zarr")
    result = train()
    assert (result.code, "no such store" in result.error) == (2, True)


def test_who_stops_a_run_is_told_at_once_what_it_finishes_first(train, monkeypatch):
    take_step = running.Run.take_step

    def interrupted(run, number, batches):
        take_step(run, number, batches)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(running.Run, "take_step", interrupted)
    stopped = train()
    assert stopped.code == 130
    assert stopped.err.index("finishing the step under way, then saving\n") < stopped.err.index(
        "stopped after step 1 of 2"
    )
