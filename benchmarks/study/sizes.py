"""Whether the order of the rows is the same for networks of other sizes: gains side by side, and how far ranks agree.

python benchmarks/study/sizes.py half/priors.json found/priors.json double/priors.json

Each file is what `python benchmarks/study --size priors...` left in its folder; rows that all have are compared.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import click
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))

from summary import markdown


@click.command(help=__doc__)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(files: tuple[Path, ...]) -> None:
    if len(files) < 2:
        raise click.UsageError("give two files or more, from the smallest network to the largest")
    found = [json.loads(file.read_text())["over none"] for file in files]
    rows = [row for row in found[0] if all(row in of for of in found)]
    if len(rows) < 3:
        raise click.ClickException(f"{len(rows)} rows are in all of them; ranks need three")
    body = [[row, *(_cell(of[row]) for of in found)] for row in rows]
    click.echo(markdown(["", *(str(file.parent) for file in files)], body))
    for (one, of), (other, of_other) in pairwise(zip(files, found, strict=True)):
        rank = stats.spearmanr([of[row]["mean"] for row in rows], [of_other[row]["mean"] for row in rows])
        click.echo(f"{one.parent}, {other.parent}: rank correlation {rank.statistic:.2f} of {len(rows)} rows")


def _cell(gain: dict[str, float]) -> str:
    text = f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]"
    return f"**{text}**" if gain["corrected p"] < 0.05 else text


if __name__ == "__main__":
    main()
