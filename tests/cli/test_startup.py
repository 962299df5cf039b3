"""Commands that need no network load none: each in a process of its own, which says what it loaded."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from samdeblur.cli import messages
from samdeblur.cli.support import choices

HEAVY = ("torch", "torchvision", "distributed", "skimage", "matplotlib", "segment_anything")
SAY = """
import importlib, sys
sys.argv = ["samdeblur-{program}", *{arguments!r}]
try:
    importlib.import_module("samdeblur.cli.{program}").main()
finally:
    print("LOADED", *[name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


def loaded(program, *arguments):
    code = SAY.format(program=program, arguments=[*map(str, arguments)], heavy=HEAVY)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("LOADED")]
    return ended.returncode, line.split()[1:]


@pytest.mark.parametrize("program", ["prep", "train", "eval"])
def test_help_and_refusals_load_nothing(program):
    more = ("run",) if program != "train" else ()
    for arguments, code in ((["--help"], 0), (["--version"], 0), ([*more, "--help"], 0), ([*more, "--no-such"], 2)):
        assert loaded(program, *arguments) == (code, [])


@pytest.mark.parametrize("command", ["status", "info", "verify", "export", "view", "subset", "diff"])
def test_commands_on_stores_load_no_network(store, tmp_path, command):
    more = {
        "export": [tmp_path / "share.zip"],
        "view": [tmp_path / "sheet.html"],
        "subset": [tmp_path / "part.zarr", "--keys", "000"],
        "diff": [store],
    }
    assert loaded("prep", command, store, *more.get(command, [])) == (0, [])


def test_weights_are_listed_without_a_network():
    assert loaded("prep", "weights", "list") == (0, [])


def test_choices_said_again_are_those_of_their_modules():
    from samdeblur.evaluation.metrics.mode_collapse import COLLAPSE_DB
    from samdeblur.evaluation.restore_files import PAGE
    from samdeblur.evaluation.tables.bootstrap import RESAMPLES
    from samdeblur.evaluation.tables.formats import FILES
    from samdeblur.models import METHODS
    from samdeblur.models.inference.tiles import OVERLAP
    from samdeblur.pipeline.job.cluster import PATIENCE
    from samdeblur.pipeline.segmenters.mask_generator import SAM_SETTINGS
    from samdeblur.pipeline.segmenters.sam import BUNDLED_SETTINGS
    from samdeblur.storage.exchange.convert import EXPORTS, FORMATS
    from samdeblur.storage.photos import FORMS

    assert choices.SAM_SETTINGS == SAM_SETTINGS
    assert choices.BUNDLED_SETTINGS == BUNDLED_SETTINGS
    assert (choices.IMPORTS, choices.EXPORTS, choices.METHODS) == (FORMATS, EXPORTS, METHODS)
    assert (choices.PATIENCE, choices.OVERLAP, choices.COLLAPSE_DB) == (PATIENCE, OVERLAP, COLLAPSE_DB)
    assert (choices.TABLES, choices.RESAMPLES, choices.COMPARE_PAGE) == (FILES, RESAMPLES, PAGE)
    assert tuple(FORMS) == choices.RESULT_FORMATS


@pytest.mark.parametrize("name", sorted(messages.REFUSALS | messages.FAILURES))
def test_every_error_that_is_told_by_name_is_there(name):
    module, _, kind = name.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), kind), Exception)
