"""A run that a signal stops, or kills, goes on as if nothing had been."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from dataclasses import replace

import children
import pytest
import torch

from samdeblur.train import Stopped, running, train
from samdeblur.train.data.crops import CropDataset, Cutting, Share
from samdeblur.train.data.loader import LoaderFailed, crop_loader
from samdeblur.train.stopping import SIGNALS, StopRequest

pytestmark = pytest.mark.usefixtures("quick_curves")


@pytest.fixture(scope="module")
def full(small):
    """Settings with everything that a state must hold."""
    return replace(
        small,
        method="map-dropout",
        batch_size=4,
        accumulate=2,
        crops_per_image=2,
        ema=0.9,
        log_every=3,
        val_share=0.5,
        keep_every=5,
    )


@pytest.fixture(scope="module")
def uninterrupted(store, full, tmp_path_factory, contents):
    """The files of a run that was left alone."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(full, store, folder)
    return contents(folder)


def step_of(folder):
    return torch.load(folder / "state.pt", weights_only=True)["step"]


def signal_at(monkeypatch, moment, number):
    """Raise a signal once: at ("step", n) amid that step, at ("validation", n) amid the validation after it."""
    loss, validate, score = running.Run.loss, running.Run.validate, running.score_images
    now, raised = [0], []

    def raise_once(kind):
        if (kind, now[0]) == moment and not raised:
            raised.append(number)
            signal.raise_signal(number)

    def noted_loss(run, network, batch):
        now[0] = run.step
        if torch.is_grad_enabled():
            raise_once("step")
        return loss(run, network, batch)

    def noted_validation(run):
        now[0] = run.step
        return validate(run)

    def scored(*arguments, **options):
        for one in score(*arguments, **options):
            raise_once("validation")
            yield one

    monkeypatch.setattr(running.Run, "loss", noted_loss)
    monkeypatch.setattr(running.Run, "validate", noted_validation)
    monkeypatch.setattr(running, "score_images", scored)


