#!/usr/bin/env bash
# The tests: makes the Python environment (once), then runs pytest; its exit status is this one's.
#
#   bash scripts/test.sh [options of pytest, such as -k NAME, -m slow, -x, tests/vae]
#
# Without options, or with -m MARKER alone: a process for each core (up to 8, of about 3 GiB each);
# on an accelerator (JAX_PLATFORMS=cuda), which one process takes for itself, one. What is marked
# `thorough` or `slow` is left out unless -m asks for it.
#
# Paths are relative to the repository. scripts/environment.sh says which Python is used.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; exit ;; esac
# shellcheck source=scripts/environment.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/environment.sh"

cd "$repository"
say "running the tests with $("$environment_python" --version)"
if { [ $# = 0 ] || [ "$#:$1" = 2:-m ]; } && [ "${JAX_PLATFORMS:-cpu}" = cpu ]; then
  # A file's tests stay together, as they share compiled programs. Files go in their own order: by
  # the number of tests, the few that take minutes would come last, all at once.
  set -- --numprocesses=logical --maxprocesses=8 --dist=loadfile --no-loadscope-reorder "$@"
fi
exec "$environment_python" -m pytest "$@"
