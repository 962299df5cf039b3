"""samdeblur-prep run: one store, or those of a job file, prepared on the workers there are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from samdeblur.cli.messages import QUARANTINED, NothingWritten
from samdeblur.cli.support.choices import BUNDLED_SETTINGS, PATIENCE, PRECISIONS, SAM2_SETTINGS, SAM_SETTINGS
from samdeblur.cli.support.commands import Command
from samdeblur.cli.support.inference import Precision
from samdeblur.cli.support.jobfile import read_job
from samdeblur.cli.support.paths import PLACE, READ, STORE
from samdeblur.cli.support.progress import Progress
from samdeblur.cli.support.segmenting import segmenter_settings
from samdeblur.cli.support.summary import report, report_plan, report_status
from samdeblur.pipeline.segmenters.bounds import BOUNDS, MASK_THRESHOLDS, MAX_REACH, check_settings
from samdeblur.storage.files import decode_text
from samdeblur.storage.plurals import counted

if TYPE_CHECKING:
    from samdeblur.pipeline import PrepSettings, Source, StoreOptions, Workers


FAMILY_SETTINGS = {name: default for name, default in SAM2_SETTINGS.items() if name not in SAM_SETTINGS}
GROUPS = {
    "Source": ("split", "job", "layout", "dataset", "skip_unpaired"),
    "Store": ("with_images", "keep_embeddings", "block_size", "retry_quarantined", "dry_run"),
    "Masks": ("predeblur", "segmenter", "set_segmenter", "sam", "channel_order", "refine", "from_embeddings", "device"),
    "Precision of Segment Anything": ("precision", "compile", "sdpa", "encoder_batch"),
    "Settings of Segment Anything": tuple(SAM_SETTINGS),
    "Settings of Segment Anything 2 and 3": tuple(FAMILY_SETTINGS),
    "Workers": ("workers", "scheduler", "memory_limit", "patience"),
    "Output": ("progress",),
}


def sam_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option per setting of SamAutomaticMaskGenerator, and of SAM2AutomaticMaskGenerator beside them."""

    for name, default in reversed(FAMILY_SETTINGS.items()):
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            flag, kind = f"{flag}/--no-{name.replace('_', '-')}", None
        else:
            kind = FiniteRange(*MASK_THRESHOLDS)
        command = click.option(flag, type=kind, default=None, help=f"[default: {str(default).lower()}]")(command)
    for name, default in reversed(SAM_SETTINGS.items()):
        flag = f"--{name.replace('_', '-')}"
        if name == "point_grids":
            help_text = "JSON file with a list of [x, y] points in 0..1 per crop layer, instead of a regular grid."
            option = click.option(flag, type=READ, help=help_text)
        else:
            option = click.option(flag, type=_bounded(name, default), help=_default(name, default))
        command = option(command)
    return command


def _bounded(name: str, default: Any) -> click.ParamType:
    least, most = BOUNDS[name]
    return click.IntRange(int(least), int(most)) if isinstance(default, int) else FiniteRange(least, most)


