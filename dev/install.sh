#!/usr/bin/env bash
# Makes .venv in the project's root. Called by `make setup`; PYTHON names the interpreter, python3 if unset.
#
# There are two cases:
#   - PYTHON cannot import Detectron2: everything is installed in the tested versions.
#   - PYTHON can: that Detectron2 and its PyTorch are seen from .venv and used as they are, and only what is missing is
#     installed, in any version that fits beside them.
# Needs no compiler and no GPU. Run again at any time: it brings .venv up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv
UNFINISHED="$VENV/.setup-unfinished" # there while packages are being installed
HOST_LINK="famix_host_packages.pth"  # in .venv's site-packages: makes PYTHON's packages importable
PYTHON="${PYTHON:-python3}"

# Settings that would send packages elsewhere than into .venv, or import others than those in it.
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '%s\n' "$*"; }
die() {
    printf 'make setup: %s\n' "$*" >&2
    exit 1
}
pip() { "$VENV/bin/python" -m pip "$@"; }
# Conflicts: the wheel of Detectron2 asks for more than it needs, see dev/no-deps.txt. The last step imports everything.
pip_install() { pip install --quiet --no-warn-conflicts "$@"; }
site_packages() { "$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# One set-up at a time: a second one waits here, then finds little left to do.
if command -v flock >/dev/null; then
    exec 9<dev/install.sh
    flock 9
fi

find_python() {
    command -v "$PYTHON" >/dev/null || die "'$PYTHON' was not found. Name a Python 3.11 or newer: make setup PYTHON=..."
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "Python 3.11 or newer is needed, but '$PYTHON' is $("$PYTHON" -V 2>&1). Name another: make setup PYTHON=..."
    # In a shell where .venv is active, python3 is .venv's own: go back to the interpreter that it was made from.
    PYTHON="$("$PYTHON" - "$VENV" <<'EOF'
import os, sys
own = os.path.realpath(sys.prefix) == os.path.realpath(sys.argv[1])
print(sys._base_executable if own else sys.executable)
EOF
    )"
    if "$PYTHON" -P -c 'import detectron2' 2>/dev/null; then HOST=yes; else HOST=no; fi
}

# True if .venv can be brought up to date. If not, it is made anew: after an interrupted set-up, whose half-written
# packages pip may take for whole ones; for another Python; on a change between the two cases.
venv_is_usable() {
    local version='import sys; print(sys.base_prefix, sys.version)' linked=no
    [[ ! -e "$UNFINISHED" ]] || return 1
    [[ "$("$VENV/bin/python" -c "$version" 2>/dev/null)" == "$("$PYTHON" -c "$version")" ]] || return 1
    pip --version >/dev/null 2>&1 || return 1
    [[ ! -e "$(site_packages)/$HOST_LINK" ]] || linked=yes
    [[ "$linked" == "$HOST" ]]
}

make_venv() {
    if venv_is_usable; then
        say "[1/4] Updating $VENV ($("$PYTHON" -V))"
    else
        say "[1/4] Making $VENV with $PYTHON ($("$PYTHON" -V))"
        "$PYTHON" -m venv --clear "$VENV" || die "could not make $VENV. On Debian and Ubuntu: apt install python3-venv"
    fi
    touch "$UNFINISHED"
}

# --system-site-packages would do for a plain PYTHON, but not for one in a virtual environment, whose packages it would
# pass over. addsitedir, other than a plain path, follows the links of packages that were installed as editable.
link_host_packages() {
    "$PYTHON" -P - >"$(site_packages)/$HOST_LINK" <<'EOF'
import os, sys
for path in sys.path:
    if os.path.basename(path) in ("site-packages", "dist-packages"):
        print(f"import site; site.addsitedir({path!r})")
EOF
}

# What the existing Detectron2 was built with, as constraints: pip must not put another version in front of it.
host_constraints() {
    "$PYTHON" -P - <<'EOF'
from importlib import metadata
for name in ("torch", "torchvision", "numpy"):
    try:
        print(f"{name}=={metadata.version(name)}")
    except metadata.PackageNotFoundError:
        pass
EOF
}

install_requirements() {
    if [[ "$HOST" == yes ]]; then
        say "[2/4] Installing what $PYTHON lacks"
        rm -f "$(site_packages)/$HOST_LINK" # else pip finds the tools there, and .venv/bin would lack their commands
        pip_install --requirement dev/requirements.txt
        link_host_packages
        host_constraints >"$VENV/host-constraints.txt"
        pip_install --constraint "$VENV/host-constraints.txt" --editable . ||
            die "nothing fits beside $PYTHON's $(paste -sd ' ' "$VENV/host-constraints.txt"); setup.cfg says what FAMix" \
                "needs. Name another interpreter: make setup PYTHON=..."
    else
        say "[2/4] Installing PyTorch and the other requirements (a download of about 3 GB the first time)"
        pip_install --requirement requirements.txt
    fi
}

install_detectron2() {
    if [[ "$HOST" == yes ]]; then
        say "[3/4] Using the Detectron2 of $PYTHON"
        pip_install --no-deps --require-hashes --requirement <(grep -v '^sal-detectron2' dev/no-deps.txt)
    else
        say "[3/4] Installing Detectron2"
        # The wheel is tagged for Python 3.10, but its Python files run on newer ones: it has no compiled part, without
        # which only rotated boxes and the first deformable convolutions are missing. pip takes a wheel for another
        # Python only together with --target.
        pip_install --no-deps --require-hashes --requirement dev/no-deps.txt --upgrade --target "$(site_packages)" \
            --only-binary=:all: --python-version 3.10 --implementation cp --abi none --platform any
    fi
}

install_famix() {
    say "[4/4] Installing famix"
    pip_install --no-deps --no-build-isolation --editable .
    "$VENV/bin/python" -P -W ignore - <<'EOF' || die "the installed packages do not work together, see above"
import clip, detectron2, panopticapi, torch, torchvision
print(f"      torch {torch.__version__}, torchvision {torchvision.__version__}, detectron2 {detectron2.__version__}")
EOF
}

find_python
make_venv
install_requirements
install_detectron2
install_famix
rm "$UNFINISHED"
say "Set-up finished in $SECONDS s"
