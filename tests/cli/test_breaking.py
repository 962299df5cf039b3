"""A slice of the campaign of benchmarks/cli/breaking.py."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from places import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="the campaign mounts, and looks into its children")
def test_what_is_damaged_starved_or_told_to_end_is_never_wrong_nor_without_end(tmp_path):
    found = tmp_path / "breaking.json"
    command = [sys.executable, "-m", "benchmarks.cli.breaking", "--slice", "--out", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = json.loads(found.read_text())["kinds"]
    assert len(kinds) >= 4
    assert kinds["a bit of a store flipped"]["times"] == 30
    assert kinds["a bit of a store flipped"]["ends"]["refused"] > 0
    assert not any(row["wrong"] for row in kinds.values())
