# shellcheck shell=bash
# Sourced by the commands beside it: makes the project's Python environment where it is missing or
# out of date, and returns at once where it is not.
#
# Reads   PYTHON        the interpreter to build with. Default: python3 if it is 3.11 or newer (what
#                       an active conda, pyenv or module environment offers), else the newest
#                       python3.N found on PATH.
#         VAE_LAB_VENV  the environment's folder. Default: .venv in the repository.
# Sets    repository, environment, environment_python
#
# The folder's file .vae-lab says what it holds: the fingerprint of the files it was made from and
# the Python version; "incomplete" from the first write to the last, so that an interrupted install
# is never taken for a finished one; no such file, and the folder is somebody else's.

repository=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
environment=${VAE_LAB_VENV:-$repository/.venv}
case $environment in /*) ;; *) environment=$PWD/$environment ;; esac
environment_python=$environment/bin/python
environment_log=$environment/install.log

# Another project's modules on PYTHONPATH would count as installed, and shadow the locked ones.
unset PYTHONPATH PYTHONHOME

say() { printf 'vae-lab: %s\n' "$1" >&2; }

fail() {
  printf 'vae-lab: error: %s\n' "$1" >&2
  shift
  if [ $# -gt 0 ]; then printf '  %s\n' "$@" >&2; fi
  exit 1
}

# python_version PYTHON: its "3.12"; fails where it does not run (a pyenv shim without a version).
python_version() {
  "$1" -E -c 'import sys; sys.stdout.write("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null
}

can_make_environments() { "$1" -I -c 'import ensurepip, venv' 2>/dev/null </dev/null; }

is_supported() { case $1 in 3.1[1-9] | 3.[2-9][0-9]) ;; *) return 1 ;; esac; }

# find_python: sets found_python and found_version, or fails naming what it saw.
find_python() {
  local candidate version seen="" without_venv=""
  if [ -n "${PYTHON:-}" ]; then
    found_python=$PYTHON
    found_version=$(python_version "$PYTHON") ||
      fail "PYTHON=$PYTHON does not run." "Set PYTHON to a Python 3.11 or newer, or unset it."
    is_supported "$found_version" ||
      fail "PYTHON=$PYTHON is Python $found_version; vae-lab needs 3.11 or newer." \
        "Set PYTHON to a newer one, or unset it."
    can_make_environments "$PYTHON" || fail_without_venv "$PYTHON" "$found_version"
    return
  fi
  # 3.14 comes last because the tests have not run there.
  for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do
    version=$(python_version "$candidate") || continue
    seen="$seen, $candidate ($version)"
    is_supported "$version" || continue
    if can_make_environments "$candidate"; then
      found_python=$candidate
      found_version=$version
      return
    fi
    without_venv=${without_venv:-$candidate $version}
  done
  if [ -n "$without_venv" ]; then
    fail_without_venv "${without_venv% *}" "${without_venv##* }"
  fi
  seen=${seen#, }
  fail "no Python 3.11 or newer was found on PATH; found: ${seen:-no Python at all}." \
    "Install one (Debian 12 or newer, Ubuntu 24.04: apt install python3-venv; macOS: brew install" \
    "python@3.12; anywhere: uv python install 3.12, or conda create -n vae-lab python=3.12), then" \
    "run this again, or name it: PYTHON=/path/to/python3.12 bash scripts/..."
}

fail_without_venv() {
  fail "$1 (Python $2) has no venv module, or no ensurepip, so it cannot make an environment." \
    "Debian and Ubuntu ship it apart: apt install python3-venv (or python$2-venv)." \
    "Or name another Python: PYTHON=/path/to/python3.12 bash scripts/..."
}

# fingerprint: of everything the environment is made from; the repository's place is a part because
# the editable install points there.
fingerprint() {
  printf '%s\n' "$repository" |
    cat - "$repository/requirements.lock" "$repository/setup.cfg" "$repository/pyproject.toml" |
    cksum | tr ' ' '-'
}

# is_ready: the environment was finished from the present files, with the Python that is asked for.
is_ready() {
  local state
  state=$(cat "$environment/.vae-lab" 2>/dev/null) || return 1
  [ "${state% *}" = "$(fingerprint)" ] && [ -x "$environment_python" ] && is_asked_version "$state"
}

# is_asked_version STATE: PYTHON is not set, or is of the version that STATE ends in.
is_asked_version() {
  [ -z "${PYTHON:-}" ] || [ "${1##* }" = "$(python_version "$PYTHON")" ]
}

# logged COMMAND...: runs it with its output in the log; a terminal shows what it is at.
logged() {
  if [ -t 2 ]; then
    PYTHONUNBUFFERED=1 "$@" </dev/null 2>&1 | tee -a "$environment_log" |
      while IFS= read -r line; do
        case $line in
          *Collecting* | *Downloading* | *Building* | *Installing* | *Prepared*)
            printf '\r\033[K  %.76s' "$line" >&2
            ;;
        esac
      done
    local status=${PIPESTATUS[0]}
    printf '\r\033[K' >&2
    return "$status"
  fi
  "$@" </dev/null >>"$environment_log" 2>&1
}

log_has() { grep -qiE "$1" "$environment_log" 2>/dev/null; }

network_errors='name resolution|name or service not known|nodename nor servname|unreachable'
network_errors+='|dns error|connection (refused|reset|error|broken)|connectionerror|timed? ?out'
network_errors+='|proxyerror|error sending request|tunnel error|sslerror|certificate'

# fail_install WHAT: shows the log's end, and says why as far as the log or the disk tells.
fail_install() {
  if [ -s "$environment_log" ]; then
    say "the end of $environment_log:"
    tail -n 12 "$environment_log" | cut -c 1-300 | sed 's/^/  | /' >&2
  fi
  if log_has 'no space left|disk quota|errno 28' ||
    ! printf '%65536s' '' 2>/dev/null >"$environment/.space"; then
    fail "$1 failed: the disk is full." \
      "$environment needs 2 GB, and TMPDIR (or /tmp) 1 GB in passing."
  fi
  rm -f "$environment/.space"
  if log_has 'do not match the hashes|hash mismatch'; then
    fail "$1 failed: a download is not the file that requirements.lock names (its hash differs)." \
      "Try again; if it stays so, do not trust the package index."
  elif log_has "$network_errors"; then
    fail "$1 failed: the package index was not reached; it is needed this once." \
      "Check the network, a proxy (HTTPS_PROXY), and the index that pip is set to use" \
      "(python3 -m pip config list), then run this again."
  fi
  fail "$1 failed; the lines above say why."
}

# make_venv: an empty virtual environment, in place of whatever an earlier attempt left.
make_venv() {
  find_python
  say "making $environment with $found_python (Python $found_version)"
  find "$environment" -mindepth 1 -maxdepth 1 ! -name .vae-lab -exec rm -rf {} +
  logged "$found_python" -I -m venv "$environment" || fail_install "making the environment"
}

# install_with INSTALLER...: the lock, every file of it checked against its hash. The build tools
# come first: one package is published as source only, and is built with these, not with whatever
# the index has today.
install_with() {
  local lock=$repository/requirements.lock
  sed -n '/^setuptools==/,/[^\\]$/p' "$lock" >"$environment/build-tools.lock"
  logged "$@" --require-hashes -r "$environment/build-tools.lock" &&
    logged "$@" --require-hashes --no-build-isolation -r "$lock"
}

install_lock() {
  # uv is several times faster, but does not read pip's configuration; where that names the index
  # to use, pip does it.
  if command -v uv >/dev/null; then
    if install_with uv pip install --python "$environment_python" --compile-bytecode; then
      return
    fi
    say "uv did not manage; trying pip"
  fi
  : >"$environment_log"
  install_with "$environment_python" -I -m pip --disable-pip-version-check --no-input install \
    --no-user --use-pep517 || fail_install "installing requirements.lock"
}

install_package() {
  logged "$environment_python" -I -m pip --disable-pip-version-check --no-input install \
    --no-user --no-index --no-deps --no-build-isolation --editable "$repository" ||
    fail_install "installing vae-lab"
}

make_environment() {
  local version started=$SECONDS state
  if [ -n "$(ls -A "$environment" 2>/dev/null)" ] && [ ! -e "$environment/.vae-lab" ]; then
    fail "$environment exists, and was not made by these scripts: it is left alone." \
      "Remove it, or name another folder: VAE_LAB_VENV=DIR bash scripts/..."
  fi
  state=$(cat "$environment/.vae-lab" 2>/dev/null) || state=incomplete
  { mkdir -p "$environment" && echo incomplete >"$environment/.vae-lab"; } 2>/dev/null ||
    fail "$environment cannot be written." \
      "Check its permissions and the disk's free space, or name another folder with VAE_LAB_VENV."

  # A finished environment of the right Python is brought up to date where it is: what its owner
  # added, such as a GPU's packages, stays.
  version=$(python_version "$environment_python") || version=none
  if [ "$state" = incomplete ] || [ "$version" != "${state##* }" ] ||
    ! is_asked_version "$state"; then
    make_venv
    version=$found_version
  fi
  : >"$environment_log" || fail_install "writing the log"
  say "installing requirements.lock: about 400 MB the first time, a minute or two"
  install_lock
  install_package
  printf '%s %s\n' "$(fingerprint)" "$version" >"$environment/.vae-lab.new"
  mv "$environment/.vae-lab.new" "$environment/.vae-lab"
  say "environment ready in $((SECONDS - started)) s"
}

if ! is_ready; then
  # Two commands started together: the second waits for the first. (Without flock, as on macOS and
  # some network disks, they must be started one after the other.)
  exec 9<"$repository/requirements.lock"
  if command -v flock >/dev/null && ! flock -n 9; then
    say "waiting for another command that is making the environment"
    flock 9 || true
  fi
  trap 'say "interrupted; the same command starts the installation afresh"; exit 130' INT TERM
  if ! is_ready; then make_environment; fi
  trap - INT TERM
  exec 9<&-
fi
