#!/usr/bin/env bash
# Build the wheel, install it into an environment of its own, and walk the whole path with it.
# BIN is the bin folder of the environment that has the dependencies.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$BIN/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/dist" .
"$BIN/python" -m venv --without-pip "$work/env"
"$BIN/python" -m pip --python "$work/env/bin/python" install --quiet --no-deps "$work"/dist/*.whl
site=$("$work/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$BIN/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/dependencies.pth"

cd "$work" # away from the source tree
export PATH="$work/env/bin:$PATH"
python -c "
import samdeblur.storage as package
assert package.__file__.startswith('$site'), package.__file__
"
samdeblur-prep run worlds:3:128 store --split train --workers 1 # with both bundled models
samdeblur-train store --method map-dropout --config tiny --steps 2 --set batch_size=2 --out run
samdeblur-eval run run store --out results
test -s results/report.html
echo "wheel: sound"
