"""What the reader of numbers should beware of: few images, weights of an unfinished run, masks of another kind."""

from __future__ import annotations

from samdeblur.evaluation.results import Results, SetResult, Trained
from samdeblur.storage.files import printable
from samdeblur.storage.plurals import counted

FEW = 10  # images; the mean of fewer says little
NAMED = 4
TRAINED_ON = "the network was trained on these images, or most of them."


def caveats(results: Results) -> list[str]:
    """Sentences, of one evaluation."""
    lines = []
    if results.trained is not None and not results.trained.step:
        lines.append(f"The weights are of step 0 of {results.trained.of:,}: they are not trained.")
    elif results.trained is not None and not results.trained.finished:
        lines.append(f"The weights are of {results.trained}.")
    for result in results.sets:
        lines += [f"{printable(result.name)}: {line}" for line in _of_set(result, results.trained)]
    return lines


def _of_set(result: SetResult, trained: Trained | None) -> list[str]:
    lines = []
    if len(result.scores) < FEW:
        lines.append(f"{counted(len(result.scores), 'image')}, too few for means to say much.")
    if result.trained_on:
        lines.append(TRAINED_ON)
    if difference := other_masks(result, trained):
        lines.append(f"{difference}.")
    if result.unready:
        named = [f"{printable(key)} ({printable(why)})" for key, why in list(result.left_out.items())[:NAMED]]
        more = result.unready - len(named)
        named += [f"{more:,} more"] if named and more else []
        lines.append(f"{counted(result.unready, 'image')} left out" + (f": {', '.join(named)}." if named else "."))
    return lines


def other_masks(result: SetResult, trained: Trained | None) -> str:
    """How the masks differ from those of training, in words; empty where they do not, or nobody knows."""
    if trained is None or not trained.segmenter or not result.segmenter or trained.segmenter == result.segmenter:
        return ""
    found, known = printable(result.segmenter), printable(trained.segmenter)
    return f"the masks are of {found}; the network was trained with masks of {known}"
