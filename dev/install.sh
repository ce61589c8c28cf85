#!/usr/bin/env bash
# Create or update .venv in the root of the project. Called by `make setup`. PYTHON is the interpreter (default: python3).
#
# If PYTHON cannot import Detectron2, all packages are installed in the tested versions. If it can, .venv uses that
# Detectron2 with its PyTorch, and only missing packages are installed, in compatible versions.
# No compiler or GPU is needed. Running the script again updates .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv
UNFINISHED="$VENV/.setup-unfinished" # exists while packages are being installed
HOST_LINK="famix_host_packages.pth"  # in .venv's site-packages; makes the packages of PYTHON importable
PYTHON="${PYTHON:-python3}"

# These settings would install packages outside .venv, or import packages from outside.
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
export PIP_USE_PEP517=1 # older versions of pip warn about packages without it

say() { printf '%s\n' "$*"; }
die() {
    printf 'make setup: %s\n' "$*" >&2
    exit 1
}
pip() { "$VENV/bin/python" -m pip "$@"; }
# Conflict warnings are disabled because Detectron2's wheel lists unneeded requirements (see dev/no-deps.txt). The last
# step imports all packages.
pip_install() { pip install --quiet --no-warn-conflicts "$@"; }
site_packages() { "$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# A concurrent setup waits here for the first one.
if command -v flock >/dev/null; then
    exec 9<dev/install.sh
    flock 9
fi

find_python() {
    command -v "$PYTHON" >/dev/null || die "'$PYTHON' was not found. Set PYTHON to Python 3.11 or newer: make setup PYTHON=..."
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "Python 3.11 or newer is required, but '$PYTHON' is $("$PYTHON" -V 2>&1). Use another one: make setup PYTHON=..."
    # If .venv is active, python3 is its own interpreter: use the one that created it.
    PYTHON="$("$PYTHON" - "$VENV" <<'EOF'
import os, sys
own = os.path.realpath(sys.prefix) == os.path.realpath(sys.argv[1])
print(sys._base_executable if own else sys.executable)
EOF
    )"
    if "$PYTHON" -P -c 'import detectron2' 2>/dev/null; then HOST=yes; else HOST=no; fi
}

# True if .venv can be updated. It is recreated after an interrupted setup (pip may mistake partial packages for
# complete ones), for another Python, and if the use of an existing Detectron2 has changed.
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
        say "[1/4] Creating $VENV with $PYTHON ($("$PYTHON" -V))"
        "$PYTHON" -m venv --clear "$VENV" || die "cannot create $VENV. On Debian and Ubuntu, run apt install python3-venv"
    fi
    touch "$UNFINISHED"
}

# --system-site-packages ignores packages if PYTHON is in a virtual environment. Unlike a plain path, addsitedir follows
# the links of editable packages.
link_host_packages() {
    "$PYTHON" -P - >"$(site_packages)/$HOST_LINK" <<'EOF'
import os, sys
for path in sys.path:
    if os.path.basename(path) in ("site-packages", "dist-packages"):
        print(f"import site; site.addsitedir({path!r})")
EOF
}

# Constraints that keep the versions the existing Detectron2 was built with.
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
        say "[2/4] Installing packages that $PYTHON lacks"
        rm -f "$(site_packages)/$HOST_LINK" # otherwise, pip would find the tools there, and .venv/bin would lack their commands
        pip_install --requirement dev/requirements.txt
        link_host_packages
        host_constraints >"$VENV/host-constraints.txt"
        pip_install --constraint "$VENV/host-constraints.txt" --editable ".[open_clip,queries]" ||
            die "no versions are compatible with $PYTHON's $(paste -sd ' ' "$VENV/host-constraints.txt"); see setup.cfg for the" \
                "requirements. Use another interpreter: make setup PYTHON=..."
    else
        say "[2/4] Installing PyTorch and the other requirements (downloads about 3 GB the first time)"
        pip_install --requirement requirements.txt
    fi
}

install_detectron2() {
    if [[ "$HOST" == yes ]]; then
        say "[3/4] Using $PYTHON's Detectron2"
        pip_install --no-deps --require-hashes --requirement <(grep -v '^sal-detectron2' dev/no-deps.txt)
    else
        say "[3/4] Installing Detectron2"
        # The wheel is tagged for Python 3.10 but runs on newer versions, because it has no compiled code, which only
        # rotated boxes and deformable convolutions need. pip accepts wheels for another Python only with --target.
        pip_install --no-deps --require-hashes --requirement dev/no-deps.txt --upgrade --target "$(site_packages)" \
            --only-binary=:all: --python-version 3.10 --implementation cp --abi none --platform any
    fi
}

install_famix() {
    say "[4/4] Installing famix"
    pip_install --no-deps --no-build-isolation --editable .
    "$VENV/bin/python" -P -W ignore - <<'EOF' || die "the installed packages do not work together (see above)"
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
say "Setup finished in $SECONDS s"
