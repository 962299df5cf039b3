"""Results and images of evaluations that never were, for reports, and pages that are read without a browser."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np

from samdeblur.evaluation.report.images import keep_images, keep_strip, keep_thumbnail
from samdeblur.evaluation.results import Results, Score, SetResult, examples
from samdeblur.storage import AtomMap

HEIGHT, WIDTH = 60, 80


RED, GREEN, BLUE = (200, 30, 30), (30, 160, 30), (30, 30, 200)


HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">'\"&<!--\u2028/../?#%é"


SET = "toy test (masks 11111111)"


def score(key, before, after, **more):
    metrics = {"psnr_blurred": before, "psnr": after, "ssim_wang_blurred": 0.5, "ssim_wang": 0.25, "lpips": 0.125}
    return Score(key, metrics, **more)


SCORES = (
    score("good/1", 20.0, 23.0),
    score("fallen/2", 25.0, 20.0),
    score("flagged/10", 22.0, 21.0, flags=("flat", "too dark"), fallback="blurred input"),
    score("flagged/9", 23.0, 22.5),
    score("perfect/1", 30.0, math.inf),
    score("spoiled/1", math.inf, 30.0),
    score("same/1", math.inf, math.inf),
    score("edge/1", 24.0, 21.0),
    score(HOSTILE, 21.0, 21.5),
)


WORST_FIRST = ["spoiled/1", "fallen/2", "edge/1", "flagged/10", "flagged/9", "same/1", HOSTILE, "good/1", "perfect/1"]


KEPT = ("good/1", "fallen/2", HOSTILE)


def results(method="map", scores=SCORES, **changes):
    made = SetResult("toy", "test", "1" * 64, scores)
    return Results(method, f"runs/{method}/best.safetensors", "ab" * 32, (replace(made, **changes),))


def plain(colour):
    return np.full((HEIGHT, WIDTH, 3), colour, np.uint8)


def masks():
    """One over the left half, one in its middle; nothing on the right."""
    planes = np.zeros((2, HEIGHT, WIDTH), bool)
    planes[0, :, : WIDTH // 2] = True
    planes[1, 15:45, 10:30] = True
    return AtomMap.from_masks(planes)


def fill(folder, made, kept=KEPT, colour=GREEN, sharp=True, thumbnails=True):
    """Images of an evaluation: blurred red, sharp blue with a green stripe at the right end, results green."""
    atoms = masks()
    records = {"area": [2400.0, 600.0], "predicted_iou": [0.5, 0.25], "bbox_x": [0.0, 10.0], "bbox_y": [0.0, 15.0]}
    truth = plain(BLUE)
    truth[:, -20:] = GREEN
    for result in made.sets:
        for found in result.scores:
            if thumbnails:
                keep_thumbnail(folder, result.name, found.key, plain(colour))
            if found.key in kept:
                sides = plain(RED), plain(colour), truth if sharp else None
                keep_images(folder, result.name, found.key, *sides, atoms, records)
    return folder


def fill_with_strips(folder):
    made = results()
    (found,) = made.sets
    for _, score in examples(found.scores):
        keep_strip(folder, found.name, score.key, plain(RED), plain(GREEN), plain(BLUE))
    return made


class Page(HTMLParser):
    """Addresses, headings and text of a page, and the data of its scripts."""

    def __init__(self, path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.links, self.text, self.tags, self._open = [], {}, [], []
        self.feed(self.html)
        self.data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', self.html)[1])

    def handle_starttag(self, tag, attributes):
        self._open.append(tag)
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "poster")]

    def handle_data(self, data):
        tag = self._open[-1] if self._open else ""
        self.text[tag] = self.text.get(tag, "") + data
