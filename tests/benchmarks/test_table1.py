"""benchmarks/evaluation/table1.py on miniature trees in the layouts of the four datasets."""

from __future__ import annotations

import importlib.util
import sys

import cv2
import numpy as np
import pytest
from places import ROOT

SCRIPT = ROOT / "benchmarks/evaluation/table1.py"
INNER = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"
TREES = {
    "gopro": [
        *((f"train/GOPR1/blur/{n:06}.png", f"train/GOPR1/sharp/{n:06}.png") for n in range(3)),
        *((f"test/GOPR2/blur/{n:06}.png", f"test/GOPR2/sharp/{n:06}.png") for n in range(2)),
    ],
    "realblur-j": [(f"{INNER}/scene001/blur/blur_{n}.png", f"{INNER}/scene001/gt/gt_{n}.png") for n in (1, 2)],
    "reds": [(f"val/val_blur/000/{n:08}.png", f"val/val_sharp/000/{n:08}.png") for n in range(2)],
    "reloblur": [(f"test/s01/00/{n:02}_blur.png", f"test/s01/00/{n:02}_sharp.png") for n in range(2)],
}


@pytest.fixture(scope="module")
def table1():
    spec = importlib.util.spec_from_file_location("table1", SCRIPT)
    module = sys.modules["table1"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["table1"]


@pytest.fixture
def roots(tmp_path):
    rng = np.random.default_rng(0)
    for layout, pairs in TREES.items():
        for blurred, sharp in pairs:
            patches = cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), (80, 64), interpolation=cv2.INTER_NEAREST)
            for name, image in ((sharp, patches), (blurred, cv2.blur(patches, (7, 3)))):
                path = tmp_path / "data" / layout / name
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), image)
    lines = (f"{INNER}/scene001/gt/gt_{n}.png {INNER}/scene001/blur/blur_{n}.png " for n in (1, 2))
    (tmp_path / "data/realblur-j/RealBlur_J_test_list.txt").write_text("\n".join(lines))
    return {layout: str(tmp_path / "data" / layout) for layout in TREES}


@pytest.fixture
def plan(table1, roots, tmp_path):
    train = ("--set", "steps=2", "--set", "width=4", "--set", "enc_blk_nums=[1]", "--set", "dec_blk_nums=[1]",
             "--set", "crop_size=32", "--set", "batch_size=2", "--set", "val_images=1")  # fmt: skip
    return table1.Plan(
        roots, tmp_path / "out", ("--segmenter", "superpixels", "--workers", "1"), train, ("--report-images", "1"),
        predeblur="none", sam="",
    )  # fmt: skip


def test_four_datasets_become_the_table_of_four_methods(table1, plan, samdeblur, monkeypatch):
    said, calls = [], []

    def runner(program, arguments):
        calls.append(program)
        return samdeblur(program, *arguments).code

    assert table1.run(plan, runner, said.append) == 0, said
    assert calls == ["prep"] * 5 + ["train"] * 4 + ["eval"] * 5
    table = (plan.out / table1.TABLE / "table.md").read_text()
    for name in ("GoPro", "RealBlur-J", "REDS", "ReLoBlur", *table1.METHODS):
        assert name in table
    assert {"table.md", "table.csv", "table.tex", "report.html"} <= {
        path.name for path in (plan.out / table1.TABLE).iterdir()
    }
    results = (plan.out / "results/map/results.json").read_bytes()
    assert table1.run(plan, runner, said.append) == 0
    assert (plan.out / "results/map/results.json").read_bytes() == results  # nothing was done again


def test_a_step_that_fails_ends_it_with_its_exit_code(table1, plan):
    said = []
    codes = iter([0, 3, 0, 1])
    assert table1.run(plan, lambda program, arguments: next(codes), said.append) == 1
    assert "[4/14]" in said[-2]
    assert "ended with 1" in said[-1]


def test_several_gpus_share_trainings_and_evaluations(table1, monkeypatch):
    commands = []
    monkeypatch.setattr(
        table1.subprocess, "run", lambda command, check: commands.append(command[1:]) or type("", (), {"returncode": 0})
    )
    for program, arguments in (("train", ["s"]), ("eval", ["run", "r"]), ("eval", ["table", "r"]), ("prep", ["run"])):
        assert table1.in_subprocess(program, arguments, 8) == 0
    shared = ["-m", "torch.distributed.run", "--nproc_per_node=8", "-m"]
    assert commands == [
        [*shared, "samdeblur.cli.train", "s"],
        [*shared, "samdeblur.cli.eval", "run", "r"],
        ["-m", "samdeblur.cli.eval", "table", "r"],
        ["-m", "samdeblur.cli.prep", "run"],
    ]
