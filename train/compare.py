"""What evaluations say: the report of one network, and the table and report that compare several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage import MaskStore
from samdeblur.storage.files import write_durably
from samdeblur.storage.paint import paint_masks
from samdeblur.train.evaluate import Results, Score, SetResult, gain
from samdeblur.train.report import Strip, Table, encode_picture, number, render_report

PICTURES = ("blurred", "masks", "result", "sharp")

Picture = bytes


def save_pictures(
    folder: Path, result: SetResult, store: MaskStore, score: Score, deblurred: NDArray[np.uint8]
) -> None:
    """Keep the four pictures of an image as JPEG files, for this report and for reports that compare networks."""
    blurred = store.image("blurred", score.key)
    arrays = {
        "blurred": blurred,
        "masks": paint_masks(blurred, store.atoms(score.key)),
        "result": deblurred,
        "sharp": store.image("sharp", score.key),
    }
    for name, array in arrays.items():
        write_durably(picture_path(folder, result, score.key, name), encode_picture(array))


def picture_path(folder: Path, result: SetResult, key: str, name: str) -> Path:
    of_set = quote(f"{result.dataset}-{result.split}-{result.recipe[:8]}", safe="")
    return folder / "pictures" / of_set / f"{quote(key, safe='')}.{name}.jpg"


def load_pictures(folder: Path, result: SetResult, key: str) -> dict[str, Picture]:
    """The pictures kept of an image; empty when it is not among those kept."""
    paths = {name: picture_path(folder, result, key, name) for name in PICTURES}
    return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}


def worst_first(scores: Sequence[Score]) -> list[Score]:
    """By dB won over the blurred input, the least first."""
    return sorted(scores, key=lambda score: score.gain)


def run_report(results: Results, folder: Path) -> str:
    """The report of one network as HTML: a table of sets, the images that were kept, worst first."""
    sections = {}
    for result in results.sets:
        strips = []
        for score in worst_first(result.scores):
            pictures = load_pictures(folder, result, score.key)
            if pictures:
                strips.append(Strip(f"{score.key}: {score.gain:+.2f} dB", pictures, _notes(score), "result"))
        sections[f"{result.name}, {len(strips)} of {len(result.scores)} images, worst first"] = strips
    return render_report(
        f"{results.method}: deblurring results",
        [f"weights {results.weights}", f"SHA-256 {results.sha256}", CONVENTIONS],
        [run_table(results)],
        sections,
    )


def run_table(results: Results) -> Table:
    """A row per set."""
    columns = ["set", "images", "PSNR blurred", "PSNR", "SSIM blurred", "SSIM", "SSIM (nafnet)", "MCR", "step 0"]
    rows = []
    for result in results.sets:
        s = result.summary
        rows.append(
            [
                result.name,
                f"{s['images']}",
                number(s["psnr_blurred"]),
                number(s["psnr"]),
                number(s["ssim_wang_blurred"], 4),
                number(s["ssim_wang"], 4),
                number(s["ssim_nafnet"], 4),
                f"{100 * s['mcr']:.2f}%",
                number(result.psnr_step_0),
            ]
        )
    return Table("Scores", columns, rows)


CONVENTIONS = (
    "PSNR in dB over RGB, 8 bits. SSIM per channel inside the image (Wang et al.); SSIM (nafnet) as NAFNet's "
    "evaluation computes it. MCR: share of images that lost more than 3 dB."
)


def comparison_tables(runs: Sequence[Results]) -> list[Table]:
    """A table per set, a row per network, after the unprocessed input."""
    tables = []
    for name in _set_names(runs):
        rows: list[list[str]] = []
        psnrs: list[float] = []
        for run in runs:
            result = next((result for result in run.sets if result.name == name), None)
            if result is None:
                continue
            s = result.summary
            if not rows:
                blurred = [number(s["psnr_blurred"]), number(s["ssim_wang_blurred"], 4)]
                rows.append(["blurred input", *blurred, *[number(None)] * 3])
            psnrs.append(s["psnr"])
            rows.append(
                [
                    run.method,
                    number(s["psnr"]),
                    number(s["ssim_wang"], 4),
                    f"{100 * s['mcr']:.2f}%",
                    f"{gain(s['psnr'], s['psnr_blurred']):+.2f}",
                    number(None) if result.psnr_step_0 is None else f"{gain(s['psnr'], result.psnr_step_0):+.2f}",
                ]
            )
        best = psnrs.index(max(psnrs)) + 1
        columns = ["network", "PSNR", "SSIM", "MCR", "dB over blurred", "dB over its step 0"]
        tables.append(Table(name, columns, rows, frozenset({(best, 1)})))
    return tables


def comparison_report(runs: Sequence[Results], folders: Sequence[Path], figures: dict[str, bytes]) -> str:
    """Several networks on the same sets as HTML: tables, then blurred | masks | each result | sharp, worst first."""
    sections = {}
    for name in _set_names(runs):
        found = {
            (run.method, index): (folder, result)
            for index, (run, folder) in enumerate(zip(runs, folders, strict=True))
            for result in run.sets
            if result.name == name
        }
        lowest: dict[str, float] = {}
        for _, result in found.values():
            for score in result.scores:
                lowest[score.key] = min(score.gain, lowest.get(score.key, score.gain))
        strips = []
        for key in sorted(lowest, key=lambda key: lowest[key]):
            strip = _comparison_strip(key, found)
            if strip:
                strips.append(strip)
        sections[f"{name}: {len(strips)} images, worst first"] = strips
    return render_report("Deblurring results", [CONVENTIONS], comparison_tables(runs), sections, figures)


def _comparison_strip(key: str, found: dict[tuple[str, int], tuple[Path, SetResult]]) -> Strip | None:
    pictures: dict[str, Picture] = {}
    notes: dict[str, str] = {}
    sharp: Picture | None = None
    for (method, index), (folder, result) in found.items():
        kept = load_pictures(folder, result, key)
        score = next((score for score in result.scores if score.key == key), None)
        if score is None or len(kept) < len(PICTURES):
            continue
        if not pictures:
            pictures |= {"blurred": kept["blurred"], "masks": kept["masks"]}
            notes["blurred"] = f"{score.psnr_blurred:.2f} dB"
        label = method if method not in pictures else f"{method} ({index + 1})"
        pictures[label] = kept["result"]
        notes[label] = f"{score.psnr:.2f} dB"
        sharp = kept["sharp"]
    if sharp is None:
        return None
    first_result = list(pictures)[2]
    return Strip(key, pictures | {"sharp": sharp}, notes, first_result)


def _notes(score: Score) -> dict[str, str]:
    return {
        "blurred": f"{score.psnr_blurred:.2f} dB, SSIM {score.ssim_wang_blurred:.3f}",
        "result": f"{score.psnr:.2f} dB, SSIM {score.ssim_wang:.3f}",
    }


def _set_names(runs: Sequence[Results]) -> list[str]:
    return list(dict.fromkeys(result.name for run in runs for result in run.sets))


def as_markdown(table: Table) -> str:
    """A table for terminals and papers."""
    widths = [max(len(row[i]) for row in [table.columns, *table.rows]) for i in range(len(table.columns))]
    lines = [table.columns, ["-" * width for width in widths], *table.rows]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def write_report(folder: Path, html: str) -> Path:
    path = folder / "report.html"
    write_durably(path, html.encode())
    return path
