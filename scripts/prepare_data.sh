#!/usr/bin/env bash
# Writes a TensorFlow Datasets data set to disk, in the form that `data.source=tfds:NAME` reads.
#
#   bash scripts/prepare_data.sh NAME [--data_dir=DIR]     for example: mnist --data_dir=data/tfds
#
# DIR is $TFDS_DATA_DIR, else ~/tensorflow_datasets, unless given; pass the same to the launcher as
# --config.data.dir=DIR. Needs the network, once. A data set that is there already is only checked.
#
# Preparing needs TensorFlow (the extra `prepare`); training never does. What goes wrong otherwise:
# - The format must be array_record. tfds.data_source reads nothing else without TensorFlow, and
#   parquet reports success and then loses examples (TFDS 4.9.10).
# - On Python 3.11 TFDS imports importlib_resources without declaring it: the extra brings it.
# - TFDS files downloads by file name, and MNIST and Fashion-MNIST use the same names: each data set
#   gets a download folder of its own, or one may be prepared from the other's files.
set -euo pipefail
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; }

name="" data_dir=${TFDS_DATA_DIR:-$HOME/tensorflow_datasets}
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit ;;
    --data_dir=?*) data_dir=${1#*=} ;;
    --data_dir)
      if [ -z "${2:-}" ]; then echo "prepare_data.sh: --data_dir needs a folder." >&2; exit 2; fi
      data_dir=$2
      shift
      ;;
    -*) echo "prepare_data.sh: unknown option $1; the only one is --data_dir=DIR." >&2; exit 2 ;;
    *)
      if [ -n "$name" ]; then echo "prepare_data.sh: one NAME at a time, not $name and $1." >&2; exit 2; fi
      name=${1#tfds:}
      ;;
  esac
  shift
done
if [ -z "$name" ]; then
  echo "prepare_data.sh: NAME is missing, for example: bash scripts/prepare_data.sh mnist" >&2
  exit 2
fi
case $data_dir in
  "~"/*) data_dir=$HOME/${data_dir#"~/"} ;;
  /*) ;;
  *) data_dir=$PWD/$data_dir ;;
esac
mkdir -p "$data_dir" 2>/dev/null || {
  echo "prepare_data.sh: $data_dir cannot be made; choose a writable folder with --data_dir=DIR." >&2
  exit 1
}

# shellcheck source=scripts/environment.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/environment.sh"

if ! "$environment_python" -I -c 'import importlib_resources, tensorflow' >/dev/null 2>&1; then
  say "installing the extra 'prepare' (TensorFlow, about 2 GB on disk)"
  # The lock holds the versions of everything that is there: TensorFlow must fit them, not move them.
  "$environment_python" -I -m pip --disable-pip-version-check --no-input freeze --exclude-editable \
    >"$environment/prepare.constraints"
  logged "$environment_python" -I -m pip --disable-pip-version-check --no-input install \
    --no-build-isolation --constraint "$environment/prepare.constraints" \
    --editable "${repository}[prepare]" || fail_install "installing the extra 'prepare'"
fi

say "preparing $name in $data_dir"
TF_CPP_MIN_LOG_LEVEL=2 "$environment_python" -I - "$name" "$data_dir" <<'PYTHON' ||
import os
import sys

import tensorflow_datasets as tfds

name, data_dir = sys.argv[1:]
builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
downloads = os.path.join(data_dir, "downloads", builder.info.full_name.replace("/", "-"))
builder.download_and_prepare(download_dir=downloads)
for split, source in builder.as_data_source().items():
    print(f"{split}: {len(source)} examples, features {', '.join(source[0])}")
PYTHON
  fail "$name was not prepared; the reason is above." \
    "No network or a moved download: TFDS names the address; put the file into" \
    "$data_dir/downloads by hand, as it says. A folder in another format: remove it, or name" \
    "another folder with --data_dir. An unknown name: tensorflow.org/datasets/catalog lists them."

say "ready; train on it with:"
say "  python -m experiments.run --config.data.source=tfds:$name --config.data.dir=$data_dir ..."
