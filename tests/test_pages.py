"""Every block of commands and of Python in README, CONTRIBUTING and docs is run small, or left out for a reason.

A page is run from top to bottom in a folder of its own, which holds small things under the names that the page uses.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pages import every_block
from places import ROOT
from programs import PROGRAMS, samdeblur

from samdeblur.models import AtomBatch, NAFNet
from samdeblur.pipeline.sources import layouts
from samdeblur.storage import AtomMap

__all__ = ["samdeblur"]

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Lines, and lines of Python blocks, that are not run -> why, and which test runs the like.
LEFT_OUT = {
    r"^pip install": "changes the environment of the tests; make wheel installs the package",
    r"^samdeblur-prep doctor": "depends on the machine: tests/cli/test_doctor.py",
    r"^samdeblur-prep weights fetch": "downloads: tests/cli/test_weights.py",
    r"(hf|s3|https)://": "wants a server: tests/cli/test_hub.py, tests/storage/access",
    r"--scheduler|^dask |^CUDA_VISIBLE_DEVICES=": "wants a cluster: tests/pipeline/job/test_recipes.py",
    r"^(python )?recipes/|^sbatch": "wants a cluster: tests/pipeline/job/test_recipes.py",
    r"^torchrun|^trap|^wait": "starts several processes: tests/train/test_ranks.py",
    r"^\.venv/bin/python -m benchmarks\.gpu": "a minute: tests/benchmarks/test_gpu.py",
    r"^python -m benchmarks\.evaluation\.table1": "wants the datasets: tests/benchmarks/test_table1.py",
    r"^python benchmarks/study(?!.*--plan)": "hours: tests/benchmarks/test_study.py",
    r"--job gopro": "wants the public checkpoints: tests/cli/test_run.py reads the same file",
    r"spandrel:Restormer": "wants spandrel-extra-arches: tests/train/test_networks.py has others",
    r"^import napari": "napari is no dependency: by hand",
}

# What stands on a page -> what is run, where it is made small or made to fit; of one page, or of all ("").
REPLACED = {
    "": {
        r"^make\b": f"make -n -C {ROOT}",
        r"^python ": f"{sys.executable} ",
        r"\bsam_vit_h(?=\s|$)": "sam_vit_h_4b8939.pth",
        r"--sam bundled": "--sam sam_vit_h_4b8939.pth",
        r"--workers 4": "--workers 1",
        r"worlds:200(:256)?|worlds:8:128": "worlds:3:64",
        r"worlds:50:256|worlds:4:128": "worlds:2:64",
        r"worlds-local:50:256": "worlds-local:2:64",
        r"--steps 50\b": "--steps 2",
        r"benchmarks/study": str(ROOT / "benchmarks/study"),
    },
    "batch-jobs": {
        r"DATASETS=/data STORES=/scratch/stores": "DATASETS=. STORES=.",
        r'Resources\(scheduler="tcp://head:8786"\)': "Resources(workers=1)",
        r'Weights.of_sam\("bundled"\)': 'Weights.of_sam("sam_vit_h_4b8939.pth"), sam_settings={"points_per_side": 4}',
        r'Path\("test\.zarr"\)': 'Path("python.zarr")',
        r"nafnet_gopro_width32": "NAFNet-GoPro-width32.pth",
    },
    "masks": {r"--points-per-side 64": "--points-per-side 5"},
    "networks": {
        r"--config swinir": "--config swinir --steps 1 --set batch_size=1 --set crop_size=16",
        r"256, 256\)": "64, 64)",
        r"torch.rand\(4": "torch.rand(2",
        r"width=48": "width=4",
    },
    "python": {
        r"\*\*BUNDLED_SETTINGS": '**BUNDLED_SETTINGS | {"points_per_side": 2}',
        r"width=32": "width=4",
    },
    "segmenters": {
        r"--segmenter regions": "--segmenter regions_segmenter:Regions",
        r"my_package\.masks:open_it": "regions_segmenter:Regions",
    },
    "sharing": {r"/data/train": "HERE/train"},
    "training": {r"--steps 300000": "--steps 4", r"freeze_backbone=2000": "freeze_backbone=1"},
    "tutorial": {},
}

# Options put before those of a page, which are meant for machines with a GPU and for days.
SMALL = {
    "prep run": ["--workers", "1"],
    "train": [
        *("--steps", "2", "--device", "cpu", "--set", "batch_size=2", "--set", "crop_size=32"),
        *("--set", "val_share=0.5"),
    ],
}
NAFNET = [
    *("--set", "width=4", "--set", "enc_blk_nums=[1]", "--set", "middle_blk_num=1", "--set", "dec_blk_nums=[1]"),
]

# What a page expects to be there, beside SOURCES: its name there -> its name here.
TRAIN, TEST, RUN, NONE = "gopro-train.zarr", "gopro-test.zarr", "runs/map", "runs/none"
WANTED = {
    "checkpoints": {TEST: TEST, "STORE": TRAIN},
    "evaluation": {TEST: TEST, "reds-val.zarr": TEST, "runs/map-dropout": RUN},
    "guard": {"RUN": RUN, "STORE": TEST},
    "inference": {"test.zarr": TEST, "runs/map-dropout": RUN},
    "networks": {"train.zarr": TRAIN},
    "python": {"train.zarr": "worlds.zarr"},
    "restore": {RUN: RUN},
    "sharing": {"train.zarr": TRAIN},
    "stores": {
        **{"train.zarr": TRAIN, "old.zarr": TRAIN, "new.zarr": "new.zarr"},
        **{"part1.zarr": "part1.zarr", "part2.zarr": "part2.zarr"},
        "photos/GOPR0372_07_00": "GOPRO_Large/train/GOPR0372_07_00/blur",
    },
    "tables": {RUN: RUN, NONE: NONE, "results/map": "results/map", "results/none": "results/none"},
    "training": {
        **{"train.zarr": TRAIN, TRAIN: TRAIN, "test.zarr": TEST, TEST: TEST, "worlds.zarr": "worlds.zarr"},
        **{"gopro-masks.zarr.zip": "gopro-masks.zarr.zip", RUN: RUN, NONE: NONE},
    },
    "which-masks": {"train.zarr": TRAIN, "of-sharp.zarr": TRAIN},
}


@dataclass(frozen=True)
class Step:
    """One command, one piece of shell script, or one block of Python."""

    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.text.splitlines()[0]}"

    @property
    def left_out(self) -> str | None:
        """The reason not to run it."""
        lines = self.text.splitlines()
        return next((why for what, why in LEFT_OUT.items() if any(re.search(what, line) for line in lines)), None)


def steps(page: Path) -> Iterator[Step]:
    for block in every_block(page):
        if block.language == "python":
            yield Step(page.stem, block.line, "python", block.text)
        if block.language == "sh":
            yield from shell_steps(page.stem, block.line, block.text)


def shell_steps(page: str, first: int, text: str) -> Iterator[Step]:
    """A line each; a loop and what belongs to it is one step."""
    whole = re.sub(r"\\\n\s*", lambda joint: "\0" * joint[0].count("\n"), text)
    script: list[str] = []
    number = first
    for line in whole.splitlines():
        code = re.sub(r"(^|\s+)#.*", "", line.replace("\0", " "))
        script += [code] if code.strip() else []
        if script and not code.startswith(" ") and (len(script) == 1 or code == "done") and not code.endswith("; do"):
            kind = "command" if code.startswith("samdeblur-") else "shell"
            yield Step(page, number, kind, "\n".join(script))
            script = []
        number += 1 + line.count("\0")
    assert not script, script


STEPS = {page.stem: [*steps(page)] for page in FILES}


def call(program: str, *words: object) -> int:
    """A command in this process -> its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"samdeblur-{program}", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            PROGRAMS[program]()
    return int(ended.value.code or 0)