@pytest.mark.parametrize(
    ("kind", "step", "number"),
    [
        ("step", 1, signal.SIGUSR1),
        ("step", 3, signal.SIGTERM),  # a row of the log
        ("step", 4, signal.SIGINT),  # validation
        ("step", 5, signal.SIGTERM),  # between rows; weights are kept
        ("step", 10, signal.SIGTERM),
        ("validation", 0, signal.SIGTERM),
        ("validation", 4, signal.SIGUSR1),
        ("validation", 10, signal.SIGINT),
    ],
)
def test_a_run_that_a_signal_stopped_goes_on_as_if_it_had_not(
    store, full, tmp_path, uninterrupted, monkeypatch, assert_same_run, kind, step, number
):
    with monkeypatch.context() as patch:
        signal_at(patch, (kind, step), number)
        with pytest.raises(Stopped, match=f"{tmp_path}: stopped after step {step} of 10, which is saved") as stopped:
            train(full, store, tmp_path)
    assert stopped.value.by == number
    assert step_of(tmp_path) == step
    train(full, store, tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_a_run_may_be_stopped_many_times(store, full, tmp_path, uninterrupted, monkeypatch, assert_same_run):
    for moment in [("validation", 0), ("step", 1), ("step", 4), ("validation", 4), ("step", 7), ("validation", 8)]:
        with monkeypatch.context() as patch:
            signal_at(patch, moment, signal.SIGTERM)
            with pytest.raises(Stopped):
                train(full, store, tmp_path)
        assert step_of(tmp_path) == moment[1]
    train(full, store, tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_a_run_whose_crops_a_worker_reads_is_stopped_alike(
    store, full, tmp_path, uninterrupted, monkeypatch, assert_same_run
):
    with_worker = replace(full, loader_workers=1)
    with monkeypatch.context() as patch:
        signal_at(patch, ("step", 6), signal.SIGTERM)
        with pytest.raises(Stopped):
            train(with_worker, store, tmp_path)
    train(with_worker, store, tmp_path)
    settings = (tmp_path / "config.yaml").read_bytes()
    assert settings == replace(full, loader_workers=1).to_yaml().encode()
    in_state = uninterrupted["config of state.pt"] | {"loader_workers": 1}
    assert_same_run(tmp_path, uninterrupted | {"config.yaml": settings, "config of state.pt": in_state})


def test_workers_leave_signals_to_the_process_they_read_for(store):
    """Ctrl-C, and a cluster that ends a job, send them to every process."""
    before = {child.pid for child in multiprocessing.active_children()}
    batches = crop_loader(CropDataset(store, store.keys, Cutting(24), 0, with_atoms=False), Share(2, 1, 12), 1)
    next(batches)
    (worker,) = (child for child in multiprocessing.active_children() if child.pid not in before)
    for number in SIGNALS:
        os.kill(worker.pid, number)
    assert len(list(batches)) == 11


def test_a_signal_that_ends_workers_before_they_leave_it_alone_stops_the_run_after_its_last_whole_step(
    store, full, tmp_path, uninterrupted, monkeypatch, assert_same_run
):
    wait, calls = running.Waiting.next, []

    def lost(batches):
        calls.append(batches)
        if len(calls) == 12:  # the second part of step 6
            signal.raise_signal(signal.SIGTERM)
            raise LoaderFailed("worker 0 of 1 that read crops (process 7) was ended by signal 15")
        return wait(batches)

    with monkeypatch.context() as patch:
        patch.setattr(running.Waiting, "next", lost)
        with pytest.raises(Stopped, match="stopped after step 5 of 10, which is saved"):
            train(full, store, tmp_path)
    train(full, store, tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_a_worker_that_is_lost_without_a_signal_is_an_error(store, small, tmp_path, monkeypatch):
    def lost(batches):
        raise LoaderFailed("worker 0 of 1 that read crops (process 7) was ended by signal 9")

    monkeypatch.setattr(running.Waiting, "next", lost)
    with pytest.raises(LoaderFailed, match="signal 9"):
        train(small, store, tmp_path)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)], ids=str
)
def test_a_stopped_command_says_so_in_one_line_and_goes_on_when_run_again(
    full, command, tmp_path, uninterrupted, assert_same_run, number, code
):
    arguments = command(full, tmp_path / "run")
    with children.started(arguments, tmp_path / "said", before_step=5) as child:
        child.waits()
        child.signal(number)
        child.goes_on()
        ended = child.end()
    said = f"{tmp_path / 'run'}: stopped after step 5 of 10, which is saved; run the same command again to go on"
    *at_once, last = ended.err.splitlines()
    assert (ended.code, ended.out.count("\n"), last) == (code, 1, said)  # what it trains, first
    assert at_once in ([], ["finishing the step under way, then saving"])  # unless it was writing when it was told
    with children.started(arguments, tmp_path / "said") as child:
        ended = child.end()
    assert (ended.code, ended.err) == (0, "going on from step 5 of 10\n")
    assert "10 steps of map-dropout" in ended.out
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_second_interrupt_stops_at_once(store, full, tmp_path, uninterrupted, assert_same_run):
    def interrupt_twice(row):
        if row["step"] == 7:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(full, store, tmp_path, progress=interrupt_twice)
    assert step_of(tmp_path) == 5
    train(full, store, tmp_path)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_five_times_equals_one_that_was_not(
    store, full, command, tmp_path, uninterrupted, assert_same_run, seed
):
    often = replace(full, save_every=2)
    arguments = command(often, tmp_path / "run")
    saved = 0
    for step in sorted(random.Random(seed).sample(range(1, 11), 5)):
        with children.started(arguments, tmp_path / "said", before_step=step) as child:
            child.waits()
            child.signal(signal.SIGKILL)
            assert child.end().code == -signal.SIGKILL
        assert saved <= step_of(tmp_path / "run") < step
        saved = step_of(tmp_path / "run")
        assert saved in (step - 1, step - 2)
    with children.started(arguments, tmp_path / "said") as child:
        assert child.end().code == 0
    in_state = uninterrupted["config of state.pt"] | {"save_every": 2}
    expected = uninterrupted | {"config.yaml": often.to_yaml().encode(), "config of state.pt": in_state}
    assert_same_run(tmp_path / "run", expected)


@pytest.fixture
def handlers():
    """Handlers of someone else, for the time of a test."""

    def theirs(number, frame):
        raise AssertionError(number)

    before = {number: signal.signal(number, theirs) for number in SIGNALS}
    yield theirs
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("end", ["done", "stopped", "failed"])
def test_the_handlers_of_before_are_put_back(store, small, tmp_path, handlers, end):
    def watch(row):
        assert all(signal.getsignal(number) != handlers for number in SIGNALS)
        if end == "failed":
            raise KeyError(end)
        if end == "stopped":
            signal.raise_signal(signal.SIGUSR1)

    outcome = {"done": None, "stopped": Stopped, "failed": KeyError}[end]
    if outcome is None:
        train(replace(small, steps=2), store, tmp_path, progress=watch)
    else:
        with pytest.raises(outcome):
            train(small, store, tmp_path, progress=watch)
    assert all(signal.getsignal(number) == handlers for number in SIGNALS)


def test_only_the_first_signal_counts():
    told = []
    with StopRequest(lambda: told.append(request.by)) as request:
        assert request.by == 0
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert request.by == signal.SIGUSR1
    assert told == [signal.SIGUSR1]


def test_a_run_in_a_thread_leaves_signals_alone(store, small, tmp_path, handlers):
    seen, histories = [], []

    def run():
        histories.append(
            train(
                replace(small, steps=1),
                store,
                tmp_path,
                progress=lambda row: seen.extend(map(signal.getsignal, SIGNALS)),
            )
        )

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [row["step"] for row in histories[0]] == [0, 1]
    assert set(seen) == {handlers}
