"""Job files: several stores to prepare, as YAML. A key is an option of `samdeblur-prep run`, checked as that is."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from samdeblur.storage.documents import read_yaml, yaml_lines, yaml_problem
from samdeblur.storage.files import decode_text

JOBS = Path(__file__).parents[1] / "jobs"
# Options of the command that do not belong to one store.
OF_THE_RUN = ("job", "workers", "scheduler", "memory_limit", "patience", "progress", "dry_run", "retry_quarantined")


def read_job(location: str, command: click.Command, context: click.Context) -> list[dict[str, Any]]:
    """The parameters of `command` for each store of a job file; what was given on the command line goes before.

    Args:
        location: a file, or the name of one that comes with the package.

    Raises:
        FileNotFoundError: no such file.
        UsageError: not YAML, an unknown key, a value an option does not take, or a store that is named twice.
    """
    path = JOBS / f"{location}.yaml" if (JOBS / f"{location}.yaml").is_file() else Path(location)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in JOBS.glob("*.yaml")))
        raise FileNotFoundError(f"{location}: no such job file, nor one of those that come with the package ({names})")
    try:
        text = decode_text(path.read_bytes())
        document, lines = read_yaml(text, yaml.BaseLoader), yaml_lines(text)  # text, as options are
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise click.UsageError(yaml_problem(path, error)) from error
    if not isinstance(document, dict) or not isinstance(document.get("stores"), list) or not document["stores"]:
        raise click.UsageError(f"{path}: a job is a mapping with a list of `stores`, each with source, store and split")
    known = {str(parameter.name): parameter for parameter in command.params if parameter.name not in OF_THE_RUN}
    given = {
        name: value
        for name, value in context.params.items()
        if name in known and context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
    }
    only = given.pop("split", None)
    for name in ("source", "store"):
        if given.pop(name, None) is not None:
            raise click.UsageError("give SOURCE and STORE, or --job, not both")

    def at(*place: str | int) -> str:
        return f"{path}, line {lines[place]}" if place in lines else str(path)

    common = _checked({k: v for k, v in document.items() if k != "stores"}, known, context, at)
    jobs = []
    for number, entry in enumerate(document["stores"], 1):

        def of_store(*key: str, number: int = number) -> str:
            return f"{at('stores', number - 1, *key)}: store {number}"

        where = of_store()
        if not isinstance(entry, dict):
            raise click.UsageError(f"{where}: not a mapping of names to values")
        values = {**common, **_checked(entry, known, context, of_store)}
        missing = [name for name in ("source", "store", "split") if not values.get(name)]
        if missing:
            raise click.UsageError(f"{where}: {missing[0]} is missing")
        jobs.append({**context.params, **values, **given})
    jobs = [job for job in jobs if only is None or job["split"] == only]
    if not jobs:
        raise click.UsageError(f"{path}: no store of split {only}")
    twice = [
        job["store"] for number, job in enumerate(jobs) if job["store"] in [other["store"] for other in jobs[:number]]
    ]
    if twice:
        raise click.UsageError(f"{path}: {twice[0]} is the store of two entries")
    return jobs


def _checked(
    values: Mapping[str, Any], known: Mapping[str, click.Parameter], context: click.Context, at: Callable[[str], str]
) -> dict[str, Any]:
    """Values by the name of their parameter, converted as on the command line; $NAME and ~ are replaced in texts.

    Args:
        at: gives the file and the line of a key.
    """
    found = {}
    for key, value in values.items():
        name, where = str(key).replace("-", "_"), at(str(key))
        if name in OF_THE_RUN:
            raise click.UsageError(f"{where}: {key} applies to the whole run; give it on the command line")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise click.UsageError(f"{where}: {key}: no such setting; {hint}")
        if isinstance(value, str):
            value = os.path.expanduser(os.path.expandvars(value))
            if unset := re.search(r"\$\{?(\w+)", value):
                raise click.UsageError(f"{where}: {key}: the environment has no {unset[1]}; export {unset[1]}=...")
        if isinstance(value, dict) or (isinstance(value, list) and not known[name].multiple):
            raise click.UsageError(
                f"{where}: {key}: {'a mapping' if isinstance(value, dict) else 'a list'}, not a value"
            )
        try:
            found[name] = known[name].type_cast_value(context, value)
        except click.BadParameter as error:
            raise click.UsageError(f"{where}: {key}: {error.message}") from error
    return found
