#!/usr/bin/env bash
# Makes .venv from requirements.lock, then runs the notebooks or the checks: see --help.
# Kept to what bash 3.2 (macOS) understands.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: ./run_all.sh [--setup | --test | OPTIONS]

Installs the pinned packages into .venv (first time only), then trains, measures,
runs every notebook and writes runs/ and figures/. What an earlier run finished is not
done again. Needs Python 3.10-3.13 on Linux, or on macOS 14 or newer with Apple silicon.

What to do:
  --setup            install only
  --test             install, then check style, format, the order of the package's
                     rooms and types, run the tests, the main job at smoke size with
                     all notebooks, then side by side nbval on those with outputs to
                     compare and, where there is a Chromium, the explorers in it;
                     exit 1 if any of them fails
  -h, --help         show this text

Options of the run:
  --profile NAME     smoke (does it run? 4 minutes), quick (the claims at small scale,
                     about 15 minutes on 2 cores), night (50,000 real images in one night
                     on 2 cores) or paper (the papers' settings, needs a GPU); default: quick
  --only LIST        only these notebooks, for example 01,05; default: all
  --only-rows LIST   train and measure these rows alone, for example grad,pgm, and
                     print their table; no notebooks
  --plan             print what is left to do and how long it takes; do nothing
  --dataset NAME     data set to use; default: digits (needs no download)
  --data DIR|ZIP     folder or zip file that holds the data set
  --device NAME      auto, cpu or cuda; default: auto
  --seed N           first seed; default: 0
  --seeds N          how many seeds; default: the profile's number
  --output DIR       where runs/ and figures/ go; default: this repository
  --retrain          make anew what other code than this made; without it such
                     results are used, and captions say so
  --publish          copy the executed notebooks back into notebooks/ and the
                     figures to figures/published/

Environment:
  PYTHON             the Python to build .venv with, if not the first suitable one

Examples:
  ./run_all.sh                                    all notebooks, quick profile
  ./run_all.sh --profile smoke --only 01,05       a fast look at two of them
  ./run_all.sh --dataset cifar10 --data ~/cifar10.zip --device cuda
  nice ./run_all.sh --profile night --dataset cifar10 --only-rows plain,pgm,grad
  ./run_all.sh --profile paper --dataset cifar10 --data ~/data --output ~/l2l-paper
  PYTHON=python3.12 ./run_all.sh --setup          choose the Python, install only
TEXT
}

fail() {
    echo "run_all.sh: $1" >&2
    exit "${2:-1}"
}

misuse() {
    fail "$1; ./run_all.sh --help lists the options" 2
}

# stage LABEL COMMAND...: one line with the seconds; the command's output only if it fails.
stage() {
    local label=$1 begun=$SECONDS output
    shift
    printf '%-46s' "$label"
    if output=$("$@" 2>&1); then
        printf '%5d s\n' $((SECONDS - begun))
    else
        printf 'failed\n%s\n' "$output"
        fail "set-up stopped; see the message above, check the network and the free disk space (10 GB for PyTorch with CUDA), and run ./run_all.sh again"
    fi
}

# locked 1 REGEX: the entries of requirements.lock that match; locked 0 REGEX: the others.
locked() {
    awk -v want="$1" -v regex="$2" '/^[^ #]/ { keep = ($0 ~ regex) == want } keep' requirements.lock
}

torch_pins='^(torch|torchvision)=='
torch_and_cuda='^(torch|torchvision|triton|nvidia-[^=]*|cuda-[^=]*)=='

