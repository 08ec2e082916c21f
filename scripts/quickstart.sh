#!/usr/bin/env bash
# From nothing to a report: makes the Python environment (once), trains the quickstart ablation
# (beta x latent dim x depth x seed on real 8x8 digits), prints its table and the report's path.
#
#   bash scripts/quickstart.sh [options of experiments.run, such as --dry_run or --workdir=DIR]
#
# Results go to results/quickstart in the repository. Running it again finishes what is missing, and
# returns at once where nothing is. scripts/environment.sh says which Python is used.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; exit ;; esac
# shellcheck source=scripts/environment.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/environment.sh"

say "training the quickstart ablation; the table and the report follow"
# Not from the repository's folder but from the caller's, so that a relative path among the options
# means what it says there; -P because that folder may hold a "configs" or "experiments" of its own.
if [ "$PWD" -ef "$repository" ]; then here=""; else here=$repository/; fi
exec "$environment_python" -P -m experiments.run \
  --config="${here}configs/quickstart.py" --workdir="${here}results/quickstart" "$@"
