"""Table 1 of arXiv 2309.02270 in one command: masks of all sets, four trainings, four evaluations, the table.

python -m benchmarks.evaluation.table1 --gopro GOPRO_Large --realblur-j RealBlur --reds REDS --reloblur RELO --out OUT
python -m benchmarks.evaluation.table1 ... --plan             # print the commands
python -m benchmarks.evaluation.table1 ... --processes 8      # with torchrun, on eight GPUs

Run the same command again and it goes on where it stopped. A set that is not given is left out. docs/table1.md says
what the real thing takes.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

METHODS = ("none", "cat", "map", "map-dropout")
TEST_SPLITS = {"gopro": "test", "realblur-j": "test", "reds": "val", "reloblur": "test"}  # by layout
TABLE = "comparison"  # folder of the table
HELD_OUT = 0.01  # of GoPro's training images, for the curves; the weights that are evaluated are the last ones

Runner = Callable[[str, Sequence[str]], int]


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        roots: layout -> folder of the dataset.
        out: where stores, runs, results and the table go.
        prepare, train, evaluate: options for all commands of that kind.
        processes: GPUs that a training, or an evaluation, is shared out to.
        variant: ending of the presets: "" as the paper, "-released" as the released code.
    """

    roots: dict[str, str]
    out: Path
    prepare: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    processes: int = 1
    variant: str = ""
    predeblur: str = "nafnet_gopro_width32"
    sam: str = "sam_vit_h"

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """(program, arguments) of every step, in order."""
        masks = ["--sam", self.sam] if self.sam else []
        yield (
            "prep",
            ["run", self.roots["gopro"], self._store("gopro", "train"), "--split", "train", "--layout", "gopro",
             "--predeblur", self.predeblur, *masks, *self.prepare],
        )  # fmt: skip
        for layout, root in self.roots.items():
            split = TEST_SPLITS[layout]
            yield (
                "prep",
                ["run", root, self._store(layout, split), "--split", split, "--layout", layout, "--predeblur", "none",
                 *masks, *self.prepare],
            )  # fmt: skip
        for method in METHODS:
            yield (
                "train",
                [self._store("gopro", "train"), "--config", f"gopro-{method}{self.variant}", "--out", self._run(method),
                 "--set", f"val_share={HELD_OUT}", *self.train],
            )  # fmt: skip
        stores = [self._store(layout, TEST_SPLITS[layout]) for layout in self.roots]
        for method in METHODS:
            yield (
                "eval",
                [
                    "run",
                    self._run(method),
                    *stores,
                    "--weights",
                    "last",
                    "--out",
                    self._results(method),
                    *self.evaluate,
                ],
            )
        yield ("eval", ["table", *map(self._results, METHODS), "--out", str(self.out / TABLE)])

    def _store(self, layout: str, split: str) -> str:
        return str(self.out / "stores" / f"{layout}-{split}.zarr")

    def _run(self, method: str) -> str:
        return str(self.out / "runs" / f"{method}{self.variant}")

    def _results(self, method: str) -> str:
        return str(self.out / "results" / f"{method}{self.variant}")


def in_subprocess(program: str, arguments: Sequence[str], processes: int = 1) -> int:
    """Run a command of the package by itself, or shared out to several processes; its exit code."""
    command = [sys.executable, "-m", f"samdeblur.cli.{program}"]
    if processes > 1 and program in ("train", "eval") and arguments[0] != "table":
        command[1:2] = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "-m"]
    return subprocess.run([*command, *arguments], check=False).returncode


def run(plan: Plan, runner: Runner, say: Callable[[str], None] = click.echo) -> int:
    """Every step, until one fails. Images that were quarantined, or left out, stop nothing. Gives the exit code."""
    commands = list(plan.commands())
    for number, (program, arguments) in enumerate(commands, 1):
        say(f"[{number}/{len(commands)}] samdeblur-{program} {shlex.join(arguments)}")
        code = runner(program, arguments)
        if code not in (0, 3):
            say(f"that ended with {code}; mend it and run the same command again")
            return code
    return 0


@click.command(help=__doc__)
@click.option("--gopro", required=True, help="GOPRO_Large, with train and test.")
@click.option("--realblur-j")
@click.option("--reds")
@click.option("--reloblur")
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--sam", default="sam_vit_h", show_default=True, help="As samdeblur-prep run takes it.")
@click.option("--predeblur", default="nafnet_gopro_width32", show_default=True, help="As samdeblur-prep run takes it.")
@click.option("--released", is_flag=True, help="Train as the released code does, not as the paper says.")
@click.option("--processes", default=1, show_default=True, help="GPUs for each training and evaluation.")
@click.option("--prepare", default="", help="More options for samdeblur-prep run, as one text.")
@click.option("--train", default="", help="More options for samdeblur-train, as one text.")
@click.option("--evaluate", default="", help="More options for samdeblur-eval run, as one text.")
@click.option("--plan", "only_plan", is_flag=True, help="Print the commands and do nothing.")
def main(
    gopro: str,
    realblur_j: str | None,
    reds: str | None,
    reloblur: str | None,
    out: Path,
    sam: str,
    predeblur: str,
    released: bool,
    processes: int,
    prepare: str,
    train: str,
    evaluate: str,
    only_plan: bool,
) -> None:
    roots = {"gopro": gopro, "realblur-j": realblur_j, "reds": reds, "reloblur": reloblur}
    plan = Plan(
        {layout: root for layout, root in roots.items() if root},
        out,
        tuple(shlex.split(prepare)),
        tuple(shlex.split(train)),
        tuple(shlex.split(evaluate)),
        processes,
        "-released" if released else "",
        predeblur,
        sam,
    )
    if only_plan:
        for program, arguments in plan.commands():
            click.echo(f"samdeblur-{program} {shlex.join(arguments)}")
        return
    sys.exit(run(plan, lambda program, arguments: in_subprocess(program, arguments, processes)))


if __name__ == "__main__":
    main()
