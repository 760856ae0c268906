#!/bin/sh
# Makes the environment that everything runs in; `make setup` is this. If it is there and fits, nothing is done.
#
#   VENV    where, .venv unless said
#   PYTHON  the interpreter, a name or a path; unless said, the first of those below that runs and fits
#   GPU     1: with TensorFlow's CUDA libraries
#
# The lock holds both stacks, chosen by the interpreter. uv installs it if it is on the PATH, else pip.
set -eu
cd "$(dirname "$0")"
VENV=${VENV:-.venv} PYTHON=${PYTHON:-} GPU=${GPU:-}

fail() {
  echo "error: $*" >&2
  exit 2
}

version_of() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# What an environment was made from: its lock, and its interpreter in case it is to be made again.
stamp=$VENV/.ready
made_from() {
  [ -e "$stamp" ] && [ "$(sed -n 1p "$stamp")" = "$(cksum < "$1")" ]
}

[ "$GPU" != 0 ] || GPU=
lock=requirements${GPU:+-gpu}.lock
if made_from "$lock" || { [ -z "$GPU" ] && made_from requirements-gpu.lock; }; then
  made_with=$(version_of "$VENV/bin/python" || true) # nothing if its interpreter is gone
  if [ "$made_with" ] && { [ -z "$PYTHON" ] || [ "$(version_of "$PYTHON")" = "$made_with" ]; }; then
    exit 0
  fi
fi

# --- Which Python ---
if [ -n "$PYTHON" ]; then
  set -- "$PYTHON"
else
  # What it was made with before; then those whose stack is tried most.
  before=$(sed -n 2p "$stamp" 2>/dev/null || true)
  set -- ${before:+"$before"} python3.11 python3.10 python3.13 python3.12 python3.9 python3 python
fi
python='' seen=''
for candidate; do
  version=$(version_of "$candidate") || continue
  case $version in 3.9 | 3.10 | 3.11 | 3.12 | 3.13) python=$candidate && break ;; esac
  seen="${seen:+$seen }$candidate is $version;"
done
[ -n "$python" ] || fail "pdm_tf needs Python 3.9 to 3.13 (no TensorFlow that fits has wheels for others);" \
  "${seen:-none of $* runs;} get one, for instance with 'uv python install 3.13' or 'pyenv install 3.13'," \
  "and run: make setup PYTHON=/path/to/python3.13"

# --- The environment ---
[ ! -e "$VENV" ] || [ -e "$stamp" ] || fail "VENV=$VENV is there, and not made by this: name another, or remove it"
uv=$(command -v uv || true)
[ -n "$uv" ] || "$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$python comes without venv: install it (Debian, Ubuntu: apt install python$version-venv), or uv, and try again"
echo "making $VENV with $python (Python $version) and ${uv:-pip}"
where=$("$python" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')
rm -rf "$VENV"
mkdir -p "$VENV"
printf 'unfinished\n%s\n' "$where" > "$stamp"
if [ -n "$uv" ]; then
  uv venv --quiet --allow-existing --python "$where" "$VENV" || fail "uv cannot make $VENV, as it says above"
  uv pip install --quiet --python "$VENV/bin/python" -r "$lock"
else
  "$where" -m venv "$VENV" || fail "$python cannot make $VENV, as it says above"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r "$lock"
fi || fail "$lock could not be installed, for the reason above: mend it (network? disk?) and try again"
printf '%s\n%s\n' "$(cksum < "$lock")" "$where" > "$stamp"
