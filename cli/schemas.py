"""python -m samdeblur.cli.schemas [FOLDER]: writes what is said of settings from where they are said.

The table of docs/training.md, and JSON schemas with which editors complete and check YAML files: those of
`samdeblur-train --config` and of `samdeblur-prep run --job`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from samdeblur.cli.commands.run import run
from samdeblur.cli.support.jobfile import OF_THE_RUN
from samdeblur.train.config import TrainConfig
from samdeblur.train.settings import schema, table

BEGIN, END = "<!-- settings: written by python -m samdeblur.cli.schemas -->\n", "<!-- end of settings -->\n"
REQUIRED = ("source", "store", "split")


def train_schema() -> dict[str, Any]:
    """Of a file for `--config`, which may change another."""
    found = schema(TrainConfig, "Settings of samdeblur-train")
    base = {"type": "string", "description": "preset, or file beside this one, that this one changes"}
    return found | {"properties": {"base": base, **found["properties"]}}


def job_schema() -> dict[str, Any]:
    """Of a file for `--job`: what its stores have in common, and each store."""
    of_a_store = {
        str(parameter.name): _schema_of(parameter) for parameter in run.params if parameter.name not in OF_THE_RUN
    }
    of_a_store.pop("help", None)
    one = {"type": "object", "additionalProperties": False, "properties": of_a_store}
    stores = {"type": "array", "minItems": 1, "items": one, "description": "what to prepare"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Jobs of samdeblur-prep run",
        "description": f"Each store needs {', '.join(REQUIRED)}, its own or those of all. Texts take $NAME and ~.",
        "type": "object",
        "additionalProperties": False,
        "required": ["stores"],
        "properties": {"stores": stores, **of_a_store},
    }


def _schema_of(parameter: click.Parameter) -> dict[str, Any]:
    """An option as YAML may give it: texts stand for anything, as on the command line."""
    kind = parameter.type
    found: dict[str, Any] = {"type": "string"}
    if isinstance(kind, click.Choice):
        found = {"enum": list(kind.choices)}
    elif isinstance(parameter, click.Option) and parameter.is_flag:
        found = {"type": "boolean"}
    elif isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
        found = {"type": "integer" if isinstance(kind, click.types.IntParamType) else "number"}
        if isinstance(kind, click.IntRange | click.FloatRange):
            limits = {"exclusiveMinimum" if kind.min_open else "minimum": kind.min}
            limits |= {"exclusiveMaximum" if kind.max_open else "maximum": kind.max}
            found |= {name: value for name, value in limits.items() if value is not None}
    if parameter.multiple:
        found = {"anyOf": [found, {"type": "array", "items": found}]}
    text = getattr(parameter, "help", None)
    return found | ({"description": " ".join(text.split())} if text else {})


def with_table(text: str) -> str:
    """docs/training.md with the table as the settings have it now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + table(TrainConfig) + "\n" + END + after


def as_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    page = folder / "training.md"
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
    for name, document in (("train.schema.json", train_schema()), ("job.schema.json", job_schema())):
        (folder / "schemas").mkdir(exist_ok=True)
        (folder / "schemas" / name).write_text(as_text(document), encoding="utf-8")


if __name__ == "__main__":
    main()
