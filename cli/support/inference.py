"""Options that say which weights are taken, and how images go through the network."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from samdeblur.cli.support.choices import OVERLAP, PRECISIONS

if TYPE_CHECKING:
    from samdeblur.evaluation.results import Inference
    from samdeblur.models import Deblurrer


SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16"}
TRAIN_SIZE = 256  # of the paper, for weights that do not say


class Precision(click.Choice[str]):
    """A precision by its name in full, which its short one, of people's habits, is taken for."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(super().convert(SHORT.get(value, value), param, ctx))


def guard_of(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Names of fallbacks joined by commas, or flag. Raises BadParameter."""

    from samdeblur.evaluation.restore import FALLBACKS, FLAG

    names = value.split(",") if value is not None else []
    unknown = [name for name in names if name not in FALLBACKS]
    if unknown and value != FLAG:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {FLAG}, {', '.join(FALLBACKS)}")
    return value


def which_weights(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """best, last, initial or step-N. Raises BadParameter."""
    if value is not None and not re.fullmatch(r"best|last|initial|step-\d+", value):
        raise click.BadParameter(f"{value!r} is not one of best, last, initial, step-N")
    return value


weights_option = click.option(
    "--weights", callback=which_weights, metavar="best|last|initial|step-N",
    help="Which weights of a run.  [default: best, or last where nothing was validated after step 0]",
)  # fmt: skip

_OPTIONS = (
    click.option("--tlc", type=click.Choice(["auto", "on", "off"]), default="auto", is_flag=False, flag_value="on",
                 help="Local means in place of means over the whole image. auto, the default: on GoPro's test split, "
                      "as in the paper, and for weights that ask for it, as bundled; --tlc by itself means on."),
    click.option("--train-size", type=click.IntRange(1), metavar="PIXELS",
                 help="Side of training crops, for TLC.  [default: what the weights say, else 256]"),
    click.option("--tile", type=click.IntRange(1), metavar="PIXELS",
                 help="Cut larger images into tiles of this side, to save memory; masks are seen whole."),
    click.option("--overlap", type=click.IntRange(0), metavar="PIXELS",
                 help=f"Pixels that neighbouring tiles share.  [default: {OVERLAP}]"),
    click.option("--precision", type=Precision(PRECISIONS), default="float32",
                 show_default=True, help="Below float32 results change a little, and say so."),
    click.option("--guard", callback=guard_of, metavar="flag|tlc-off,tiled,input",
                 help="Flag results that look collapsed; or put something in their place, the first named that does "
                      "not look so."),
)  # fmt: skip


def inference_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--tlc, --train-size, --tile, --overlap, --precision and --guard."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def inference_of(options: Mapping[str, Any]) -> Inference:
    """What the options say of all images alike. Raises UsageError."""

    from samdeblur.evaluation.results import Inference

    if options["overlap"] is not None and options["tile"] is None:
        raise click.UsageError("--overlap is for --tile")
    overlap = None
    if options["tile"] is not None:
        overlap = OVERLAP if options["overlap"] is None else options["overlap"]
    return Inference(options["tile"], overlap, precision=options["precision"], guard=options["guard"])


def tlc_of(options: Mapping[str, Any], model: Deblurrer, as_published: bool) -> int | None:
    """Size of training crops that local means are made for; None for global means.

    Args:
        as_published: whether the paper uses them on the images.
    """
    usual = as_published or model.local_means
    wanted = options["tlc"] == "on" or (options["tlc"] == "auto" and usual)
    return (options["train_size"] or model.train_size or TRAIN_SIZE) if wanted else None


def refuse_unused(options: Mapping[str, Any], *tlc: int | None) -> None:
    """Raise UsageError for --train-size where nothing has local means."""
    if options["train_size"] is not None and not any(tlc):
        raise click.UsageError("--train-size is for --tlc")


def refuse_tiles(model: Deblurrer, inference: Inference) -> None:
    """Raise UsageError for tiles that do not suit the network."""

    from samdeblur.models import TileError, check_tiles

    if inference.tile is not None and inference.overlap is not None:
        try:
            check_tiles(model, inference.tile, inference.overlap)
        except TileError as error:
            raise click.UsageError(f"--tile and --overlap: {error}") from error