cpu_only() {
    [ "$(uname -s)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1
}

# Fails if .venv has no working, supported Python. Moving the repository changes the
# fingerprint too, because .venv points back to the repository.
fingerprint() {
    .venv/bin/python - "$PWD" requirements.lock pyproject.toml <<'CODE' 2>/dev/null
import hashlib, sys
assert (3, 10) <= sys.version_info[:2] < (3, 14)
sha = hashlib.sha256(sys.argv[1].encode())
for name in sys.argv[2:]:
    sha.update(open(name, "rb").read())
print(sha.hexdigest()[:16])
CODE
}

# Sets $python.
find_python() {
    local version without_ensurepip=''
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.13 python3.12 python3.11 python3.10 python3
    fi
    for python; do
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        case $version in 3.10 | 3.11 | 3.12 | 3.13) ;; *) continue ;; esac
        if command -v uv >/dev/null || "$python" -c 'import ensurepip' 2>/dev/null; then
            return
        fi
        without_ensurepip=${without_ensurepip:-$version}
    done
    if [ -n "$without_ensurepip" ]; then
        fail "Python $without_ensurepip lacks ensurepip; on Debian or Ubuntu: apt install python$without_ensurepip-venv"
    elif [ -n "${PYTHON:-}" ]; then
        fail "PYTHON=$PYTHON is no Python 3.10-3.13; name another one or unset PYTHON"
    fi
    fail "no Python 3.10-3.13 found; install one (Debian or Ubuntu: apt install python3 python3-venv) or set PYTHON=/path/to/python"
}

new_venv() {
    rm -rf .venv
    mkdir .venv
    touch .venv/.l2lkit-unfinished
    "$python" -m venv --without-pip .venv
}

get_uv() {
    .venv/bin/python -m ensurepip
    locked 1 '^uv==' | .venv/bin/python -m pip install --require-hashes -r /dev/stdin
}

uv_install() {
    "$uv" pip install --quiet --python .venv/bin/python "$@"
}

has_cuda_wheels() {
    ls -d .venv/lib/python3.*/site-packages/nvidia >/dev/null 2>&1
}

# uv's own --torch-backend finds the wheels without CUDA.
cpu_torch() {
    locked 1 "$torch_pins" | sed -e '/^ /d' -e 's/\\$//' |
        uv_install --no-deps --torch-backend=cpu -r - "$@"
}

cpu_torch_reachable() {
    UV_HTTP_TIMEOUT=10 UV_HTTP_RETRIES=0 cpu_torch --dry-run >/dev/null 2>&1
}

without_torch() {
    locked 0 "$torch_and_cuda" | uv_install --require-hashes -r -
}

# A bare `jupyter lab` of .venv opens at the overview, wherever it is started.
lab_config() {
    mkdir -p .venv/etc/jupyter
    .venv/bin/python - >.venv/etc/jupyter/jupyter_lab_config.json <<'CODE'
import json, os
lab = {"default_url": "/lab/tree/notebooks/00_overview.ipynb"}
print(json.dumps({"LabApp": lab, "ServerApp": {"root_dir": os.getcwd()}}))
CODE
}

setup() {
    local key python uv cpu_wheels=''
    # Start afresh if a set-up was cut off, if a GPU has come to an environment without
    # CUDA, or if the Python in it does not work.
    if [ -e .venv/.l2lkit-unfinished ] || { [ -e .venv/.l2lkit-cpu ] && ! cpu_only; } ||
        ! key=$(fingerprint); then
        find_python
        stage "new .venv with $("$python" --version)" new_venv
        key=$(fingerprint) || fail "$python made a .venv that does not run; set PYTHON to another Python 3.10-3.13"
    fi
    [ ! -e ".venv/.l2lkit-$key" ] || return 0

    touch .venv/.l2lkit-unfinished
    if ! uv=$(command -v uv); then
        uv=.venv/bin/uv
        [ -x "$uv" ] || stage "uv, the installer" get_uv
    fi
    if cpu_only && ! has_cuda_wheels; then
        if cpu_torch_reachable; then
            cpu_wheels=yes
        else
            echo "no GPU here, but PyTorch's CPU wheels are out of reach: taking those with CUDA"
        fi
    fi
    if [ -n "$cpu_wheels" ]; then
        stage "PyTorch without CUDA" cpu_torch
        stage "the other packages" without_torch
    else
        stage "all packages (several GB on Linux)" uv_install --require-hashes -r requirements.lock
    fi
    stage "l2lkit itself" uv_install --no-deps --no-build-isolation --editable .
    lab_config
    rm -f .venv/.l2lkit-*
    [ -z "$cpu_wheels" ] || touch .venv/.l2lkit-cpu
    touch ".venv/.l2lkit-$key"
}

