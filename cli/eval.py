"""samdeblur-eval: scores, tables and reports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import torch
import yaml

from samdeblur.cli.commands.table import table
from samdeblur.cli.messages import QUARANTINED, progress_bar, run_command
from samdeblur.cli.support.images import images_options
from samdeblur.cli.support.sets import Loose, open_sets
from samdeblur.evaluation.evaluate import Evaluation, evaluate
from samdeblur.evaluation.metrics.mode_collapse import COLLAPSE_DB
from samdeblur.evaluation.metrics.perceptual import perceptual_metrics
from samdeblur.evaluation.ranks import Ranks, is_first, joined
from samdeblur.evaluation.report.pictures import forget_sets
from samdeblur.evaluation.report.write import write_report
from samdeblur.evaluation.restore import FALLBACKS, FLAG
from samdeblur.evaluation.results import (
    RESULTS,
    Conventions,
    Inference,
    Results,
    ResultsError,
    SetResult,
    read_results,
    write_results,
)
from samdeblur.evaluation.sets import ImageSet
from samdeblur.evaluation.tables.caveats import caveats
from samdeblur.evaluation.tables.published import SETS
from samdeblur.evaluation.tables.text import as_markdown, run_table
from samdeblur.models import Deblurrer, TileError, check_tiles, load_network
from samdeblur.models.inference.tiles import OVERLAP
from samdeblur.storage import folders
from samdeblur.storage.files import sha256_file
from samdeblur.train.state import CONFIG, run_weights, trained

TRAIN_SIZE = 256  # of the paper, for weights that do not say


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="samdeblur")
def cli() -> None:
    """Evaluate trained networks: PSNR, SSIM, mode collapse rate, tables, reports to look at.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 finished with images left out. --debug shows tracebacks.
    """


cli.add_command(table)


def guard_of(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Names of fallbacks joined by commas, or flag. Raises BadParameter."""
    names = value.split(",") if value is not None else []
    unknown = [name for name in names if name not in FALLBACKS]
    if unknown and value != FLAG:
        raise click.BadParameter(f"{unknown[0]!r} is none of {FLAG}, {', '.join(FALLBACKS)}")
    return value


