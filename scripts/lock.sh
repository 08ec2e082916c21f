#!/usr/bin/env bash
# Writes requirements.lock: every package of the base install and the tests, one version each for
# every Python and platform, with hashes. Run it after changing the dependencies in setup.cfg.
#
#   bash scripts/lock.sh [--upgrade] [other options of `uv pip compile`]
#
# Versions that still fit are kept, unless --upgrade is given. Needs uv and the network.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

if ! command -v uv >/dev/null; then
  echo "lock.sh: uv was not found on PATH; install it (python3 -m pip install uv)." >&2
  exit 1
fi

# The build tools of pyproject.toml are locked too, so that the package and the one dependency
# published as source only (promise) are built from the lock and from nothing else.
sed -n 's/^requires = \["\(.*\)"\]$/\1/p' pyproject.toml |
  uv pip compile setup.cfg - --extra test --output-file requirements.lock \
    --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links \
    --custom-compile-command "bash scripts/lock.sh" --quiet "$@"
echo "requirements.lock: $(grep -c '^[a-z].*==' requirements.lock) packages"