# check LABEL COMMAND...: runs a check and notes its outcome and seconds.
check() {
    local label=$1 begun=$SECONDS outcome=ok
    shift
    echo "== $label"
    "$@" || outcome=FAILED
    summary="$summary$(printf '%-24s %-6s %5d s' "$label" "$outcome" $((SECONDS - begun)))
"
    [ $outcome = ok ] || failed=yes
}

run_checks() {
    local summary='' failed='' python=.venv/bin/python
    check "style (ruff)" "$python" -m ruff check .
    check "format (ruff)" "$python" -m ruff format --check .
    check "rooms (import-linter)" .venv/bin/lint-imports --no-logo
    check "types (mypy)" "$python" -m mypy
    # Two processes, a file at a time to each in the order of tests/conftest.py; xdist's own has the
    # files with the fewest tests last, which are the slowest.
    local pytest="$python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder"
    check "tests" $pytest --ignore=tests/show/test_browser.py
    check "main job (smoke)" "$python" -m l2lkit run --profile smoke
    # The job has executed every notebook: nbval takes those that have outputs to compare.
    local compared
    compared=$(grep -l NBVAL_CHECK_OUTPUT notebooks/*.ipynb)
    check "notebooks, explorers" env L2LKIT_PROFILE=smoke $pytest -rs --nbval-lax \
        --nbval-current-env tests/show/test_browser.py $compared
    printf '\n%s' "$summary"
    [ -z "$failed" ]
}

# The folder of this file, wherever it is called from and through whatever links.
home() {
    local file=${BASH_SOURCE[0]} target
    while [ -L "$file" ]; do
        target=$(readlink "$file")
        case $target in
            /*) file=$target ;;
            *) file=$(dirname -- "$file")/$target ;;
        esac
    done
    dirname -- "$file"
}

main() {
    local task='' option value caller=$PWD
    local options=()
    while [ $# -gt 0 ]; do
        option=${1%%=*}
        case $1 in
            -h | --help)
                usage
                return
                ;;
            --setup | --test)
                [ -z "$task" ] || misuse "--setup and --test are given once, and not together"
                task=$1
                ;;
            --publish | --retrain | --plan)
                options+=("$1")
                ;;
            --profile | --only | --only-rows | --dataset | --data | --device | --seed | --seeds | --output | --*=*)
                if [ "$option" != "$1" ]; then
                    value=${1#*=}
                elif [ $# -gt 1 ]; then
                    value=$2
                    shift
                else
                    misuse "$option needs a value"
                fi
                case $option=$value in
                    --profile=smoke | --profile=quick | --profile=night | --profile=paper) ;;
                    --device=auto | --device=cpu | --device=cuda) ;;
                    --profile=*) misuse "--profile is smoke, quick, night or paper, not '$value'" ;;
                    --device=*) misuse "--device is auto, cpu or cuda, not '$value'" ;;
                    --data= | --output=) misuse "$option needs a value" ;;
                    --data=[/~]* | --output=[/~]*) ;; # ~ is the job's to expand
                    --data=* | --output=*) value=$caller/$value ;;
                    --only=* | --only-rows=* | --dataset=* | --seed=* | --seeds=*) ;;
                    *) misuse "unknown option $option" ;;
                esac
                options+=("$option" "$value")
                ;;
            *)
                misuse "unknown option $1"
                ;;
        esac
        shift
    done
    [ -z "$task" ] || [ ${#options[@]} -eq 0 ] || misuse "$task takes no other options"

    exec 3>&2 # a trap has the redirections of what it interrupts
    trap 'printf "\nrun_all.sh: interrupted; the same command goes on from here\n" >&3; exit 130' INT
    trap 'printf "\nrun_all.sh: terminated; the same command goes on from here\n" >&3; exit 143' TERM
    # What the user has set for other work must not reach in: where cd goes, other packages, and
    # that pip puts packages elsewhere.
    unset CDPATH PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT
    export PIP_USER=no PYTHONNOUSERSITE=1
    cd -P -- "$(home)"
    setup
    case $task in
        --setup) echo "ready: .venv/bin/python" ;;
        --test) run_checks ;;
        *) exec .venv/bin/python -m l2lkit run ${options[@]+"${options[@]}"} 3>&- ;;
    esac
}

# The tests source this file for its functions.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    main "$@"
fi
