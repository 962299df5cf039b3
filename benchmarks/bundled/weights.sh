#!/usr/bin/env bash
# Trains the bundled weights from nothing and measures them. Usage, from the root of the repository: weights.sh FOLDER.
# Run again, it goes on where it stopped. `python -m benchmarks.bundled.ship` without --out puts them into models/bundled.
# weights.sh FOLDER 100 takes a hundredth of everything: minutes, to see that all of it runs.
set -euo pipefail
out=$1 part=${2:-1}
few() { echo $((($1 + part - 1) / part)); }
# Steps allocate and free large tensors; where the C library gives memory back each time, that can cost more than arithmetic.
export MALLOC_MMAP_THRESHOLD_=17179869184 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
samdeblur-prep run worlds:$(few 2400) "$out/worlds.zarr" --split train --segmenter true-masks
samdeblur-prep run worlds-wide:$(few 1200) "$out/wide.zarr" --split train --segmenter true-masks
python -m samdeblur.cli.train_sam "$out/worlds.zarr" "$out/wide.zarr" --steps "$(few 28300)" --out "$out/sam"
[ -e "$out/mixture.zarr" ] && [ ! -e "$out/mixture.zarr.run" ] ||
    python -m benchmarks.bundled.mixture "$out/mixture.zarr" "$out/worlds.zarr" "$out/wide.zarr" sample-wide --most "$(few 1200)"
samdeblur-train "$out/mixture.zarr" --config worlds --steps "$(few 8000)" --out "$out/nafnet"
python -m benchmarks.bundled.ship sam "$out/sam/sam.safetensors" --scenes "$(few 10)" --out "$out/sam/bundled.safetensors"
python -m benchmarks.bundled.ship nafnet "$out/nafnet" --out "$out/nafnet/bundled.safetensors"
python -m benchmarks.bundled.sam --weights "$out/sam/bundled.safetensors" --scenes "$(few 16)" --out "$out/sam/quality"
python -m benchmarks.bundled.nafnet --weights "$out/nafnet/bundled.safetensors" --out "$out/nafnet/quality.json"
