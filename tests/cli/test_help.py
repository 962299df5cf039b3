"""What commands say of themselves, and of names that they do not know."""

from __future__ import annotations

import inspect

import click
import pytest

from samdeblur.cli import eval as evaluation
from samdeblur.cli import prep, train
from samdeblur.cli.commands.run import GROUPS
from samdeblur.cli.support.choices import PRECISIONS


def every_command(command, path=()):
    yield path, command
    for name, one in getattr(command, "commands", {}).items():
        yield from every_command(one, (*path, name))


COMMANDS = {
    (program, *path): command
    for program, root in (("prep", prep.cli), ("train", train.cli), ("eval", evaluation.cli))
    for path, command in every_command(root)
}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_help_is_whole(samdeblur, path):
    shown = samdeblur(*path, "--help")
    assert shown.code == 0
    assert "--debug" in shown.out
    assert "..." not in shown.out.partition("Commands:")[2]
    for name, command in getattr(COMMANDS[path], "commands", {}).items():
        first = inspect.cleandoc(command.help).split("\n\n")[0]
        sentence = " ".join(first.split()).partition(". ")[0].rstrip(".")
        assert sentence in " ".join(shown.out.split()), name


def test_options_of_a_preparation_are_in_groups(samdeblur):
    shown = samdeblur("prep", "run", "--help").out
    titles = [line.rstrip(":") for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == [*GROUPS, "Other options"]
    options = {str(p.name): p for p in COMMANDS["prep", "run"].params if isinstance(p, click.Option)}
    assert {name for names in GROUPS.values() for name in names} == options.keys()
    for name, option in options.items():
        assert shown.count(f"\n  {option.opts[0]}") >= 1, name


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (["prep", "run", "--imges"], "--with-images"),
        (["prep", "run", "--point-per-side", "3"], "--points-per-side"),
        (["prep", "stats", "x"], "status"),
        (["prep", "exprot", "x"], "export"),
        (["prep", "weights", "fetsh"], "fetch"),
        (["train", "x", "--out", "y", "--step", "3"], "--steps"),
        (["eval", "tables"], "table"),
        (["eval", "run", "a", "b", "--out", "c", "--image", "d"], "--images"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_the_closest_name_is_named_first(samdeblur, arguments, first):
    refused = samdeblur(*arguments)
    assert refused.code == 2
    assert f"Did you mean {first}" in refused.err
    assert refused.err.count("\n") == 1


@pytest.mark.parametrize("path", [("prep", "run"), ("eval", "run"), ("eval", "restore")], ids=" ".join)
def test_precisions_have_one_name_everywhere(path):
    (option,) = [one for one in COMMANDS[path].params if one.name == "precision"]
    assert tuple(option.type.choices) == PRECISIONS
    context = click.Context(COMMANDS[path])
    assert [option.type.convert(short, option, context) for short in ("bf16", "fp16", "tf32")] == [
        "bfloat16", "float16", "tf32"
    ]  # fmt: skip


def test_images_is_a_folder_and_never_a_flag():
    named = [(path, one) for path, command in COMMANDS.items() for one in command.params if "--images" in one.opts]
    assert len(named) >= 5
    assert not [path for path, one in named if one.is_flag]
