"""Which workers are heard of."""

from __future__ import annotations

import pytest

from samdeblur.pipeline.job import attendance
from samdeblur.pipeline.job.attendance import SILENT, Attendance


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(attendance.time, "monotonic", lambda: now[0])

    def goes(seconds):
        now[0] += seconds

    return goes


def workers(status="running", **seen):
    return {name: {"last_seen": at, "status": status} for name, at in seen.items()}


def test_a_worker_without_a_sign_is_silent_whatever_the_clock_of_its_scheduler_says(clock):
    watch, silent = Attendance(), []
    for look in range(12):
        silent.append(watch.look(workers(a=9e9 + look, b=-5.0)))
        clock(5)
    assert silent[: int(SILENT / 5) + 1] == [[]] * (int(SILENT / 5) + 1)
    assert silent[-1] == ["b"]
    assert watch.look(workers(a=9e9 + 12, b=3.0)) == []


def test_who_was_suspended_itself_blames_nobody(clock):
    watch = Attendance()
    watch.look(workers(a=1.0))
    clock(36000)
    assert watch.look(workers(a=1.0)) == []


def test_a_worker_that_left_and_came_back_begins_anew(clock):
    watch = Attendance()
    for seen in (workers(a=1.0), workers(a=1.0), workers(), workers(a=1.0)):
        assert watch.look(seen) == []
        clock(15)
    assert watch.look(workers(a=1.0)) == []


def test_only_where_all_are_paused_nothing_goes_on(clock):
    watch = Attendance()
    for seen in (workers("paused", a=1.0), workers("paused", a=2.0)):
        watch.look(seen)
        clock(5)
    assert watch.paused == 5
    watch.look(workers("paused", a=3.0) | workers(b=1.0))
    assert watch.paused == 0
