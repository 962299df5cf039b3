"""Commands whose help says everything: options in groups, sentences in full, and what run_command takes of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

LONG = 1000  # letters of a sentence in a list of commands, which is wrapped, not cut


class _WithDebug:
    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        debug = click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")
        *params, last = super().get_params(ctx)  # type: ignore[misc]
        return [*params, debug, last]  # before --help

    def get_short_help_str(self, limit: int = LONG) -> str:
        return str(super().get_short_help_str(LONG))  # type: ignore[misc]


class Command(_WithDebug, click.Command):
    """A command whose options are shown in groups.

    Args:
        groups: title -> names of parameters.
    """

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.groups = groups or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        titles = {name: title for title, names in self.groups.items() for name in names}
        rest = "Other options" if self.groups else "Options"
        for title in dict.fromkeys([*self.groups, rest]):
            records = [o.get_help_record(ctx) for o in options if titles.get(str(o.name), rest) == title]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


class Group(_WithDebug, click.Group):
    """A group of such commands."""

    command_class = Command
