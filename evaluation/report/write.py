"""Reports people look at: what one network made of its sets, and several networks side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from samdeblur.evaluation.report.images import (
    borrow_image,
    kept_images,
    read_strip,
    read_thumbnail,
    shown_path,
)
from samdeblur.evaluation.report.page import Example, ShownImage, ShownResult, ShownSet, render_page
from samdeblur.evaluation.results import Conventions, Results, SetResult, examples
from samdeblur.evaluation.tables.arrangement import distinct_labels
from samdeblur.evaluation.tables.caveats import caveats
from samdeblur.evaluation.tables.cells import Table
from samdeblur.evaluation.tables.text import run_table
from samdeblur.storage.files import write_durably
from samdeblur.storage.names import shared_names
from samdeblur.storage.plurals import counted

REPORT = "report.html"
LABELS = ("blurred", "result", "sharp")


def write_report(folder: Path, results: Results, figures: Mapping[str, bytes] | None = None) -> Path:
    """Write report.html into the folder with the thumbnails and images of an evaluation.

    Args:
        figures: caption -> PNG bytes, such as the curves of the training.
    """
    sets = []
    for result in results.sets:
        images = []
        for score in result.scores:
            kept = kept_images(folder, result.name, score.key)
            thumbnail = read_thumbnail(folder, result.name, score.key)
            shown = ShownResult(score, thumbnail, kept.pop("result", None))
            images.append(ShownImage(score.key, [shown], kept))
        sets.append(ShownSet(result.name, [0], [result.collapse_db], _notes(result), images))
    step = [f"of {results.trained}"] if results.trained else []
    facts = [
        f"weights {' '.join([results.weights, *step])}",
        f"SHA-256 {results.sha256}",
        _meaning(results.conventions),
    ]
    if results.environment:
        facts.append(", ".join(f"{name} {value}" for name, value in results.environment.items()))
    html = render_page(
        folder,
        f"{results.method}: deblurring results",
        facts,
        [run_table(results)],
        figures or {},
        [results.method],
        sets,
        _lead(results),
        caveats(results),
        [example for number, result in enumerate(results.sets) for example in _examples(folder, number, result)],
    )
    return _write(folder, html)


def _lead(results: Results) -> str:
    """What was evaluated, in a line."""
    weights = f", weights of {results.trained}" if results.trained else ""
    sets = "; ".join(map(_in_short, results.sets))
    return f"{results.method}{weights}, on {sets}"


def _in_short(result: SetResult) -> str:
    found = result.summary
    words = f"{result.name}: {counted(len(result.scores), 'image')}"
    if "psnr" not in found:
        return words
    return f"{words}, {found['psnr_blurred']:.2f} \u2192 {found['psnr']:.2f} dB, MCR {100 * found['mcr']:.2f}%"


def _examples(folder: Path, number: int, result: SetResult) -> list[Example]:
    """The best, a middling and the worst image of a set, of those whose files are kept."""
    found = []
    for title, score in examples(result.scores):
        strip = read_strip(folder, result.name, score.key)
        if strip is None:
            continue
        scored = "psnr" in score.metrics
        before, after = score.metrics.get("psnr_blurred", 0.0), score.metrics.get("psnr", 0.0)
        words = f"{before:.2f} \u2192 {after:.2f} dB ({score.gain:+.2f})" if scored else score.key
        found.append(Example(title, words, strip, LABELS if scored else LABELS[:2], (number, score.key)))
    return found


def write_comparison(
    folder: Path,
    runs: Sequence[Results],
    run_folders: Sequence[Path],
    figures: Mapping[str, bytes],
    tables: Sequence[Table] = (),
) -> Path:
    """Write report.html of several evaluations; images they kept are linked or copied to below `folder`.

    Args:
        run_folders: where each evaluation wrote its results.
        figures: caption -> PNG bytes.
        tables: what stands at the top.
    """
    networks = distinct_labels([_label(run) for run in runs], [str(place) for place in run_folders])
    sets = []
    for name in dict.fromkeys(result.name for run in runs for result in run.sets):
        found = {n: result for n, run in enumerate(runs) for result in run.sets if result.name == name}
        sets.append(_compared_set(folder, name, found, run_folders, networks))
    facts = list(dict.fromkeys(_meaning(run.conventions) for run in runs))
    facts += [
        f"{name}: {run.weights}" + (f", {run.trained}" if run.trained else "")
        for name, run in zip(networks, runs, strict=True)
    ]
    several = len(runs) > 1
    of_networks: dict[str, list[str]] = {}
    for name, run in zip(networks, runs, strict=True):
        for line in dict.fromkeys(caveats(run)):
            of_networks.setdefault(line, []).append(name)
    beware = [  # what holds for every network is said of none
        line if len(names) == len(runs) else f"{', '.join(names)}: {line}" for line, names in of_networks.items()
    ]
    names = list(dict.fromkeys(result.name for run in runs for result in run.sets))
    lead = f"{', '.join(networks)}, on {', '.join(names)}"
    strips = [
        replace(example, title=f"{network}, {example.title}" if several else example.title)
        for network, run, place in zip(networks, runs, run_folders, strict=True)
        for result in run.sets
        for example in _examples(place, names.index(result.name), result)
        if not several or example.title in ("worst", "the only one")
    ]
    html = render_page(folder, "Deblurring results", facts, tables, figures, networks, sets, lead, beware, strips)
    return _write(folder, html)


def _compared_set(
    folder: Path, name: str, found: Mapping[int, SetResult], run_folders: Sequence[Path], networks: Sequence[str]
) -> ShownSet:
    """The images of a set that any of the networks was run on; `found` by the position of the network."""
    names = dict(zip(found, shared_names([s.key for s in result.scores] for result in found.values()), strict=True))
    scores = {n: {names[n][score.key]: score for score in result.scores} for n, result in found.items()}
    images = []
    for key in dict.fromkeys(key for by_key in scores.values() for key in by_key):
        results: list[ShownResult | None] = []
        paths: dict[str, Path] = {}
        own = {n: scores[n][key].key for n in found if key in scores[n]}
        kept = {n: kept_images(run_folders[n], name, own.get(n, key)) for n in found}
        worst = min((n for n in found if key in scores[n]), key=lambda n: scores[n][key].gain)
        for n in found:
            if key not in scores[n]:
                results.append(None)
                continue
            for kind, source in kept[n].items():
                target = shown_path(folder, name, key, kind, n + 1 if kind == "result" else None)
                if kind not in paths:
                    borrow_image(source, target)
                    paths[kind] = target
            result_path = paths.pop("result", None)
            wanted = n == worst or (result_path is None and any(kept.values()))  # in the list, or in place of an image
            thumbnail = read_thumbnail(run_folders[n], name, own[n]) if wanted else None
            results.append(ShownResult(scores[n][key], thumbnail, result_path))
        images.append(ShownImage(key, results, paths))
    whose: dict[str, list[str]] = {}
    for n, result in found.items():
        for note in _notes(result):
            whose.setdefault(note, []).append(networks[n])
    notes = [note if len(of) == len(found) else f"{note} ({', '.join(of)})" for note, of in whose.items()]
    return ShownSet(name, list(found), [result.collapse_db for result in found.values()], notes, images)


def _label(run: Results) -> str:
    """The method, and how it was run where that is unusual and the same on all sets."""
    ways = {str(result.inference) for result in run.sets}
    way = min(ways) if len(ways) == 1 else ""
    return run.method if not way or run.method.endswith(way) else f"{run.method}, {way}"


def _notes(result: SetResult) -> list[str]:
    """What has to be known of a set."""
    notes = [f"inference: {result.inference}"] if str(result.inference) else []
    return notes + ([f"left out, as they could not be used: {result.unready}"] if result.unready else [])


def _meaning(conventions: Conventions) -> str:
    """What the numbers mean."""
    words = [
        f"PSNR: {conventions.psnr}",
        "SSIM (wang): per channel, inside the image; SSIM (nafnet): as NAFNet's evaluation computes it",
        f"MCR: share of images that lost more than {conventions.collapse_db:g} dB",
    ]
    if conventions.align != "none":
        words.append(f"Results are aligned with the sharp images first ({conventions.align})")
    return f"{'. '.join(words)}."


def _write(folder: Path, html: str) -> Path:
    path = folder / REPORT
    write_durably(path, html.encode(errors="replace"))
    return path
