#!/usr/bin/env bash
# The tests: makes the Python environment (once), then runs pytest; its exit status is this one's.
#
#   bash scripts/test.sh [options of pytest, such as -k NAME, -m slow, -x, tests/vae]
#
# Paths are relative to the repository. scripts/environment.sh says which Python is used.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; exit ;; esac
# shellcheck source=scripts/environment.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/environment.sh"

cd "$repository"
say "running the tests with $("$environment_python" --version)"
exec "$environment_python" -m pytest "$@"
