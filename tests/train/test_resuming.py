"""What is found in the folder of an earlier run: gone on with, extended, mended or refused, and never begun anew."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from samdeblur.evaluation.results import Trained
from samdeblur.models import CheckpointError, load_network
from samdeblur.train import ConfigError, train
from samdeblur.train.resuming import RunMended
from samdeblur.train.schedules import learning_rate
from samdeblur.train.state import trained

pytestmark = pytest.mark.usefixtures("quick_curves")


@pytest.fixture
def four(small):
    return replace(small, steps=4, val_every=4)


@pytest.fixture
def run(four, store, tmp_path):
    folder = tmp_path / "run"
    train(four, store, folder)
    return folder


def test_more_steps_are_refused_with_the_option_that_allows_them(run, four, store, contents, assert_same_run):
    before = contents(run)
    with pytest.raises(ConfigError, match=r"steps 4 -> 8\); add --extend to go on"):
        train(replace(four, steps=8), store, run)
    with pytest.raises(ConfigError, match=r"steps 4 -> 8; ema 0.0 -> 0.5\); use another --out"):
        train(replace(four, steps=8, ema=0.5), store, run)
    with pytest.raises(ConfigError, match="asked for 4 steps already, more than 3"):
        train(replace(four, steps=3), store, run, extend=True)
    assert_same_run(run, before)


def test_an_extended_run_keeps_what_was_and_goes_on_by_the_schedule_of_the_new_length(run, four, store, logged):
    before, last = logged(run), (run / "last.safetensors").read_bytes()
    config = replace(four, steps=8)
    train(config, store, run, extend=True)
    rows = logged(run)
    assert rows[:5] == before
    assert [float(row["learning_rate"]) for row in rows[5:]] == [
        pytest.approx(learning_rate(step, config), rel=1e-5) for step in range(4, 8)
    ]
    assert (run / "step-4.safetensors").read_bytes() == last
    assert json.loads((run / "run.json").read_text())["extended"] == [{"at": 4, "from": 4, "to": 8}]
    best = run / "best.safetensors"
    assert trained(best, load_network(best).provenance) in (Trained(4, 8, 8, ""), Trained(8, 8, 8, ""))
    train(config, store, run)  # the command without the option finds it done
    train(replace(config, steps=9), store, run, extend=True)
    assert [entry["to"] for entry in json.loads((run / "run.json").read_text())["extended"]] == [8, 9]


class Killed(BaseException):
    pass


def test_an_extension_that_was_killed_goes_on(run, four, store, tmp_path, contents, assert_same_run):
    config = replace(four, steps=8, val_every=2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        train(replace(config, steps=4), store, folder)
    train(config, store, whole, extend=True)

    def kill(row):
        if row["step"] == 7:
            raise Killed

    with pytest.raises(Killed):
        train(config, store, cut, progress=kill, extend=True)
    train(config, store, cut)
    assert_same_run(cut, contents(whole))


def test_there_must_be_a_run_to_extend(four, store, tmp_path):
    with pytest.raises(ConfigError, match="holds no run to extend"):
        train(four, store, tmp_path / "new", extend=True)


CUTS = {"empty": lambda data: b"", "half": lambda data: data[: len(data) // 2], "gone": None}


def _cut(path, how):
    if CUTS[how] is None:
        path.unlink()
    else:
        path.write_bytes(CUTS[how](path.read_bytes()))


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("name", ["config.yaml", "run.json", "log.csv", "samdeblur.json"])
def test_cut_files_for_people_are_written_again_and_the_run_goes_on(
    name, how, four, store, run, contents, assert_same_run
):
    config, whole = four, contents(run)
    _cut(run / name, how)
    if name in ("config.yaml", "run.json"):
        with pytest.warns(RunMended, match=f"{name} cut or changed since; written again from state.pt"):
            train(config, store, run)
    else:
        train(config, store, run)
    found = contents(run)
    assert all(found[file] == whole[file] for file in ("config.yaml", "run.json", "log.csv"))


@pytest.mark.parametrize("how", ["empty", "half"])
def test_a_cut_state_is_refused_with_what_to_do(how, four, store, run):
    _cut(run / "state.pt", how)
    with pytest.raises(
        CheckpointError, match=r"state\.pt: (empty|cut off, or not the state of a run), .* --weights .*last\.safe"
    ) as caught:
        train(four, store, run)
    assert "settings" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_something_else_in_the_place_of_a_state_is_refused(four, store, run):
    torch.save({"intro.weight": torch.zeros(3)}, run / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt: cut off, or not the state of a run"):
        train(four, store, run)


@pytest.mark.parametrize("left", ["weights", "kept weights", "weights that are cut", "log alone"])
def test_a_folder_without_a_state_is_never_begun_anew(left, four, store, run):
    keep = {"weights": "last.safetensors", "kept weights": "step-4.safetensors", "log alone": "log.csv"}
    name = keep.get(left, "last.safetensors")
    if left == "kept weights":
        (run / "last.safetensors").rename(run / name)
    for path in [*run.glob("*.safetensors"), run / "state.pt"]:
        if path.name != name:
            path.unlink()
    if left == "weights that are cut":
        _cut(run / name, "half")
    with pytest.raises(ConfigError, match=f"{name}.*and no state.pt to go on from; put it back"):
        train(four, store, run)


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
def test_where_an_earlier_version_did_not_say_what_it_ran_the_file_is_named(name, how, four, store, run):
    state = torch.load(run / "state.pt", weights_only=True)
    for key in ("config", "facts", "extended"):
        del state[key]
    torch.save(state, run / "state.pt")
    train(four, store, run)
    torch.save(state, run / "state.pt")
    _cut(run / name, how)
    with pytest.raises((ConfigError, CheckpointError), match=f"{name}: (gone|empty or cut|cut)") as caught:
        train(four, store, run)
    assert "other settings" not in str(caught.value)


def test_steps_stay_whole_in_the_log(tmp_path, logged):
    from samdeblur.train.state import write_log

    write_log(tmp_path, [{"step": 1_234_567.0, "loss": -20.123456789}])
    assert logged(tmp_path)[0]["step"] == "1234567"
    assert logged(tmp_path)[0]["loss"] == "-20.1235"


def test_a_run_whose_sharp_images_were_replaced_does_not_go_on(four, make_store, pair, tmp_path):
    images = {f"s/{n}": pair(n, 30, 40) for n in range(4)}
    blurred, sharp, masks = images["s/1"]
    replaced = images | {"s/1": (blurred, sharp[::-1], masks)}
    before, after = (make_store(tmp_path / f"{n}.zarr", content) for n, content in enumerate((images, replaced)))
    train(four, before, tmp_path / "run")
    train(four, before, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"(train|validation): other images, masks or weights"):
        train(four, after, tmp_path / "run")
