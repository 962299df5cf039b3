"""A slice of the fault campaign; `make faults` runs all of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from places import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="the campaign forks and looks into its children")
def test_ten_kills_lose_nothing_and_every_store_ends_with_the_bytes_of_an_undisturbed_one(tmp_path):
    options = ["--kills", "10", "--slice", "--out", tmp_path / "faults.json"]
    command = [sys.executable, "-m", "benchmarks.pipeline.faults", *options]
    campaign = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
    total = json.loads((tmp_path / "faults.json").read_text())["total"]
    assert (total["faults"] >= 10, total["stores"] >= 4, total["wrong"]) == (True, True, 0)
