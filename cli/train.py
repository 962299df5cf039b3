"""samdeblur-train: from a mask store to a trained network."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from samdeblur.cli.messages import FAILED, REQUEUE, WRONG_USAGE, is_one_of, progress_bar, run_command
from samdeblur.cli.support.choices import METHODS
from samdeblur.cli.support.commands import Command
from samdeblur.cli.support.images import images_options, say_left_out, some, with_all_images
from samdeblur.cli.support.paths import FOLDER, PLACE
from samdeblur.storage import folders
from samdeblur.storage.plurals import counted

if TYPE_CHECKING:
    from samdeblur.storage import MaskStore
    from samdeblur.train.state import Row

# What comes to all processes of a run.
_ALIKE = {
    "samdeblur.train.stopping.Stopped": REQUEUE,
    "samdeblur.train.running.Diverged": FAILED,
    "samdeblur.train.settings.ConfigError": WRONG_USAGE,
    "samdeblur.storage.folders.NotItsFolder": WRONG_USAGE,
}


@contextmanager
def _only_first_process_prints() -> Iterator[None]:
    """Leave it to the first process to say what comes to all."""
    try:
        yield
    except Exception as error:
        from samdeblur.evaluation.ranks import is_first

        codes = [code for name, code in _ALIKE.items() if is_one_of(error, {name})]
        if not codes or is_first():
            raise
        sys.exit(codes[0])


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="samdeblur")
@click.argument("stores", metavar="STORE[=SHARE]...", nargs=-1, required=True, type=PLACE)
@click.option("--out", required=True, type=FOLDER, help="Folder of the run.")
@click.option("--method", type=click.Choice(METHODS), help="Row of the paper's Table 1.  [default: none]")
@click.option("--val", type=PLACE, help="Store to validate on.  [default: images of STORE]")
@images_options
@click.option("--config", default="paper", show_default=True,
              help="YAML file, or preset: paper, tiny, worlds, gopro-METHOD, gopro-METHOD-released, unet, uformer, "
                   "swinir, fftformer, restormer.")  # fmt: skip
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Override a setting; may be repeated.")
@click.option(
    "--weights", help="Checkpoint to begin with: a run, a public NAFNet, bundled.  Short for --set weights=..."
)
@click.option("--steps", type=int, help="Short for --set steps=...")
@click.option("--extend", is_flag=True, help="Go on with a run to more --steps than it was asked for.")
@click.option("--batch-size", type=int, help="Short for --set batch_size=...")
@click.option("--seed", type=int, help="Short for --set seed=...")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Short for --set device=...")
@_only_first_process_prints()
def cli(
    stores: tuple[str, ...],
    out: Path,
    val: str | None,
    images: tuple[str, ...],
    images_layout: str | None,
    config: str,
    assignments: tuple[str, ...],
    extend: bool,
    **shortcuts: Any,
) -> None:
    """Train NAFNet, or another network, with a prior on the crops of STORE: a folder, a share, or the http(s):// or s3://
    address of one. Several are mixed, with shares of the samples: gopro.zarr=0.7 worlds.zarr=0.3

    Run the same command again to go on with a run that was stopped: on a CPU it goes on exactly as if it had not been.
    On several GPUs: torchrun --nproc_per_node=N -m samdeblur.cli.train STORE ...

    samdeblur-train status RUN... says where runs stand, samdeblur-train plot RUN... draws their curves.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 75 stopped by SIGTERM, SIGHUP or SIGUSR1 with its state saved (run it
    again), 130 interrupted. --debug shows tracebacks.
    """

    from samdeblur.evaluation.ranks import is_first
    from samdeblur.models import pick_device
    from samdeblur.storage import open_store
    from samdeblur.train.config import (
        ARCHITECTURE,
        ConfigError,
        TrainConfig,
        parse_assignment,
        read_config,
        with_assignments,
    )
    from samdeblur.train.loop import train
    from samdeblur.train.start import Mixed
    from samdeblur.train.state import best_step

    parsed = [parse_assignment(assignment) for assignment in assignments]
    given = {name.partition(".")[0]: value for name, value in parsed}
    read = read_config(config)
    values = with_assignments(read, parsed)
    short = {name: value for name, value in shortcuts.items() if value is not None}
    if twice := sorted(given.keys() & short.keys()):
        raise ConfigError(f"{twice[0]}: given by --set and by --{twice[0].replace('_', '-')}; leave one of them out")
    values |= short
    where = {name: place for name, place in read.where.items() if name not in given | short}
    settings = TrainConfig.of(values, where)
    if settings.weights and (fixed := [name for name in ARCHITECTURE if name in given]):
        raise ConfigError(f"{fixed[0]}: follows from the checkpoint {settings.weights}; leave it out")
    if settings.network != "nafnet" and (of_nafnet := [name for name in ARCHITECTURE if name in given]):
        raise ConfigError(
            f"{of_nafnet[0]}: a setting of nafnet only; network {settings.network} takes network_options.NAME=VALUE"
        )
    folders.check_claim(out, folders.RUN)
    places = [with_share(store) for store in stores]
    opened = [open_store(place) for place, _ in places] + ([open_store(val)] if val else [])
    if len(images) == 1:
        images *= len(opened)  # the folder of a dataset has all its splits
    (training, *others), *validation = _split(with_all_images(opened, images, images_layout), len(places))
    mixed = [Mixed(other, share) for other, (_, share) in zip(others, places[1:], strict=True)]
    if is_first():
        for used in (training, *others, *validation):
            say_left_out(used)
        _note_small_images(validation[0] if validation else training)
    start = time.monotonic()
    what = f"{settings.method} on {pick_device(settings.device)}"
    with progress_bar(total=settings.steps, bar_format=BAR, disable=not is_first()) as bar:
        quarantined = sum(len(used) - len(used.ready_keys) for used in (training, *others))
        shown = _ProgressText(bar, f"{what}, {quarantined:,} quarantined or pending" if quarantined else what)
        history = train(
            settings, training, out, validation[0] if validation else None, shown, extend, mixed, places[0][1]
        )
    if not is_first():
        return
    step = best_step(history)
    best = next(row for row in history if row["step"] == step and "val_psnr" in row)
    done = settings.steps - shown.first
    spent = f"{done} of them now, in {time.monotonic() - start:.0f} s" if done else "nothing to do, all done before"
    click.echo(
        f"{out}: {counted(settings.steps, 'step')} of {what}, {spent}; validation PSNR "
        f"{history[0]['val_psnr']:.2f} dB at step 0, best {best['val_psnr']:.2f} dB at step {int(best['step'])}"
    )
    if best["val_psnr"] < history[0]["val_psnr"]:
        click.echo("note: validation PSNR never got back to that of the starting weights", err=True)
    click.echo(f"curves: {out / 'curves.png'}   weights: {out / 'best.safetensors'}")


def with_share(text: str) -> tuple[str, float]:
    """`train.zarr=0.7` as a place and its share of the samples, 1 where none is given. Raises UsageError."""
    place, mark, share = text.rpartition("=")
    if not mark or os.path.exists(text) or "?" in text:
        return text, 1.0
    try:
        value = float(share)
    except ValueError:
        return text, 1.0
    if not 0 < value < float("inf"):
        raise click.UsageError(f"{text}: a share is a number above zero")
    return place, value


def _split(used: list[MaskStore], count: int) -> list[Any]:
    return [used[:count], *used[count:]]


def _note_small_images(store: MaskStore) -> None:
    from samdeblur.evaluation.metrics.psnr_ssim import SMALLEST
    from samdeblur.train.start import large_enough

    ready = store.ready_keys
    if small := sorted(set(ready) - set(large_enough(store, ready))):
        click.echo(
            f"{store.path}: {counted(len(small), 'image')} smaller than {SMALLEST} pixels, and not validated on: "
            f"{some(small)}",
            err=True,
        )


BAR = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
WIDTH = 80  # of a line of progress
FIRST_STEPS, FIRST_SECONDS = 20, 5.0  # after which the time of a run is told from them


class _ProgressText:
    """What a progress bar says of the rows of a run, in 80 columns, and lines before it on standard output.

    Args:
        what: is trained, on what.
    """

    def __init__(self, bar: Any, what: str) -> None:
        self.bar, self.what = bar, what
        self.since: tuple[int, float] | None = None  # step and time from which the speed is taken
        self.texts: dict[str, str] = {}
        self.begun = False
        self.first = 0

    def __call__(self, row: Row) -> None:
        from samdeblur.evaluation.ranks import is_first

        step = int(row["step"])
        if not self.begun:  # the first call says where the run starts, or goes on
            self.bar.initial = self.bar.n = self.bar.last_print_n = step
            self.begun = True
            self.first = step
            if 0 < step < self.bar.total and is_first():
                click.echo(f"going on from step {step} of {self.bar.total}", err=True)
            if step < self.bar.total and is_first():
                held_out = f"{row['validation_images']:,} more for validation"
                click.echo(
                    f"{self.what}: {row['images']:,} images ({held_out}), {row['crops_per_epoch']:,} crops per epoch"
                )
        self._announce_time_left(step)
        if "loss" in row:
            self.texts["loss"] = f"loss {row['loss']:.4g}"
            self.texts["speed"] = f"{row['samples_per_second']:.4g} crops/s"
            self.texts["waiting"] = f"wait {row['loader_wait']:.0%}"
        if "val_psnr" in row:
            self.texts["val"] = f"val {row['val_psnr']:.2f}"
        validated = [f"validated {row['validated']:.0f}/{row['of']:.0f}"] if "validated" in row else []
        texts = [self.texts[name] for name in ("loss", "val", "speed", "waiting") if name in self.texts]
        self.bar.set_postfix_str(self._fitting([*validated, *texts]), refresh=False)  # the last give way
        self.bar.update(step - self.bar.n)

    def stopping(self) -> None:
        """Say what a signal leads to; called by its handler, which may have interrupted a write to stderr."""
        from samdeblur.evaluation.ranks import is_first

        if is_first():
            with suppress(OSError, RuntimeError):
                self.bar.write("finishing the step under way, then saving", file=sys.stderr)

    def _fitting(self, parts: list[str]) -> str:
        """As many of the parts as fit into a line behind steps and times, however long those get."""
        total = str(self.bar.total)
        room = WIDTH - 1 - len(f"{total}/{total} [999:59:59<999:59:59], ")
        text = ""
        for part in parts:
            longer = f"{text}, {part}" if text else part
            if len(longer) <= room:
                text = longer
        return text

    def _announce_time_left(self, step: int) -> None:
        """Once, after some steps: how long the rest takes if it goes on like that. The first step warms up."""
        from samdeblur.evaluation.ranks import is_first
        from samdeblur.storage.writing.lease import duration

        now = time.monotonic()
        if self.since is None:
            self.since = (step, now) if step > self.first else None
            return
        begun, at = self.since
        if begun < 0 or step - begun < FIRST_STEPS or now - at < FIRST_SECONDS:
            return
        self.since = (-1, now)
        left = (self.bar.total - step) * (now - at) / (step - begun)
        if is_first():
            click.echo(f"expected: {duration(left)} for the {self.bar.total - step:,} steps left, without validations")


def main() -> None:
    if sys.argv[1:2] in (["status"], ["plot"]):
        from samdeblur.cli.commands import runs

        name = sys.argv.pop(1)
        sys.argv[0] = f"{Path(sys.argv[0]).name} {name}"
        run_command(runs.status if name == "status" else runs.plot)
    run_command(
        cli, "; run the same command again to go on from the last state saved", grace=60, signalled_code=REQUEUE
    )


if __name__ == "__main__":
    main()
