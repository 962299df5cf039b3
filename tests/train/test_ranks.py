"""Several processes on the CPU train as one does. They are started as torchrun starts them."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace

import children
import pytest
import torch

from samdeblur.evaluation.ranks import Ranks
from samdeblur.models import load_network
from samdeblur.models.checkpoints.loading import encode_network
from samdeblur.train import Stopped, build_network, train

pytestmark = pytest.mark.usefixtures("quick_curves")


@pytest.fixture(scope="module")
def exact(small):
    """Settings in which the order of sums makes a difference only at the sixteenth digit."""
    return replace(
        small,
        method="map-dropout",
        precision="float64",
        grad_clip=0.0,
        batch_size=8,
        steps=8,
        log_every=3,
        val_share=0.5,
    )


@pytest.fixture(scope="module")
def alone(store, exact, tmp_path_factory):
    """The log of the run as one process writes it."""
    return train(exact, store, tmp_path_factory.mktemp("alone"))


@pytest.fixture
def together(tmp_path, command):
    """together(settings, folder, {rank: step before which it gets SIGTERM}) -> how two processes ended."""

    def run(config, folder, signals=None):
        arguments = [command(config, folder)] * 2
        with children.started_together(arguments, tmp_path / "said", before_step=signals) as both:
            for rank in signals or {}:
                both[rank].waits()
                both[rank].signal(signal.SIGTERM)
                both[rank].goes_on()
            return [child.end() for child in both]

    return run


def state_of(folder):
    return torch.load(folder / "state.pt", weights_only=True)


def assert_same_log(history, expected):
    assert [row["step"] for row in history] == [row["step"] for row in expected]
    for row, other in zip(history, expected, strict=True):
        for name in ("loss", "val_psnr", "val_ssim", "val_mcr"):
            assert row.get(name) == (pytest.approx(other[name], rel=1e-9) if name in other else None), (row, other)


@pytest.fixture(scope="module")
def awake(exact, tmp_path_factory):
    """Weights of which none is zero: in a new network most blocks pass nothing on, and have no gradient."""
    network = build_network(exact)
    for number, parameter in enumerate(network.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    path = tmp_path_factory.mktemp("awake") / "awake.safetensors"
    path.write_bytes(encode_network(network))
    return path


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(
    store, exact, awake, tmp_path, together, accumulate
):
    one_step = replace(exact, steps=1, weights=str(awake))
    train(one_step, store, tmp_path / "one")
    ended = together(replace(one_step, accumulate=accumulate), tmp_path / "two")
    assert [end.code for end in ended] == [0, 0], ended
    one, two = (state_of(tmp_path / name)["optimizer"]["state"] for name in ("one", "two"))
    assert one.keys() == two.keys() == set(range(len(one)))
    for number in one:  # after one step the average of gradients is the gradient, but for a factor
        gradient = one[number]["exp_avg"]
        assert gradient.dtype == torch.float64
        assert gradient.abs().max() > 0
        assert (two[number]["exp_avg"] - gradient).abs().max() <= 1e-6 * gradient.abs().max()


def test_two_processes_give_the_log_of_one(exact, alone, tmp_path, together):
    ended = together(exact, tmp_path / "two")
    assert [end.code for end in ended] == [0, 0], ended
    assert_same_log(state_of(tmp_path / "two")["history"], alone)


def test_only_the_first_process_writes_and_speaks(exact, command, tmp_path):
    short = replace(exact, steps=2)
    folders = [tmp_path / "first", tmp_path / "second"]
    arguments = [command(short, folder) for folder in folders]
    with children.started_together(arguments, tmp_path / "said") as both:
        first, second = (child.end() for child in both)
    assert (first.code, second.code) == (0, 0), (first, second)
    assert (first.out.count("\n"), first.err) == (3, "")
    assert (second.out, second.err) == ("", "")
    assert {path.name for path in folders[0].iterdir()} >= {"config.yaml", "run.json", "state.pt", "log.csv"}
    assert not folders[1].exists()


def test_a_run_of_two_processes_goes_on_with_one(store, exact, alone, tmp_path, together):
    ended = together(exact, tmp_path / "run", signals={1: 5})
    assert [end.code for end in ended] == [75, 75], ended
    assert state_of(tmp_path / "run")["step"] == 5
    assert_same_log(train(exact, store, tmp_path / "run"), alone)


def test_a_run_of_one_process_goes_on_with_two(store, exact, alone, tmp_path, together):
    def stop(row):
        if row["step"] == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped):
        train(exact, store, tmp_path / "run", progress=stop)
    ended = together(exact, tmp_path / "run")
    assert [end.code for end in ended] == [0, 0], ended
    assert_same_log(state_of(tmp_path / "run")["history"], alone)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_after_the_same_step(exact, tmp_path, together, rank):
    first, second = together(exact, tmp_path / "run", signals={rank: 4})  # a step of validation
    assert (first.code, second.code) == (75, 75), (first, second)
    said = f"{tmp_path / 'run'}: stopped after step 4 of 8, which is saved; run the same command again to go on"
    assert (first.err.splitlines()[-1], second.err) == (said, "")
    assert state_of(tmp_path / "run")["step"] == 4


def test_a_batch_that_does_not_part_is_refused_in_one_line(exact, tmp_path, together):
    first, second = together(replace(exact, batch_size=6, accumulate=2), tmp_path / "run")
    assert (first.code, second.code) == (2, 2), (first, second)
    assert first.err == "error: batch_size: 6 cannot be divided among 2 processes with 2 parts each (accumulate)\n"
    assert second.err == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("val_images", [1, 2])
def test_a_validation_that_fails_in_one_process_ends_all_in_one_line(exact, tmp_path, together, val_images):
    wild = replace(exact, learning_rate=1e200, val_every=1, val_images=val_images)
    first, second = together(wild, tmp_path / "run")
    assert (first.code, second.code, second.err) == (1, 1, ""), (first, second)
    (line,) = first.err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'run'}: validation: ")
    assert line.endswith("The state of step 0 is intact")


def test_a_process_that_is_lost_ends_the_others_in_one_line(exact, tmp_path, command):
    arguments = [command(exact, tmp_path / "run")] * 2
    with children.started_together(arguments, tmp_path / "said", before_step={1: 6}) as (first, second):
        second.waits()
        second.signal(signal.SIGKILL)
        assert second.end().code == -signal.SIGKILL
        ended = first.end()
    assert (ended.code, ended.err.count("\n")) == (1, 1), ended
    assert state_of(tmp_path / "run")["step"] == 4


def test_an_average_of_weights_and_a_frozen_backbone_are_those_of_one_process(store, exact, tmp_path, together):
    config = replace(exact, ema=0.5, freeze_backbone=2, steps=4, grad_clip=0.01, val_every=10)
    train(config, store, tmp_path / "one")
    ended = together(config, tmp_path / "two")
    assert [end.code for end in ended] == [0, 0], ended
    one, two = (load_network(tmp_path / name / "last.safetensors").state_dict() for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-8)


def test_more_processes_than_validation_images_validate_too(exact, tmp_path, together, store):
    config = replace(exact, val_images=1, steps=2)
    ended = together(config, tmp_path / "two")
    assert [end.code for end in ended] == [0, 0], ended
    assert len(json.loads((tmp_path / "two/run.json").read_text())["validation"]["images"]) == 1
    assert_same_log(state_of(tmp_path / "two")["history"], train(config, store, tmp_path / "one"))


@pytest.mark.parametrize("n_items", [0, 1, 5, 6])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_what_is_shared_out_comes_back_in_its_order(n_items, world, monkeypatch):
    items = list(range(n_items))
    ranks = [Ranks(torch.device("cpu"), rank, world) for rank in range(world)]
    shares = [one.share(items) for one in ranks]
    assert max(map(len, shares)) <= math.ceil(n_items / world)

    def gathered(parts, mine):
        parts[:] = shares

    monkeypatch.setattr(torch.distributed, "all_gather_object", gathered)
    assert all(one.gather(mine) == items for one, mine in zip(ranks, shares, strict=True))