def which_weights(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """best, last, initial or step-N. Raises BadParameter."""
    if value is not None and not re.fullmatch(r"best|last|initial|step-\d+", value):
        raise click.BadParameter(f"{value!r} is none of best, last, initial, step-N")
    return value


weights_option = click.option(
    "--weights", callback=which_weights, metavar="best|last|initial|step-N",
    help="Of a run.  [default: best, or last where nothing was validated after step 0]",
)  # fmt: skip


@cli.command()
@click.argument("network", metavar="RUN")
@click.argument("sets", metavar="STORE|FOLDER...", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the results.")
@images_options
@weights_option
@click.option("--with-step-0", is_flag=True, help="Also score the network as it was before training.")
@click.option("--sam", metavar="bundled|NAME|PATH", help="Segment Anything weights that find the masks of a FOLDER.")
@click.option("--split", help="Of a FOLDER in the layout of a dataset.  [default: test]")
@click.option("--layout", help="Of a FOLDER, as for samdeblur-prep run.  [default: auto]")
@click.option("--pictures", type=click.IntRange(0), default=24, show_default=True,
              help="Images per set that the report shows in full, worst first.")  # fmt: skip
@click.option("--save-images", is_flag=True, help="Write every result as PNG below OUT/restored.")
@click.option("--tlc", type=click.Choice(["auto", "on", "off"]), default="auto", is_flag=False, flag_value="on",
              help="Local means in place of means over the whole image. auto, the default: on GoPro's test split "
                   "alone, as in the paper; --tlc by itself means on.")  # fmt: skip
@click.option("--train-size", type=click.IntRange(1), metavar="PIXELS",
              help="Side of training crops, for TLC.  [default: what the weights say, else 256]")  # fmt: skip
@click.option("--tile", type=click.IntRange(1), metavar="PIXELS",
              help="Cut larger images into tiles of this side, to save memory; masks are seen whole.")  # fmt: skip
@click.option("--overlap", type=click.IntRange(0), metavar="PIXELS",
              help=f"Pixels that neighbouring tiles share.  [default: {OVERLAP}]")  # fmt: skip
@click.option("--precision", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32",
              show_default=True, help="Less than float32 changes results a little, and is named in them.")  # fmt: skip
@click.option("--guard", callback=guard_of, metavar="flag|tlc-off,tiled,input",
              help="Flag results that look collapsed; or put something in their place, the first named that does not "
                   "look so.")  # fmt: skip
@click.option("--metric", "metrics", multiple=True, metavar="NAME",
              help="Beside PSNR and SSIM: lpips, dists, ms-ssim (pip install samdeblur[perceptual]), niqe and others "
                   "of pyiqa; may be repeated.")  # fmt: skip
@click.option("--align", type=click.Choice(["none", "ecc"]), default="none", show_default=True,
              help="ecc: align results with the sharp pictures before they are compared, as RealBlur's own evaluation; "
                   "the paper does not.")  # fmt: skip
@click.option("--collapse-db", type=click.FloatRange(0), default=COLLAPSE_DB, show_default=True,
              help="Loss of PSNR above which an image counts as collapsed, for MCR.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def run(network: str, sets: tuple[str, ...], out: Path, **options: Any) -> int:
    """Score RUN (the folder of a run, or a checkpoint) on sets of images; writes results.json, .csv and report.html.

    A set is a mask store, or a folder of pairs in any layout that samdeblur-prep takes, whose masks are found on the
    spot, with --sam. Blurred pictures alone are for `restore`.

    Run the same command again to go on with an evaluation that was interrupted. Several GPUs:
    torchrun --nproc_per_node=N -m samdeblur.cli.eval run ...
    """
    inference = _inference(options)
    folders.check_claim(out, folders.EVALUATION)
    path = run_weights(Path(network), options["weights"])
    first = run_weights(Path(network), "initial") if options["with_step_0"] else None
    with joined(options["device"]) as ranks:
        model = load_network(path).to(ranks.device)
        loose = Loose(
            options["split"],
            options["layout"],
            options["sam"],
            model.prior is not None,
            ranks.device,
            bool(options["metrics"]),
        )
        _check_tiles(model, inference)
        opened = open_sets(sets, loose, options["images"], options["images_layout"])
        ways = [replace(inference, tlc=_tlc(options, images, model)) for images in opened]
        if options["train_size"] is not None and not any(way.tlc for way in ways):
            raise click.UsageError("--train-size is for --tlc")
        sha256 = sha256_file(path).hex()
        _refuse_other_weights(out, sha256)
        extra = perceptual_metrics(options["metrics"], ranks.device) if options["metrics"] else None
        if ranks.first:
            folders.claim(out, folders.EVALUATION)
        task = Evaluation(
            out,
            sha256,
            Conventions(collapse_db=options["collapse_db"], align=options["align"]),
            extra,
            options["pictures"],
            options["save_images"],
            _say,
            _bar,
        )
        found = []
        for images, way in zip(opened, ways, strict=True):
            result = _evaluate(model, images, way, task, ranks)
            if first is not None:
                alone = replace(
                    task,
                    folder=out / "step-0",
                    sha256=sha256_file(first).hex(),
                    extra=None,
                    pictures=0,
                    save_images=False,
                )
                before = _evaluate(load_network(first).to(ranks.device), images, way, alone, ranks)
                result = replace(result, psnr_step_0=before.summary.get("psnr"))
            found.append(result)
        environment = {
            **{name: metadata.version(name) for name in ("samdeblur", "torch", "numpy")},
            "device": torch.cuda.get_device_name() if ranks.device.type == "cuda" else "cpu",
        }
    if not is_first():
        return 0
    results = Results(
        method_of(Path(network), model),
        str(path),
        sha256,
        tuple(found),
        task.conventions,
        environment,
        trained(path, model.provenance),
    )
    forget_sets(out, [result.name for result in found])
    write_results(results, out)
    click.echo(as_markdown(run_table(results)))
    click.echo(f"weights: {path}{f', {results.trained}' if results.trained else ''}")
    for line in caveats(results):
        click.echo(f"note: {line}")
    click.echo(f"report: {write_report(out, results)}")
    if options["save_images"]:
        click.echo(f"restored pictures: {out / 'restored'}")
    unusable = sum(result.unready for result in found)
    if unusable:
        click.echo(f"{unusable} of the images could not be used and are left out, as said above", err=True)
    return QUARANTINED if unusable else 0


def _refuse_other_weights(out: Path, sha256: str) -> None:
    """Raises ResultsError where the results of another network would be written over."""
    if (out / RESULTS).exists() and (there := read_results(out)).sha256 != sha256:
        raise ResultsError(
            f"{out}: holds results of other weights ({there.method}, {there.weights}); use another --out"
        )


def _inference(options: dict[str, Any]) -> Inference:
    """The settings that are those of all sets. Raises UsageError."""
    if options["overlap"] is not None and options["tile"] is None:
        raise click.UsageError("--overlap is for --tile")
    overlap = None
    if options["tile"] is not None:
        overlap = OVERLAP if options["overlap"] is None else options["overlap"]
    return Inference(options["tile"], overlap, precision=options["precision"], guard=options["guard"])


def _tlc(options: dict[str, Any], images: ImageSet, model: Deblurrer) -> int | None:
    """Size of training crops that local means are made for on a set; None for global means."""
    of_paper = SETS.get((images.dataset, images.split))
    wanted = options["tlc"] == "on" or (options["tlc"] == "auto" and of_paper and of_paper.inference.tlc)
    return (options["train_size"] or model.train_size or TRAIN_SIZE) if wanted else None


def _evaluate(model: Deblurrer, images: ImageSet, inference: Inference, task: Evaluation, ranks: Ranks) -> SetResult:
    name = f"{images.dataset} {images.split}"
    with progress_bar(total=len(images.keys), unit="img", desc=name, disable=not is_first()) as bar:

        def progress(done: int, total: int) -> None:
            if not bar.n:
                bar.initial = bar.n = bar.last_print_n = done
            bar.update(done - bar.n)

        return evaluate(model, images, inference, task, ranks, progress)


def _bar(items: Sequence[Any], what: str) -> Iterable[Any]:
    return progress_bar(items, unit="img", desc=what, disable=not is_first())


def _say(line: str) -> None:
    click.echo(line, err=True)


def _check_tiles(model: Deblurrer, inference: Inference) -> None:
    """Raises UsageError for tiles that do not suit the network."""
    if inference.tile is not None and inference.overlap is not None:
        try:
            check_tiles(model, inference.tile, inference.overlap)
        except TileError as error:
            raise click.UsageError(f"--tile and --overlap: {error}") from error


def method_of(folder: Path, model: Deblurrer) -> str:
    """The method a run was trained with; for a checkpoint, its name and what its prior is."""
    if (folder / CONFIG).is_file():
        return str(yaml.safe_load((folder / CONFIG).read_text())["method"])
    prior = str(model.prior.config["name"]) if model.prior is not None else "none"
    return f"{folder.stem} ({prior})"


def main() -> None:
    run_command(cli, "; run the same command again to go on")


if __name__ == "__main__":
    main()
