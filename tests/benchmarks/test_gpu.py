"""benchmarks/gpu, small and on a CPU: not a line of it is first tried on a GPU."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from places import ROOT

from samdeblur.train import state


@pytest.fixture
def gpu(monkeypatch):
    """The command, its figures and the places they are read from."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(state, "draw_curves", lambda history: repr(history).encode())
    from benchmarks.gpu import __main__ as command

    return command


def run(gpu, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--small", *map(str, options)])
    return gpu.main()


@pytest.mark.filterwarnings("ignore")
def test_everything_is_right_and_measured_and_a_second_call_does_nothing(gpu, monkeypatch, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    torch._dynamo.reset()
    assert run(gpu, monkeypatch, "--out", out) == 0, capsys.readouterr().out
    found = json.loads(out.read_text())
    assert {"torch", "device", "size", "python"} <= found["hardware"].keys()
    assert [row["verdict"] for name, row in found["rows"].items() if name.startswith("correct")] == ["right"] * 6
    speeds = {name: row for name, row in found["rows"].items() if name.startswith("speed")}
    assert speeds.keys() == {f"speed: {name}" for name in gpu.figures(gpu.SMALL)}
    generation = speeds["speed: generation, tiny"]
    assert generation["masks"] > 4
    assert generation["bfloat16, same boxes"] > 0.3
    assert all(row["took, s"] >= 0 for row in speeds.values())
    assert "| correct: pooling | error" in capsys.readouterr().out

    before = out.read_bytes()
    monkeypatch.setattr(gpu, "CHECKS", dict.fromkeys(gpu.CHECKS, None))
    monkeypatch.setattr(gpu, "figures", lambda size: {})
    assert run(gpu, monkeypatch, "--out", out) == 0
    assert out.read_bytes() == before


def test_what_is_wrong_or_fails_is_said_kept_and_tried_again(gpu, monkeypatch, tmp_path, capsys):
    out, calls = tmp_path / "gpu.json", []

    def failing(device, size):
        calls.append("failing")
        raise RuntimeError("no such thing\nat all")

    checks = {"pooling": lambda *_: {"verdict": "error 1 above 0"}, "metrics": failing}
    monkeypatch.setattr(gpu, "CHECKS", checks)
    monkeypatch.setattr(gpu, "figures", lambda size: {})
    assert run(gpu, monkeypatch, "--out", out) == 1
    assert "wrong or failed: correct: pooling, correct: metrics" in capsys.readouterr().out
    assert json.loads(out.read_text())["rows"]["correct: metrics"]["failed"] == "RuntimeError: no such thing"
    monkeypatch.setitem(checks, "metrics", lambda *_: {"verdict": "right"})
    monkeypatch.setitem(checks, "pooling", failing)  # known, and not measured again
    run(gpu, monkeypatch, "--out", out)
    assert calls == ["failing"]


def test_a_device_that_breaks_ends_it_and_the_next_call_goes_on(gpu, monkeypatch, tmp_path, capsys):
    def broken(device, size):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu, "CHECKS", {"pooling": broken, "metrics": lambda *_: {"verdict": "right"}})
    monkeypatch.setattr(gpu, "figures", lambda size: {})
    assert run(gpu, monkeypatch, "--out", tmp_path / "gpu.json") == 1
    assert "run the same command again" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == ["correct: pooling"]


def test_figures_of_another_machine_are_not_mixed_in(gpu, monkeypatch, tmp_path):
    out = tmp_path / "gpu.json"
    out.write_text(json.dumps({"hardware": {"device": "another"}, "rows": {"correct: pooling": {"verdict": "right"}}}))
    monkeypatch.setattr(gpu, "CHECKS", {"metrics": lambda *_: {"verdict": "right"}})
    monkeypatch.setattr(gpu, "figures", lambda size: {})
    assert run(gpu, monkeypatch, "--out", out) == 0
    assert list(json.loads(out.read_text())["rows"]) == ["correct: metrics"]
