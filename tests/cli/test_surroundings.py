"""Commands on machines that leave things undone, each as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

RUN = "import sys; from samdeblur.cli.programs import {}; sys.argv[0] = 'samdeblur'; {}()"


def program(*arguments, name="prep", **environment):
    values = {"PATH": os.environ["PATH"]} | {k: str(v) for k, v in environment.items()}
    return subprocess.run(
        [sys.executable, "-c", RUN.format(name, name), *map(str, arguments)],
        env=values, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "environment",
    [
        {"MPLBACKEND": "module://no_such_backend"},
        {"HOME": "/nonexistent"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"TMPDIR": "/" + "long/" * 30},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_commands_start_where_things_are_missing(store, environment):
    ended = program("info", store, **environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("pairs test: ")


def test_names_are_read_as_utf8_whatever_the_locale(samdeblur, store, tmp_path):
    os.rename(store, tmp_path / "nuit-été-夜.zarr")
    ended = program("status", tmp_path / "nuit-été-夜.zarr", LC_ALL="POSIX", PYTHONUTF8=0, PYTHONCOERCECLOCALE=0)
    assert (ended.returncode, "nuit-été-夜.zarr: 5 of 5 images done" in ended.stdout) == (0, True)


def test_a_name_is_shown_in_any_encoding(store, tmp_path):
    os.rename(store, tmp_path / "夜….zarr")
    ended = program("status", tmp_path / "夜….zarr", PYTHONIOENCODING="latin-1:strict")
    assert (ended.returncode, r"\u591c\u2026.zarr: 5 of 5 images done" in ended.stdout) == (0, True)


def test_a_deleted_current_folder_is_called_that(store, tmp_path):
    (tmp_path / "gone").mkdir()
    call = RUN.format("prep", "prep")
    gone = f"import os; os.chdir({str(tmp_path / 'gone')!r}); os.rmdir(os.getcwd()); {call}"
    ended = subprocess.run([sys.executable, "-c", gone, "verify", store], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: the current folder has been deleted; change to one that is there")


def test_who_reads_no_further_is_told_nothing(store):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:
        ended = subprocess.run(
            [sys.executable, "-c", RUN.format("prep", "prep"), "info", str(store)],
            stdout=closed, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (1, "")
