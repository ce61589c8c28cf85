#!/usr/bin/env bash
# Install the wheel in an empty environment, and run the town and a training in an empty folder. Part of `make check`.
#
# The versions are the tested ones of requirements.txt, but only what the wheel itself requires is installed. All files are
# written below build/package, which is replaced.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ROOT="$PWD"
FOLDER="$ROOT/build/package"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
export PIP_USE_PEP517=1 # older versions of pip warn about packages without it
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT

say() { printf '%s\n' "[package check, $SECONDS s] $*"; }
pip() { "$FOLDER/env/bin/python" -m pip --quiet "$@"; }
need() {
    for file in "$@"; do
        [[ -s "$file" ]] || { say "missing: $file" && exit 1; }
    done
}

if [[ -n "$(find .venv -name famix_host_packages.pth -print -quit)" ]]; then
    say "skipped: .venv uses an existing Detectron2, which an empty environment lacks"
    exit
fi

rm -rf "$FOLDER"
mkdir -p "$FOLDER/work"
say "building the wheel"
.venv/bin/python -m pip --quiet wheel --no-deps --no-build-isolation --wheel-dir "$FOLDER" .
rm -rf build/lib build/bdist.*

say "installing it in an empty environment"
"$(.venv/bin/python -c 'import sys; print(sys._base_executable)')" -m venv "$FOLDER/env"
grep -v '^-r' requirements.txt >"$FOLDER/constraints.txt"
pip install --constraint "$FOLDER/constraints.txt" "$(echo "$FOLDER"/famix-*.whl)"
site="$("$FOLDER/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
# See dev/install.sh. Without its list of requirements, Detectron2 lacks these two.
pip install --constraint "$FOLDER/constraints.txt" omegaconf hydra-core
pip install --no-deps --require-hashes --requirement dev/no-deps.txt --upgrade --target "$site" --only-binary=:all: \
    --python-version 3.10 --implementation cp --abi none --platform any

cd "$FOLDER/work"
export HOME="$FOLDER/home" PATH="$FOLDER/env/bin:$PATH" FAMIX_CACHE="$FOLDER/cache"
say "famix-town"
famix-town --quick 2
need output/demo/story.png output/demo/story.html output/demo/famix_default/results.md
say "famix-train"
famix-train --config-file famix://minitown/famix.yaml SOLVER.MAX_ITER 2 OUTPUT_DIR trained \
    MODEL.STYLE.BANK output/demo/famix/style_bank.safetensors DATASETS.TEST "['minitown_night_val']" >train.log 2>&1 ||
    { tail -n 20 train.log && exit 1; }
need trained/model_final.pth trained/results.json
say "famix-compare and famix-bank"
famix-compare trained output/demo/famix_default --output runs.md >compare.log
famix-bank select --config-file famix://minitown/famix.yaml --vocabulary famix://vocabularies/minitown.txt --count 3 >words.txt
need runs.md words.txt
python -c 'import famix; print(famix.__version__, famix.__file__, famix.Predictor.from_checkpoint("trained"))'
say "passed"
