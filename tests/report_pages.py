"""What a person does with a report in a browser, and sees."""

from __future__ import annotations

import io
import json
from urllib.parse import quote

import pytest
from browser import PROGRAM
from PIL import Image

in_browser = pytest.mark.skipif(PROGRAM is None, reason="neither Chromium nor Chrome is here")


def listed(window):
    return window.run("[...document.querySelectorAll('.card')].map(card => card.image.key)")


def choose(window, name, value):
    window.run(
        f"(() => {{ const box = document.getElementById({name!r}); box.value = {json.dumps(value)};"
        "box.dispatchEvent(new Event('change')); box.dispatchEvent(new Event('input')); })()"
    )


def tick(window, name):
    window.run(f"document.getElementById({name!r}).click()")


def text(window, selector):
    return window.run(f"document.querySelector({selector!r}).textContent")


def visible(window, selector):
    return window.run(f"document.querySelector({selector!r}).checkVisibility()")


def colour_at(window, x, y):
    image = Image.open(io.BytesIO(window.screenshot())).convert("RGB")
    return image.getpixel((round(x), round(y)))


def like(colour, other):
    return max(abs(a - b) for a, b in zip(colour, other, strict=True)) < 12


def open_viewer(show, path, key="good/1", **look):
    window = show(path, f"#0/{quote(key, safe='')}", **look)
    images_are_there(window)
    return window


def images_are_there(window):
    window.until("[...document.querySelectorAll('.pane img')].every(p => p.complete && p.naturalWidth)")
    window.until("document.querySelector('.pane') !== null")
    if window.run("!document.getElementById('masked').hidden && document.querySelectorAll('.pane').length > 1"):
        window.until("document.querySelector('.pane canvas:not([hidden])') !== null")


def transforms(window):
    return window.run("[...document.querySelectorAll('.layer')].map(layer => getComputedStyle(layer).transform)")


def panes(window):
    return window.run("[...document.querySelectorAll('.pane')].map(pane => pane.dataset.name)")
