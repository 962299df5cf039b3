"""samdeblur-eval: images restored, scores, tables and reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from samdeblur.cli.commands.restore import restore
from samdeblur.cli.commands.table import table
from samdeblur.cli.messages import QUARANTINED, harmless, progress_bar, run_command
from samdeblur.cli.support.choices import COLLAPSE_DB
from samdeblur.cli.support.commands import Group
from samdeblur.cli.support.images import images_options
from samdeblur.cli.support.inference import (
    inference_of,
    inference_options,
    refuse_tiles,
    refuse_unused,
    tlc_of,
    weights_option,
)
from samdeblur.cli.support.paths import FOLDER, PLACE
from samdeblur.cli.support.segmenting import MaskOptions, mask_options
from samdeblur.cli.support.sets import Loose, open_sets
from samdeblur.storage.plurals import counted

if TYPE_CHECKING:
    from samdeblur.evaluation.evaluate import Evaluation
    from samdeblur.evaluation.ranks import Ranks
    from samdeblur.evaluation.results import Inference, SetResult
    from samdeblur.evaluation.sets import ImageSet
    from samdeblur.models import Deblurrer


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="samdeblur")
def cli() -> None:
    """Restore images, and evaluate networks: PSNR, SSIM, mode collapse rate, tables, reports to look at.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 finished with images left out. --debug shows tracebacks.
    """


cli.add_command(table)
cli.add_command(restore)


@cli.command()
@click.argument("network", metavar="RUN", type=PLACE)
@click.argument("sets", metavar="STORE|FOLDER...", nargs=-1, required=True, type=PLACE)
@click.option("--out", required=True, type=FOLDER, help="Folder of the results.")
@images_options
@weights_option
@click.option("--with-step-0", is_flag=True, help="Also score the network as it was before training.")
@mask_options
@click.option("--split", help="Split of a FOLDER in the layout of a dataset.  [default: test]")
@click.option("--layout", help="Layout of a FOLDER, as for samdeblur-prep run.  [default: auto]")
@click.option("--report-images", type=click.IntRange(0), default=24, show_default=True,
              help="Images per set that the report shows in full, worst first.")  # fmt: skip
@click.option("--save-images", is_flag=True, help="Write every result as PNG below OUT/restored.")
@inference_options
@click.option("--metric", "metrics", multiple=True, metavar="NAME",
              help="Beside PSNR and SSIM: lpips, dists, ms-ssim (pip install samdeblur[perceptual]), niqe and others "
                   "of pyiqa; may be repeated.")  # fmt: skip
@click.option("--align", type=click.Choice(["none", "ecc"]), default="none", show_default=True,
              help="ecc: align results with the sharp images before they are compared, as RealBlur's own evaluation; "
                   "the paper does not.")  # fmt: skip
@click.option("--collapse-db", type=click.FloatRange(0), default=COLLAPSE_DB, show_default=True,
              help="Loss of PSNR above which an image counts as collapsed, for MCR.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def run(network: str, sets: tuple[str, ...], out: Path, **options: Any) -> int:
    """Score RUN (the folder of a run, or a checkpoint) on sets of images; writes results.json, .csv and report.html.

    A set is a mask store, or a folder of pairs in any layout that samdeblur-prep takes, whose masks are found on the
    spot, with --sam or another --segmenter. Blurred images alone are for `restore`.

    Run the same command again to go on with an evaluation that was interrupted. Several GPUs:
    torchrun --nproc_per_node=N -m samdeblur.cli.eval run ...
    """

    from samdeblur.evaluation.evaluate import Evaluation
    from samdeblur.evaluation.metrics.perceptual import perceptual_metrics
    from samdeblur.evaluation.ranks import is_first, joined
    from samdeblur.evaluation.report.images import forget_sets
    from samdeblur.evaluation.report.write import write_report
    from samdeblur.evaluation.results import Conventions, Results, write_results
    from samdeblur.evaluation.tables.caveats import caveats
    from samdeblur.evaluation.tables.text import as_markdown, run_table
    from samdeblur.models import device_facts, load_network
    from samdeblur.models.checkpoints.loading import checkpoint_digest
    from samdeblur.storage import folders
    from samdeblur.train.state import CURVES, read_curves, run_weights, trained

    inference = inference_of(options)
    folders.check_claim(out, folders.EVALUATION)
    path = run_weights(Path(network), options["weights"])
    first = run_weights(Path(network), "initial") if options["with_step_0"] else None
    with joined(options["device"]) as ranks:
        model = load_network(path).to(ranks.device)
        loose = Loose(
            options["split"],
            options["layout"],
            MaskOptions.of(options),
            model.prior is not None,
            ranks.device,
            bool(options["metrics"]),
        )
        refuse_tiles(model, inference)
        opened = open_sets(sets, loose, options["images"], options["images_layout"])
        ways = [replace(inference, tlc=tlc_of(options, model, _as_published(images))) for images in opened]
        refuse_unused(options, *(way.tlc for way in ways))
        sha256 = checkpoint_digest(path)
        _refuse_other_weights(out, sha256)
        extra = perceptual_metrics(options["metrics"], ranks.device) if options["metrics"] else None
        if ranks.first:
            folders.claim(out, folders.EVALUATION)
        task = Evaluation(
            out,
            sha256,
            Conventions(collapse_db=options["collapse_db"], align=options["align"]),
            extra,
            options["report_images"],
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
                    sha256=checkpoint_digest(first),
                    extra=None,
                    shown_images=0,
                    save_images=False,
                )
                before = _evaluate(load_network(first).to(ranks.device), images, way, alone, ranks)
                result = replace(result, psnr_step_0=before.summary.get("psnr"))
            found.append(result)
        environment = {
            **{name: metadata.version(name) for name in ("samdeblur", "torch", "numpy")},
            **device_facts(ranks.device),
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
    curves = {"training": read_curves(path.parent)} if results.trained and (path.parent / CURVES).is_file() else {}
    page = write_report(out, results, curves)  # before anything is said: who reads it may be gone
    click.echo(as_markdown(run_table(results)))
    click.echo(f"weights: {path}{f', {results.trained}' if results.trained else ''}")
    for line in caveats(results):
        click.echo(f"note: {line}")
    click.echo(f"report: {page}")
    if options["save_images"]:
        click.echo(f"restored images: {out / 'restored'}")
    unusable = sum(result.unready for result in found)
    if unusable:
        click.echo(f"{counted(unusable, 'image')} could not be used; the lines above say why", err=True)
    return QUARANTINED if unusable else 0


def _refuse_other_weights(out: Path, sha256: str) -> None:
    """Raises ResultsError where the results of another network would be written over."""

    from samdeblur.evaluation.results import RESULTS, ResultsError, read_results

    if (out / RESULTS).exists() and (there := read_results(out)).sha256 != sha256:
        raise ResultsError(
            f"{out}: holds results of other weights ({there.method}, {there.weights}); use another --out"
        )


def _as_published(images: ImageSet) -> bool:
    """Whether the paper uses local means on a set."""

    from samdeblur.evaluation.tables.published import SETS

    of_paper = SETS.get((images.dataset, images.split))
    return of_paper is not None and of_paper.inference.tlc is not None


def _evaluate(model: Deblurrer, images: ImageSet, inference: Inference, task: Evaluation, ranks: Ranks) -> SetResult:
    from samdeblur.evaluation.evaluate import evaluate
    from samdeblur.evaluation.ranks import is_first

    name = f"{images.dataset} {images.split}"
    with progress_bar(total=len(images.keys), unit="img", desc=name, disable=not is_first()) as bar:

        def progress(done: int, total: int) -> None:
            if not bar.n:
                bar.initial = bar.n = bar.last_print_n = done
            bar.update(done - bar.n)

        return evaluate(model, images, inference, task, ranks, progress)


def _bar(items: Sequence[Any], what: str) -> Iterable[Any]:
    from samdeblur.evaluation.ranks import is_first

    return progress_bar(items, unit="img", desc=what, disable=not is_first())


def _say(line: str) -> None:
    click.echo(harmless(line), err=True)


def method_of(folder: Path, model: Deblurrer) -> str:
    """The method a run was trained with; for a checkpoint, its name and what its prior is."""

    import yaml

    from samdeblur.train.state import CONFIG

    if (folder / CONFIG).is_file():
        return str(yaml.safe_load((folder / CONFIG).read_text())["method"])
    prior = str(model.prior.config["name"]) if model.prior is not None else "none"
    return f"{folder.stem} ({prior})"


def main() -> None:
    run_command(cli, "; run the same command again to go on")


if __name__ == "__main__":
    main()
