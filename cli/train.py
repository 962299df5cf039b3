"""samdeblur-train: from a mask store to a trained network."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import click

from samdeblur.cli.messages import progress_bar, run_command
from samdeblur.models import METHODS
from samdeblur.storage import open_store
from samdeblur.train.config import TrainConfig, parse_assignment, read_config
from samdeblur.train.loop import train
from samdeblur.train.state import Row


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="samdeblur")
@click.argument("store")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the run.")
@click.option("--method", type=click.Choice(METHODS), help="Row of the paper's Table 1.  [default: none]")
@click.option("--val", help="Store to validate on.  [default: images of STORE]")
@click.option("--config", default="paper", show_default=True, help="Preset (paper, tiny, worlds) or YAML file.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Override a setting; may be repeated.")
@click.option("--steps", type=int, help="Short for --set steps=...")
@click.option("--batch-size", type=int, help="Short for --set batch_size=...")
@click.option("--seed", type=int, help="Short for --set seed=...")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Short for --set device=...")
def cli(store: str, out: Path, val: str | None, config: str, assignments: tuple[str, ...], **shortcuts: Any) -> None:
    """Train NAFNet with a prior on the crops of STORE: a folder, a share, or the http(s):// or s3:// address of one.

    Run the same command again to go on with a run that was stopped: on a CPU it goes on exactly as if it had not been.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. --debug shows tracebacks.
    """
    values = read_config(config) | dict(map(parse_assignment, assignments))
    values |= {name: value for name, value in shortcuts.items() if value is not None}
    settings = TrainConfig.of(values)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    training, validation = open_store(store), open_store(val) if val else None
    start = time.monotonic()
    with progress_bar(total=settings.steps, unit="step", desc=settings.method) as bar:
        shown: dict[str, str] = {}

        def progress(row: Row) -> None:
            if not shown:  # the first call says where the run starts, or goes on
                bar.initial = bar.n = bar.last_print_n = int(row["step"])
            bar.update(int(row["step"]) - bar.n)
            if "loss" in row:
                shown["loss"] = f"{row['loss']:.3f}"
            if "val_psnr" in row:
                shown["val"] = f"{row['val_psnr']:.2f} dB"
            bar.set_postfix(shown, refresh=False)

        history = train(settings, training, out, validation, progress)
    best = max((row for row in history if "val_psnr" in row), key=lambda row: row["val_psnr"])
    click.echo(
        f"{out}: {settings.steps} steps of {settings.method} in {time.monotonic() - start:.0f} s; validation PSNR "
        f"{history[0]['val_psnr']:.2f} dB at step 0, best {best['val_psnr']:.2f} dB at step {int(best['step'])}"
    )
    click.echo(f"curves: {out / 'curves.png'}   weights: {out / 'best.safetensors'}")


def main() -> None:
    run_command(cli, "; run the same command again to go on from the last state saved")


if __name__ == "__main__":
    main()
