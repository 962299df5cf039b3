"""A slice of the campaign of benchmarks/pipeline/races.py, with processes that really stop."""

import json
import subprocess
import sys

import pytest
from places import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="the campaign forks and stops its children")
def test_jobs_at_the_same_instant_and_jobs_that_slept_leave_the_store_of_one(tmp_path):
    options = ["--races", "3", "--every", "19", "--out", str(tmp_path / "races.json")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pipeline.races", *options], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "races.json").read_text())
    assert (found["races"]["times"], found["wrong"]) == (3, [])
    assert found["suspended"]["changes stopped at"] >= 4
