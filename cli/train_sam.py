"""python -m samdeblur.cli.train_sam: trains the bundled Segment Anything model, or another of its kind."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from samdeblur.cli.messages import progress_bar, run_command
from samdeblur.cli.support.paths import FOLDER, PLACE
from samdeblur.storage import open_store
from samdeblur.train.sam.training import PHASES, train_sam


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("store", type=PLACE)
@click.option("--out", required=True, type=FOLDER, help="Folder of the run.")
@click.option("--seed", default=0, show_default=True)
def cli(store: str, out: Path, seed: int) -> None:
    """Train a small Segment Anything model on STORE, made with --segmenter true-masks; writes OUT/sam.safetensors.

    Run the same command again to go on with a run that was stopped.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with progress_bar(total=sum(phase.steps for phase in PHASES), unit="step", desc="sam") as bar:

        def progress(row: dict[str, float]) -> None:
            bar.update(int(row["step"]) - bar.n)
            bar.set_postfix({name: f"{row[name]:.3f}" for name in ("loss", "iou") if name in row}, refresh=False)

        train_sam(open_store(store), out, seed=seed, progress=progress)
    click.echo(f"{out / 'sam.safetensors'}")


def main() -> None:
    run_command(cli, "; run the same command again to go on from the last state saved")


if __name__ == "__main__":
    main()
