#!/usr/bin/env bash
# The whole path on the embedded sample: prepare -> train the four methods of the paper's Table 1 -> evaluate -> report.
# Usage: demo.sh FOLDER. Run again, it goes on where it stopped.
set -euo pipefail
out=$1
start=$SECONDS
run() {
    printf '\n$ %s\n' "$*"
    "$@"
}
say() { printf '\n== %s\n' "$*"; }

say "1/3 The mask stores: the bundled NAFNet deblurs training images, the bundled Segment Anything model finds masks"
for split in train test test-ood; do # fewer points than the default, for time
    run samdeblur-prep run sample "$out/stores/$split.zarr" --split "$split" --points-per-side 16
done
run samdeblur-prep verify "$out/stores/train.zarr"
run samdeblur-prep view "$out/stores/train.zarr" "$out/masks.html" --overwrite

say "2/3 The four methods of Table 1"
methods=(none cat map map-dropout)
for method in "${methods[@]}"; do
    run samdeblur-train "$out/stores/train.zarr" --method "$method" --config tiny --out "$out/runs/$method"
    run samdeblur-eval run "$out/runs/$method" "$out/stores/test.zarr" "$out/stores/test-ood.zarr" \
        --with-step-0 --out "$out/results/$method"
done

say "3/3 The report"
run samdeblur-eval table "${methods[@]/#/$out/results/}" --curves "$out/runs/none" --curves "$out/runs/map-dropout" \
    --out "$out/comparison"
printf '\nDone in %s s. Open %s/comparison/report.html in a browser.\n' "$((SECONDS - start))" "$out"
