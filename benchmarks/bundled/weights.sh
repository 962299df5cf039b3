#!/usr/bin/env bash
# Trains the bundled weights from nothing and measures them. Usage, from the root of the repository: weights.sh FOLDER. Run again, it goes on where it
# stopped. Copy FOLDER/sam/sam.safetensors and FOLDER/nafnet/best.safetensors to models/bundled/ to ship them.
set -euo pipefail
out=$1
samdeblur-prep run worlds:2400 "$out/worlds.zarr" --split train --segmenter true-masks
python -m samdeblur.cli.train_sam "$out/worlds.zarr" --out "$out/sam"
samdeblur-train "$out/worlds.zarr" --config worlds --out "$out/nafnet"
python -m benchmarks.bundled.sam --weights "$out/sam/sam.safetensors" --out "$out/sam/quality"
python -m benchmarks.bundled.nafnet --weights "$out/nafnet" --out "$out/nafnet/quality.json"
