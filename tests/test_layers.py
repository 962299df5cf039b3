"""`lint-imports` holds the layers of .importlinter, and notices what breaks them."""

import os
import shutil
import subprocess
import sys

import pytest
from places import ROOT

PACKAGES = [path.parent.name for path in ROOT.glob("*/py.typed")]


@pytest.fixture
def lint(tmp_path):
    """The check, on a copy of the packages in which a file of one may get another line."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / "samdeblur" / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)

    def run(file="", line=""):
        if file:
            path = tmp_path / "samdeblur" / file
            path.write_text(path.read_text() if path.exists() else "")
            path.write_text(path.read_text() + f"\n{line}\n")
        command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
        return subprocess.run(
            [sys.executable, "-c", command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    return run


def test_imports_run_downhill(lint):
    done = lint()
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("storage/atoms.py", "from samdeblur.models import NAFNet", "The packages"),
        ("evaluation/results.py", "from samdeblur.train.config import TrainConfig", "The packages"),
        ("evaluation/sets.py", "from samdeblur.pipeline import open_source", "The packages"),
        ("train/loop.py", "import samdeblur.pipeline.sources.worlds", "Training reads stores"),
        ("storage/format/layout.py", "from samdeblur.storage.store import MaskStore", "The rooms of storage"),
        (
            "models/networks/nafnet.py",
            "def late():\n    from samdeblur.models.priors.cat import CATPrior",
            "The rooms of models",
        ),
        ("pipeline/sources/base.py", "from samdeblur.pipeline.sources.worlds import WorldSource", "Sources"),
        (
            "evaluation/tables/cells.py",
            "from samdeblur.evaluation.report.page import SCRIPTS",
            "The rooms of evaluation",
        ),
        ("train/config.py", "from samdeblur.train.loop import train", "The rooms of train"),
        ("models/attic.py", "", "The rooms of models"),
    ],
)
def test_an_import_that_runs_up_is_noticed(lint, file, line, contract):
    done = lint(file, line)
    assert done.returncode == 1
    assert [text for text in done.stdout.splitlines() if contract in text and text.endswith("BROKEN")], done.stdout