PAIRS = {  # folder, blurred, sharp
    "GOPRO_Large": [
        (f"{scene}/blur/{frame:06d}.png", f"{scene}/sharp/{frame:06d}.png")
        for scene in ("train/GOPR0372_07_00", "test/GOPR0384_11_00")
        for frame in (47, 48)
    ],
    "RealBlur": [
        (f"{folder}/scene001/blur/blur_{n}.png", f"{folder}/scene001/gt/gt_{n}.png")
        for folder in ("RealBlur-J_ECC_IMCORR_centroid_itensity_ref",)
        for n in (1, 2)
    ],
    "REDS": [
        *((f"val/val_blur/000/{n:08d}.png", f"val/val_sharp/000/{n:08d}.png") for n in (0, 1)),
        *((f"val/val_blur_jpeg/000/{n:08d}.jpg", f"val/val_sharp/000/{n:08d}.png") for n in (0, 1)),
    ],
    "ReLoBlur": [
        (f"{split}/s01/00/0{n}_blur.png", f"{split}/s01/00/0{n}_sharp.png")
        for split in ("train", "test")
        for n in (0, 1)
    ],
    "mine": [("train/input/a.png", "train/target/a.png"), ("test/input/b.png", "test/target/b.png")],
    "SOURCE": [("blur/a.png", "sharp/a.png"), ("blur/b.png", "sharp/b.png")],
    "raw": [(f"{n}_blurry.jpg", f"{n}_clean.jpg") for n in (1, 2)],
}


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory, random_sam: Callable[[], torch.nn.Module]) -> Path:
    """Everything that pages expect, small: datasets, checkpoints, stores, runs, results."""
    root = tmp_path_factory.mktemp("things")
    for number, (dataset, pairs) in enumerate(PAIRS.items()):
        for blurred, sharp in pairs:
            patches = np.random.default_rng([number, *sharp.encode()]).integers(0, 256, (4, 5, 3), np.uint8)
            image = cv2.resize(patches, (72, 64), interpolation=cv2.INTER_NEAREST)
            for name, pixels in ((blurred, cv2.blur(image, (5, 3))), (sharp, image)):
                file = root / dataset / name
                file.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(file), pixels)
    for split in ("train", "test"):
        lines = [f"{sharp} {blurred}" for blurred, sharp in PAIRS["RealBlur"]]
        (root / f"RealBlur/RealBlur_J_{split}_list.txt").write_text("\n".join(lines))
    (root / "pairs.csv").write_text("".join(f"raw/{blurred},raw/{sharp}\n" for blurred, sharp in PAIRS["raw"]))
    shutil.copytree(root / "GOPRO_Large/test/GOPR0384_11_00/blur", root / "holiday")
    for suffix in ("png", "jpg"):
        cv2.imwrite(str(root / f"photo.{suffix}"), cv2.imread(str(root / "holiday/000047.png")))
    torch.manual_seed(0)
    network = NAFNet(4, [1], 1, [1]).state_dict()
    torch.save(network, root / "NAFNet-GoPro-width32.pth")
    encoder = {
        "pre_seg.weight": (2, 3, 3, 3),
        "pre_seg.bias": (2,),
        "pre_seg_in.weight": (2, 2, 1, 1),
        "pre_seg_in.bias": (2,),
    }
    wide = {"intro.weight": torch.cat([network["intro.weight"], torch.rand(4, 2, 3, 3)], 1)}
    released = network | wide | {name: torch.rand(shape) for name, shape in encoder.items()}
    torch.save(released, root / "SegNAFNet-GoPro.pth")
    torch.save(random_sam().state_dict(), root / "sam_vit_h_4b8939.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        fixed = ("--segmenter", "superpixels", "--workers", 1)
        assert call("prep", "run", "GOPRO_Large", TRAIN, "--split", "train", *fixed) == 0
        assert call("prep", "run", "GOPRO_Large", TEST, "--split", "test", *fixed) == 0
        assert call("prep", "run", "worlds:4:256", "worlds.zarr", "--split", "train", *fixed) == 0
        assert call("prep", "run", "SOURCE", "new.zarr", "--split", "train", "--dataset", "GoPro", *fixed) == 0
        for number in (1, 2):
            assert call("prep", "subset", TRAIN, f"part{number}.zarr", "--keys", f"*{46 + number}") == 0
        assert call("prep", "export", TRAIN, "gopro-masks.zarr.zip", "--licence", "CC0") == 0
        for method in ("none", "map"):
            assert call("train", *SMALL["train"], *NAFNET, TRAIN, "--method", method, "--out", f"runs/{method}") == 0
            assert call("eval", "run", f"runs/{method}", TEST, "--out", f"results/{method}") == 0
    return root


SOURCES = [
    *PAIRS,
    "pairs.csv",
    "holiday",
    "photo.png",
    "photo.jpg",
    "NAFNet-GoPro-width32.pth",
    "SegNAFNet-GoPro.pth",
    "sam_vit_h_4b8939.pth",
]


@pytest.fixture
def place(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """place(page) -> a folder, the working one, with what the page expects."""

    def prepared(page: str) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        for name, thing in (dict(zip(SOURCES, SOURCES, strict=True)) | WANTED.get(page, {})).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (things / thing).is_dir() else shutil.copy)(things / thing, tmp_path / name)
        for block in every_block(next(file for file in FILES if file.stem == page)):
            if block.file:
                (tmp_path / block.file).write_text(replaced(page, block.text))
        (tmp_path / "my_package").mkdir()
        (tmp_path / "my_package/nets.py").write_text("from samdeblur.models.networks.unet import UNet as make\n")
        return tmp_path

    return prepared


def replaced(page: str, text: str) -> str:
    for old, new in (REPLACED[""] | REPLACED.get(page, {})).items():
        text = re.sub(old, new.replace("HERE", str(Path.cwd())), text, flags=re.MULTILINE)
    return text


def run_command(samdeblur, text: str) -> str:
    """A line of samdeblur-PROGRAM in this process -> what it printed."""
    line, _, target = text.partition(" > ")
    words = [word for given in shlex.split(line) for word in sorted(glob(given)) or [given]]
    program, words = words[0].removeprefix("samdeblur-"), words[1:]
    kind = "train" if program == "train" and words[0] not in ("status", "plot") else f"{program} {words[0]}"
    small = SMALL.get(kind, [])
    if kind == "prep run" and "--segmenter" not in words:
        by_sam = {"--sam", "--job"} & set(words)
        small = [*small, *(("--points-per-side", "4") if by_sam else ("--segmenter", "superpixels"))]
    if kind == "train" and not any(word in line for word in ("--weights", "swinir", "network=")):
        small = [*small, *NAFNET]
    at = 0 if kind == "train" else 1
    done = samdeblur(program, *words[:at], *small, *words[at:])
    assert done.code == (1 if kind == "prep diff" else 0), (text, done.out, done.err)
    if target:
        Path(target).write_text(done.out)
    return done.out + done.err


def run_shell(text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    if text.startswith("export "):
        for setting in text.split()[1:]:
            monkeypatch.setenv(*setting.split("=", 1))
        return ""
    done = subprocess.run(
        ["bash", "-euc", text], capture_output=True, text=True, check=False, env={**os.environ, "MAKEFLAGS": ""}
    )
    assert done.returncode == 0, (text, done.stdout, done.stderr)
    return done.stdout


def names_of(page: str) -> dict[str, object]:
    """What the blocks of Python of a page use and the page describes in words."""
    masks = np.zeros((2, 64, 72), bool)
    masks[0, 8:40], masks[1, :, 20:50] = True, True
    atoms = AtomMap.from_masks(masks)
    image = torch.rand(1, 3, 64, 72)
    return {
        "checkpoints": {"image": image, "atoms": AtomBatch.collate([atoms])},
        "guard": {"image": image, "output": image, "in_tiles": lambda: image},
        "inference": {"image": image, "pixels": np.zeros((64, 72, 3), np.uint8), "atoms": atoms},
        "networks": {"nn": torch.nn, "F": torch.nn.functional},
    }.get(page, {})


def run_page(page: str, samdeblur, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything of a page that is not left out -> what it printed."""
    said, names = "", names_of(page)
    for step in STEPS[page]:
        if step.left_out:
            continue
        text = replaced(page, step.text)
        if step.kind == "command":
            said += run_command(samdeblur, text)
        elif step.kind == "shell":
            said += run_shell(text, monkeypatch)
        else:
            exec(compile("\n" * step.line + text, f"{page}.md", "exec"), names)
    return said


# Files that a page says come out of its commands.
MADE = {
    "README": ["comparison/report.html", "restored/000048.png", "run/best.safetensors"],
    "tutorial": [
        f"first/{name}" for name in ("sharper/compare.html", "masks.html", "comparison/report.html", "whole.zarr")
    ],
    "evaluation": [f"results/map-dropout/{name}" for name in ("results.json", "results.csv", "report.html")],
    "tables": ["table.tex", *(f"comparison/{name}" for name in ("table.md", "table.csv", "table.tex", "report.html"))],
}
# Words that a page says are printed.
PRINTED = {
    "batch-jobs": ["train.zarr: 2 of 2 images done, 0 pending, 0 quarantined"],
    "study": ["64 stores", "134 trainings", "42 stores", "146 trainings"],
}


@pytest.mark.parametrize("page", [page for page, found in STEPS.items() if any(not step.left_out for step in found)])
def test_a_page_does_what_it_says(page, place, samdeblur, monkeypatch):
    folder = place(page)
    monkeypatch.setattr(layouts, "LAYOUTS", dict(layouts.LAYOUTS))  # which the page on contributing adds to
    said = run_page(page, samdeblur, monkeypatch)
    for name in MADE.get(page, ()):
        assert (folder / name).exists(), name
    for words in PRINTED.get(page, ()):
        assert words in said, words


def shown(page: str, beginning: str) -> list[str]:
    """The lines of output that a page shows, as patterns: numbers, paths and plurals may differ."""
    text = next(b.text for b in every_block(ROOT / f"docs/{page}.md") if not b.language and beginning in b.text)
    patterns = []
    for line in text.splitlines():
        line = re.sub(r"\S*/[\w/.]+(?=[: ])", "PATH", line.strip())
        line = re.sub(r"\b(image|block|worker)s?\b", "\\1PLURAL", re.sub(r"\d[\d,.:]*", "NUMBER", line))
        line = re.escape(line).replace("NUMBER", r"[\d,.:]+").replace("PLURAL", "s?")
        patterns.append(line.replace("PATH", r"\S+"))
    return patterns


def test_output_that_pages_show_is_what_is_printed(place, samdeblur):
    place("batch-jobs")
    fixed = ("prep", "run", "SOURCE", "s.zarr", "--split", "test", "--segmenter", "superpixels", "--workers", 1)
    said = ""
    Path("SOURCE/blur/007.png").write_bytes(b"")
    shutil.copy("SOURCE/sharp/a.png", "SOURCE/sharp/007.png")
    ended = samdeblur(*fixed, "--block-size", 1, "--dataset", "data")
    assert ended.code == 3
    said += ended.out + ended.err
    said += samdeblur(*fixed, "--dataset", "data", "--dry-run", "--retry-quarantined").out
    Path("GOPRO_Large/train/GOPR0372_07_00/sharp/000047.png").unlink()
    left_out = ("prep", "run", "GOPRO_Large", "t.zarr", "--split", "train", "--skip-unpaired", "--dry-run")
    said += samdeblur(*left_out, "--segmenter", "superpixels").err
    for page, beginning in (("batch-jobs", "data test -> "), ("batch-jobs", "  quarantined"), ("datasets", "note: ")):
        for pattern in shown(page, beginning):
            assert re.search(pattern, said), (pattern, said)


def test_what_is_left_out_is_there_and_says_where_it_is_run():
    for what, why in LEFT_OUT.items():
        lines = [line for found in STEPS.values() for step in found for line in step.text.splitlines()]
        assert any(re.search(what, line) for line in lines), what
        for test in re.findall(r"tests/\S+?(?=[,\s]|$)", why):
            assert (ROOT / test).exists(), test


def test_what_is_replaced_is_there():
    for page, replacements in REPLACED.items():
        files = FILES if not page else [file for file in FILES if file.stem == page]
        text = "\n".join(block.text for file in files for block in every_block(file))
        for old in replacements:
            assert re.search(old, text, re.MULTILINE), (page, old)
