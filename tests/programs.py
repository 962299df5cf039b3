"""The commands in this process, as a fixture for those conftest.py that import it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from samdeblur.cli import eval as eval_command
from samdeblur.cli import prep, train

PROGRAMS = {"prep": prep.main, "train": train.main, "eval": eval_command.main}


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error; fails when there is more than that on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        return lines[0]


@pytest.fixture
def samdeblur(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """samdeblur("prep", "run", ...) -> Result, as the console script would end."""

    def call(program: str, *arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", [f"samdeblur-{program}", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            PROGRAMS[program]()
        out, err = capfd.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return call
