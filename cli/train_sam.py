"""python -m samdeblur.cli.train_sam: trains the bundled Segment Anything model, or another of its kind."""

from __future__ import annotations

from pathlib import Path

import click

from samdeblur.cli.messages import progress_bar, run_command
from samdeblur.cli.support.commands import Command
from samdeblur.cli.support.paths import FOLDER, PLACE, READ
from samdeblur.models import load_sam
from samdeblur.storage import open_store
from samdeblur.train.sam.training import PHASES, scaled, train_sam


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("stores", nargs=-1, required=True, type=PLACE)
@click.option("--out", required=True, type=FOLDER, help="Folder of the run.")
@click.option("--seed", default=0, show_default=True)
@click.option("--weights", type=READ, help="Model to train on, or bundled; layers that fit are taken.")
@click.option("--steps", type=click.IntRange(1), help="Of the whole schedule.  [default: as it is written]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def cli(stores: tuple[str, ...], out: Path, seed: int, weights: Path | None, steps: int | None, device: str) -> None:
    """Train a small Segment Anything model on STORES, made with --segmenter true-masks; writes OUT/sam.safetensors.

    Run the same command again to go on with a run that was stopped.
    """
    phases = scaled(PHASES, steps, trained=weights is not None)
    with progress_bar(total=sum(phase.steps for phase in phases), unit="step", desc="sam") as bar:

        def progress(row: dict[str, float]) -> None:
            bar.update(int(row["step"]) - bar.n)
            bar.set_postfix({name: f"{row[name]:.3f}" for name in ("loss", "iou") if name in row}, refresh=False)

        start = load_sam(weights, calibrated=False).state_dict() if weights else None
        opened = [open_store(store) for store in stores]
        train_sam(opened, out, phases=phases, seed=seed, weights=start, device=device, progress=progress)
    click.echo(f"{out / 'sam.safetensors'}")


def main() -> None:
    run_command(cli, "; run the same command again to go on from the last state saved")


if __name__ == "__main__":
    main()
