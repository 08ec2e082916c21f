#!/usr/bin/env bash
# Trains on a Cloud TPU slice: queues for it, puts this repository on its hosts, and runs the
# command on all of them; they find each other by themselves (--distributed=on).
#
# UNTESTED ON HARDWARE: the commands are checked by a dry run alone.
#
#   bash scripts/tpu_pod.sh [--dry_run] --name=NAME --zone=ZONE --type=v5litepod-16 \
#       --version=v2-alpha-tpuv5-lite [--spot] -- --config=configs/mnist.py --workdir=/mnt/results
#
# What follows -- are flags of experiments.run. --workdir must be a disk that all hosts have mounted
# (Filestore, say): process 0 writes the results, all write checkpoints. After preemption the same
# command goes on. The slice stays until it is deleted; the command for that is printed at the end.
# Needs gcloud, with a project set. --dry_run prints the commands.
set -euo pipefail
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; }
fail() { echo "tpu_pod.sh: $*" >&2; exit 2; }

name="" zone="" type="" version="" spot=() dry_run=""
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit ;;
    --dry_run) dry_run=1 ;;
    --name=?*) name=${1#*=} ;;
    --zone=?*) zone=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --version=?*) version=${1#*=} ;;
    --spot) spot=(--spot) ;;
    --) shift; break ;;
    *) fail "unknown option $1; see --help. Flags of experiments.run come after --." ;;
  esac
  shift
done
for option in name zone type version; do
  [ -n "${!option}" ] || fail "--$option is missing; see --help."
done
[ $# -gt 0 ] || fail "flags of experiments.run are missing, after --; see --help."

run() {
  if [ -n "$dry_run" ]; then printf '%q ' "$@" && echo; else "$@"; fi
}
tpus() { run gcloud compute tpus "$@" --zone="$zone"; }
on_all() { tpus tpu-vm ssh "$name" --worker=all --command="$1"; }

cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
if [ -z "$dry_run" ]; then
  command -v gcloud >/dev/null || fail "gcloud was not found: install the Google Cloud CLI."
fi

# 1. The slice, unless it is there. describe says so, but its words are of no interest.
if [ -n "$dry_run" ] ||
  ! gcloud compute tpus queued-resources describe "$name" --zone="$zone" >/dev/null 2>&1; then
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$version" "${spot[@]}"
fi
until [ -n "$dry_run" ]; do
  state=$(gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
    --format='value(state.state)')
  case $state in
    ACTIVE) break ;;
    FAILED | SUSPENDED) fail "$name is $state: delete it (as below), and run this again." ;;
  esac
  echo "tpu_pod.sh: $name is $state" >&2
  sleep 30
done

# 2. This repository's last commit, on every host.
archive=$(mktemp -d)/vae-lab.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
run git archive --output="$archive" HEAD
tpus tpu-vm scp "$archive" "$name:vae-lab.tar.gz" --worker=all
on_all "mkdir -p vae-lab && tar -xzf vae-lab.tar.gz -C vae-lab && cd vae-lab &&
python3 -m venv .venv && .venv/bin/python -m pip install --quiet -e '.[tpu]'"

# 3. The same command on all.
on_all "cd vae-lab && .venv/bin/python -m experiments.run --distributed=on$(printf ' %q' "$@")"

echo "When done with the slice: gcloud compute tpus queued-resources delete $name --zone=$zone --force"
