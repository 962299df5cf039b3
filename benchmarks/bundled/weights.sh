#!/usr/bin/env bash
# Trains the bundled weights from nothing and measures them. Usage, from the root of the repository: weights.sh FOLDER.
# Run again, it goes on where it stopped. `python -m benchmarks.bundled.ship` without --out puts them into models/bundled.
set -euo pipefail
out=$1
# Steps allocate and free large tensors; where the C library gives memory back each time, that can cost more than arithmetic.
export MALLOC_MMAP_THRESHOLD_=17179869184 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
samdeblur-prep run worlds:2400 "$out/worlds.zarr" --split train --segmenter true-masks
samdeblur-prep run worlds-wide:1200 "$out/wide.zarr" --split train --segmenter true-masks
python -m samdeblur.cli.train_sam "$out/worlds.zarr" "$out/wide.zarr" --out "$out/sam"
[ -e "$out/mixture.zarr" ] && [ ! -e "$out/mixture.zarr.run" ] ||
    python -m benchmarks.bundled.mixture "$out/mixture.zarr" "$out/worlds.zarr" "$out/wide.zarr" sample-wide --most 1200
samdeblur-train "$out/mixture.zarr" --config worlds --out "$out/nafnet"
python -m benchmarks.bundled.ship sam "$out/sam/sam.safetensors" --out "$out/sam/bundled.safetensors"
python -m benchmarks.bundled.ship nafnet "$out/nafnet" --out "$out/nafnet/bundled.safetensors"
python -m benchmarks.bundled.sam --weights "$out/sam/bundled.safetensors" --out "$out/sam/quality"
python -m benchmarks.bundled.nafnet --weights "$out/nafnet/bundled.safetensors" --out "$out/nafnet/quality.json"
