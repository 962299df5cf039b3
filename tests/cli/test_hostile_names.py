"""Names that are markup, formulas or commands to something, and numbers that are none."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch

from samdeblur.models import NAFNet

NAMES = (
    *("=cmd|'calc'!A0", "+1", "-2+3", "@SUM(A1)", "<b>bold<_b>", "a&b", "$x_{1}^2%#~", "\\input{x}", "nan", "q\"'q"),
    *("tab\tname", "\x1b[31mred", "été 夜", " =late"),
)
NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


@pytest.fixture
def evaluated(samdeblur, tmp_path):
    """The folder of an evaluation of images with such names, below a folder with one; one of them is perfect."""
    folder = tmp_path / "=HYPERLINK(1)"
    for number, name in enumerate(NAMES):
        patches = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
        sharp = cv2.resize(patches, (32, 24), interpolation=cv2.INTER_NEAREST)
        for side, image in (("sharp", sharp), ("blur", cv2.blur(sharp, (3, 3)) if number else sharp)):
            (folder / side).mkdir(parents=True, exist_ok=True)
            (folder / side / f"{name}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    network = NAFNet(4, [1], 1, [1])
    torch.nn.init.zeros_(network.ending.weight)
    torch.nn.init.zeros_(network.ending.bias)
    torch.save(network.state_dict(), tmp_path / "identity.pth")
    (folder / "blur/broken\x1b[2J.png").write_bytes(b"no")
    (folder / "sharp/broken\x1b[2J.png").write_bytes(b"no")
    done = samdeblur("eval", "run", tmp_path / "identity.pth", folder, "--out", tmp_path / "o")
    assert done.code == 3, done.err
    assert "\x1b" not in done.out + done.err
    table = samdeblur("eval", "table", tmp_path / "o", "--out", tmp_path / "t")
    assert table.code == 0, table.err
    assert "\x1b" not in table.out + table.err
    return tmp_path


def no_constant(name):
    raise ValueError(f"{name} is no JSON")


def test_every_json_is_strict_and_every_text_ends_its_lines_with_lf(evaluated):
    texts = [path for name in ("o", "t") for path in (evaluated / name).rglob("*") if path.is_file()]
    texts = [path for path in texts if path.suffix not in (".png", ".jpg")]
    assert {path.suffix for path in texts} >= {".json", ".jsonl", ".csv", ".html", ".md", ".tex"}
    for path in texts:
        content = path.read_bytes()
        assert b"\r" not in content, path
        assert content.endswith(b"\n"), path
        if path.suffix == ".json":
            json.loads(content, parse_constant=no_constant)
        if path.suffix == ".jsonl":
            for line in content.decode().splitlines():
                json.loads(line, parse_constant=no_constant)
    document = json.loads((evaluated / "o/results.json").read_text())
    assert [image["psnr"] for image in document["sets"][0]["images"]].count(None) == 1  # the perfect one


@pytest.mark.parametrize("name", ["o/results.csv", "t/table.csv"])
def test_no_cell_of_csv_is_a_formula(evaluated, name):
    rows = list(csv.reader(io.StringIO((evaluated / name).read_text(encoding="utf-8"), newline="")))
    for row in rows:
        assert len(row) == len(rows[0])
        for cell in row:
            assert re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell) or not cell.lstrip().startswith(
                ("=", "+", "-", "@")
            ), cell
    if name == "o/results.csv":
        keys = {row[rows[0].index("key")].removeprefix("'") for row in rows[1:]}
        assert keys == set(NAMES)


def test_names_are_text_in_the_pages(evaluated):
    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found = []

        def handle_starttag(self, tag, attributes):
            self.found.append(tag)

    for page in ("o/report.html", "t/report.html"):
        tags = Tags()
        tags.feed((evaluated / page).read_text(encoding="utf-8"))
        assert "b" not in [tag for tag in tags.found if tag == "b"][6:]  # those of the strips are ours
        assert "script" in tags.found


def test_names_are_text_in_latex_and_markdown(evaluated):
    latex = (evaluated / "t/table.tex").read_text(encoding="utf-8")
    assert "\\input{" not in latex
    assert latex.count(r"\begin{") == latex.count(r"\end{")
    markdown = (evaluated / "t/table.md").read_text(encoding="utf-8")
    assert "<b>" not in markdown