class FiniteRange(click.FloatRange):
    """A number with bounds, which nan is not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def _default(name: str, default: Any) -> str:

    shown = f"{default:.3g}" if isinstance(default, float) else default
    others = (("SAM 2 and 3", SAM2_SETTINGS), ("the bundled model", BUNDLED_SETTINGS))
    apart = "".join(f"; of {which} {of[name]}" for which, of in others if name in of)
    return f"[default: {shown}{apart}]"


def size_in_bytes(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """4GB, 512MiB, 1e9 -> bytes."""
    from dask.utils import parse_bytes

    try:
        return None if value is None else int(parse_bytes(value))
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{value!r} is not a size; write 4GB, 512MiB, ...") from error


@click.command(cls=Command, groups=GROUPS)
@click.argument("source", required=False, type=PLACE)
@click.argument("store", type=STORE, required=False)
@click.option("--split", help="Split to prepare: train, test, ... (a folder, or a list, of the native layouts). With "
              "--job: only the stores of this split.")  # fmt: skip
@click.option("--job", metavar="FILE|NAME", help="Prepare the stores of a YAML job file; gopro, realblur-j, reds and "
              "reloblur come with the package.")  # fmt: skip
@click.option("--layout", default="auto", show_default=True,
              help="auto, gopro, realblur-j, reds, reds-jpeg, reloblur, pairs, sample, worlds, or a function of your "
                   "own as package.module:function, see docs/datasets.md.")  # fmt: skip
@click.option("--dataset", help="Name written into the store; by default the layout's or the folder's.")
@click.option("--skip-unpaired", is_flag=True, help="Leave out images without a counterpart.")
@click.option("--predeblur", default="auto", show_default=True, metavar="auto|none|bundled|NAME|PATH",
              help="NAFNet that deblurs before segmenting: a checkpoint, a run folder, or fetched weights. auto "
                   "does as the paper: bundled for splits whose name starts with train, none for others.")  # fmt: skip
@click.option("--segmenter", default="sam", show_default=True, metavar="NAME|MODULE:FACTORY",
              help="sam; superpixels, which need no weights; true-masks, those that worlds know; or one of another "
                   "package (docs/segmenters.md).")  # fmt: skip
@click.option("--set-segmenter", multiple=True, metavar="KEY=VALUE", help="A setting of a segmenter other than sam; "
              "again for each. Values are JSON, or else text.")  # fmt: skip
@click.option("--sam", metavar="bundled|NAME|PATH", help="Segment Anything weights of any family (docs/segmenters.md): "
              "a file, a folder of transformers, or fetched ones by name.  [default: bundled]")  # fmt: skip
@click.option("--channel-order", type=click.Choice(["rgb", "bgr"]), default="rgb", show_default=True,
              help="Order of the channels; the released SAM-Deblur masks came from bgr.")  # fmt: skip
@click.option("--refine", type=click.IntRange(1, MAX_REACH), metavar="PIXELS", help="Move borders of masks by so many "
              "pixels at most, to the strongest edges of the image (docs/masks.md).")  # fmt: skip
@click.option("--from-embeddings", type=READ, metavar="STORE", help="Find masks in the embeddings that STORE keeps of "
              "the same images; the encoder and pre-deblurring are left out. Not exact.")  # fmt: skip
@click.option("--precision", type=Precision(PRECISIONS), default="float32",
              show_default=True, help="Precision of the network; below float32 masks change a little.")  # fmt: skip
@click.option("--compile", "compile", is_flag=True, help="The image encoder through torch.compile; not exact.")
@click.option("--sdpa", is_flag=True, help="PyTorch's fused attention; not exact.")
@click.option("--encoder-batch", type=click.IntRange(1), default=1, show_default=True,
              help="Images per call of the image encoder; more than one is not exact.")  # fmt: skip
@click.option("--with-images/--without-images", default=True, show_default=True,
              help="Store the images beside the masks.")  # fmt: skip
@click.option("--keep-embeddings", is_flag=True, help="Store what Segment Anything's encoder made of each image, in "
              "float16, for --from-embeddings.")  # fmt: skip
@click.option("--block-size", type=click.IntRange(1, 4096), help="Images per block, the unit of work.  [default: 8]")
@click.option("--retry-quarantined", is_flag=True, help="Try quarantined images again, with the files as they are now.")
@click.option("--dry-run", is_flag=True, help="Say what there is to do, and what it will take; write nothing.")
@click.option("--workers", type=click.IntRange(1), help="Worker processes.  [default: one per GPU, else one per core]")
@click.option("--scheduler", metavar="ADDRESS|FILE", help="Join the workers of a running Dask scheduler instead.")
@click.option("--memory-limit", callback=size_in_bytes, metavar="SIZE",
              help="Memory of each worker process, such as 16GB.  [default: an equal share of the memory]")  # fmt: skip
@click.option("--patience", type=click.FloatRange(1), default=PATIENCE, show_default=True,
              help="Seconds to wait for a scheduler, or without any worker, before giving up.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--progress", type=click.Choice(["auto", "json", "none"]), default="auto", show_default=True,
              help="auto: a bar on a terminal, else lines. json: objects, a line each, on stdout.")  # fmt: skip
@sam_options
@click.pass_context
def run(context: click.Context, **options: Any) -> int:
    """Prepare SOURCE into STORE.

    SOURCE is the folder of GoPro, RealBlur-J, REDS, ReLoBlur or any pairs; `sample` (photographs this package blurs);
    or procedural scenes: `worlds`, `worlds:COUNT` or `worlds:COUNT:SIZE`.

    Run the same command again to finish a job that was interrupted.
    """

    from samdeblur.pipeline import Resources, Workers, make_plan

    if options["job"]:
        jobs = [_job(values) for values in read_job(options["job"], context.command, context)]
    else:
        missing = [shown for shown in ("SOURCE", "STORE", "--split") if not options[shown.strip("-").lower()]]
        if missing:
            raise click.UsageError(f"{' and '.join(missing)} missing: give SOURCE, STORE and --split, or --job FILE")
        jobs = [_job(options)]
    for job in jobs:
        for note in job.source.notes:
            click.echo(f"note: {note}", err=True)
    resources = Resources(options["scheduler"], options["workers"], options["memory_limit"], options["patience"])
    with Workers(resources, options["device"]) as workers:
        if options["dry_run"]:
            for job in jobs:
                plan = make_plan(job.source, job.store, job.settings, job.layout, options["retry_quarantined"])
                report_plan(job.name, job.store, plan, workers.count, options["progress"] == "json")
            return 0
        codes = [_run(job, workers, options) for job in jobs]
    return QUARANTINED if QUARANTINED in codes else 0


@dataclass(frozen=True)
class Job:
    """One store to prepare."""

    source: Source
    store: Path
    settings: PrepSettings
    layout: StoreOptions

    @property
    def name(self) -> str:
        return f"{self.source.dataset} {self.source.split}"


def _job(options: Mapping[str, Any]) -> Job:
    """Of the options for one store. Raises UsageError for those that do not go together."""

    from samdeblur.pipeline import Choice, PrepSettings, StoreOptions, Weights, open_source
    from samdeblur.pipeline.segmenters.families.recognise import FAMILIES
    from samdeblur.pipeline.segmenters.speed import Speed

    split, segmenter, predeblur = options["split"], options["segmenter"], options["predeblur"]
    if predeblur == "auto":
        predeblur = "bundled" if split.startswith("train") and segmenter != "true-masks" else "none"
    if segmenter == "true-masks" and predeblur != "none":
        raise click.UsageError("--predeblur: --segmenter true-masks does not look at the images; leave it out")
    sam_settings = {name: options[name] for name in SAM_SETTINGS | FAMILY_SETTINGS}
    given, together = segmenter_settings(options["set_segmenter"]), options["encoder_batch"] > 1
    ours = segmenter in ("superpixels", "true-masks")
    if segmenter == "sam" and given:
        raise click.UsageError(f"--set-segmenter {next(iter(given))}: sam has options of its own; see --help")
    if segmenter != "sam":
        changed = {"sam": options["sam"], **sam_settings}
        plain = {"precision": "float32", "compile": False, "sdpa": False, "channel_order": "rgb"}
        plain |= {"encoder_batch": 1} if ours else {}
        changed |= {name: options[name] or None for name in ("keep_embeddings", "from_embeddings")}
        changed |= {name: options[name] for name, value in plain.items() if options[name] != value}
        flags = [f"--{name.replace('_', '-')}" for name, value in changed.items() if value is not None]
        if flags:
            raise click.UsageError(f"{flags[0]} needs --segmenter sam")
    if segmenter == "true-masks" and options["refine"]:
        raise click.UsageError("--refine: true masks are exact already; leave it out")
    if options["keep_embeddings"] and options["from_embeddings"]:
        raise click.UsageError("--keep-embeddings: the store of --from-embeddings keeps them already; leave it out")
    sam = Weights.of_sam(options["sam"] or "bundled") if segmenter == "sam" else None
    if sam is not None and sam.family != "sam":
        click.echo(f"note: {options['sam']}: {FAMILIES[sam.family]}", err=True)
    settings = PrepSettings(
        predeblur=None if predeblur == "none" else Weights.of_network(predeblur),
        sam=sam,
        true_masks=segmenter == "true-masks",
        channel_order=options["channel_order"],
        sam_settings=chosen_sam_settings(
            sam_settings, (options["sam"] or "bundled") == "bundled", sam.family if sam is not None else "sam"
        ),
        speed=Speed(options["precision"], options["compile"], options["sdpa"], options["encoder_batch"]),
        plugin=Choice.of_plugin(segmenter, given, together) if given or not (ours or segmenter == "sam") else None,
        refine=options["refine"] or 0,
        embeddings=str(kept.resolve()) if (kept := options["from_embeddings"]) else None,
        device=options["device"],
    )
    source = open_source(options["source"], split, options["layout"], options["dataset"], options["skip_unpaired"])
    layout = StoreOptions(options["with_images"], options["block_size"], options["keep_embeddings"])
    return Job(source, options["store"], settings, layout)


def chosen_sam_settings(options: dict[str, Any], bundled: bool, family: str = "sam") -> dict[str, Any]:
    """The settings given, over those that suit the bundled model. Raises UsageError, SettingsError."""

    from samdeblur.pipeline.segmenters.families.recognise import DEFAULTS

    chosen = {name: value for name, value in options.items() if value is not None}
    if "point_grids" in chosen:
        if "points_per_side" in chosen:
            raise click.UsageError("give --points-per-side or --point-grids, not both")
        try:
            chosen["point_grids"] = json.loads(decode_text(Path(chosen["point_grids"]).read_bytes()))
        except (OSError, ValueError) as error:
            raise click.UsageError(f"--point-grids {options['point_grids']}: {error}") from error
        chosen["points_per_side"] = None
    chosen = {**BUNDLED_SETTINGS, **chosen} if bundled else chosen
    called = {name: f"--{name.replace('_', '-')}" for name in SAM_SETTINGS | FAMILY_SETTINGS}
    known = SAM_SETTINGS | dict(DEFAULTS.get(family, {}))
    if more := [name for name in chosen if name not in known]:
        raise click.UsageError(f"{called[more[0]]} is a setting of Segment Anything 2 and 3; this model is a {family}")
    if "point_grids" in chosen:
        called["point_grids"] += f" {options['point_grids']}"
    check_settings(known | chosen, called.__getitem__)
    return chosen


def _run(job: Job, workers: Workers, options: Mapping[str, Any]) -> int:
    """Prepare one store, and say how it went; the exit code."""

    from samdeblur.pipeline import prepare, status
    from samdeblur.pipeline.job.plan import images_to_do
    from samdeblur.storage.writing.creation import is_vacant

    quiet = options["progress"] == "json"
    total = len(job.source.keys)
    before = total - images_to_do(job.store, options["retry_quarantined"]) if not is_vacant(job.store) else 0
    with Progress(options["progress"], job.name, total, before) as progress:
        progress.event("start", store=str(job.store), images=total, done=before)

        def started(dashboard: str | None) -> None:
            progress.event("workers", dashboard=dashboard)
            if not quiet and dashboard:
                click.echo(f"dashboard: {dashboard}", err=True)

        workers.on_start = started
        try:
            summary = prepare(
                job.source, job.store, job.settings, job.layout, workers, progress, options["retry_quarantined"]
            )
        except KeyboardInterrupt as stop:
            found = status(job.store) if not is_vacant(job.store) else None
            done = len(found.store) - found.pending if found else 0
            if not done:
                nothing = f"; nothing was written to {job.store} yet, run the same command again"
                raise type(stop)(NothingWritten(nothing)) from None
            raise type(stop)(f"; {done} of {counted(total, 'image')} done") from None
        found = status(job.store)
        progress.event(
            "end",
            store=str(job.store),
            done=found.done,
            pending=found.pending,
            quarantined=found.quarantined,
            run=summary.as_json(),
        )
    if not quiet:
        report(summary)
        return report_status(job.store)
    return QUARANTINED if found.quarantined else 0
