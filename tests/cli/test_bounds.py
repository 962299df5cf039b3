"""Settings of the mask generator have bounds on both sides, and are checked together, before any work."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "options",
    [
        ["--crop-n-layers", "40"],
        ["--crop-n-layers", "-1"],
        ["--crop-overlap-ratio", "1.5"],
        ["--box-nms-thresh", "7"],
        ["--min-mask-region-area", "-1"],
        ["--pred-iou-thresh", "nan"],
        ["--stability-score-offset", "inf"],
        ["--points-per-side", "0"],
        ["--points-per-batch", "1000000000"],
        ["--crop-n-layers", "2", "--crop-n-points-downscale-factor", "2", "--points-per-side", "2"],
    ],
    ids=" ".join,
)
def test_settings_out_of_bounds_are_refused_and_nothing_is_written(prep_run, pairs, tmp_path, options):
    refused = prep_run(pairs, tmp_path / "s.zarr", "--sam", "bundled", *options)
    assert (refused.code, options[0] in refused.error) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]
