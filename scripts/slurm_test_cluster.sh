#!/usr/bin/env bash
# A Slurm of two nodes, n1 and n2, inside this one machine, for the tests: munged, slurmctld, two
# slurmd on the loopback interface. Their files, logs and sockets lie in one folder.
#
#   bash scripts/slurm_test_cluster.sh start|stop|status [FOLDER]     default: /tmp/vae-lab-slurm
#
# Then `export SLURM_CONF=FOLDER/slurm.conf` and use sbatch, squeue and the rest as on any cluster.
# Needs root (munged's key, /etc/hosts) and Debian's slurm-wlm and munge. One at a time: the ports
# 17000 to 17002 are its own. Nothing of a Slurm that is installed otherwise is touched.
set -euo pipefail
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; }
say() { echo "slurm_test_cluster.sh: $*" >&2; }

case ${1:-} in
  -h | --help) usage; exit ;;
  start | stop | status) ;;
  *) usage >&2; exit 2 ;;
esac
folder=${2:-/tmp/vae-lab-slurm}
case $folder in /*) ;; *) folder=$PWD/$folder ;; esac
host=$(hostname -s)
mark="# vae-lab: slurm_test_cluster.sh"
export SLURM_CONF=$folder/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

# alive NAME: the process of that name that this folder's cluster started still runs. (By the name
# too: a number may have been given to another process since.)
alive() {
  local pid
  pid=$(cat "$folder/$1.pid" 2>/dev/null) && [ -n "$pid" ] &&
    grep -qs "$folder" "/proc/$pid/cmdline" 2>/dev/null
}

# ours: all processes of this folder's cluster, by the setting that each inherited. Slurm's alone:
# a user's shell may have the setting too.
ours() {
  local environ pid name
  # shellcheck disable=SC2013  # there are no spaces in /proc
  for environ in $(grep -lsxz "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ); do
    pid=${environ#/proc/} pid=${pid%/environ}
    name=$(cat "/proc/$pid/comm" 2>/dev/null) || continue
    case $name in slurm* | munged) echo "$pid" ;; esac
  done
}

stop() {
  local left
  for _ in $(seq 30); do
    left=$(ours)
    [ -n "$left" ] || break
    # shellcheck disable=SC2086  # several numbers
    kill $left 2>/dev/null || true
    sleep 0.1
  done
  # shellcheck disable=SC2086
  [ -z "$left" ] || kill -9 $left 2>/dev/null || true
  # Not sed -i: in a container /etc/hosts is a mount, and cannot be replaced by another file.
  if grep -qs "$mark" /etc/hosts; then
    local hosts
    hosts=$(grep -v "$mark" /etc/hosts)
    printf '%s\n' "$hosts" >/etc/hosts
  fi
}

# await SECONDS COMMAND...: until the command succeeds.
await() {
  local left=$(($1 * 5))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $((left -= 1)) -gt 0 ] || return 1
    sleep 0.2
  done
}

both_idle() { [ "$(sinfo --noheader --Node --format=%T | grep -c '^idle$')" = 2 ]; }

fail() {
  say "$*"
  for log in "$folder"/*.log; do
    [ ! -e "$log" ] || { echo "--- $log" && tail -n 8 "$log"; } >&2
  done
  stop
  exit 1
}

start() {
  local missing=""
  for program in munged slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || missing="$missing $program"
  done
  if [ -n "$missing" ]; then
    say "not found:$missing. Install them: apt-get install slurm-wlm munge"
    exit 1
  fi
  if [ "$(id -u)" != 0 ]; then
    say "needs root: munged's key and the names n1 and n2 in /etc/hosts."
    exit 1
  fi
  if alive slurmctld; then
    say "runs already in $folder; stop it first."
    exit 1
  fi
  rm -rf "$folder"
  umask 022
  mkdir -p "$folder/state" "$folder/munge" "$folder/not_on_n2"

  # jax.distributed finds its coordinator by the name of the first node.
  for node in n1 n2; do
    getent hosts "$node" >/dev/null || echo "127.0.0.1 $node $mark" >>/etc/hosts
  done

  head -c 1024 /dev/urandom >"$folder/munge/key"
  chmod 400 "$folder/munge/key"
  munged --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
    --seed-file="$folder/munge/seed" 2>>"$folder/munged.log" || fail "munged did not start."

  # config_overrides: the nodes may have more cores than the machine. cred_expire is how long a requeued job must wait (by default two minutes). MaxArraySize is
  # small so that a test can pass it. Memory is not managed: the "nodes" share this machine's.
  cat >"$SLURM_CONF" <<CONFIG
ClusterName=vae-lab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=17000
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdSpoolDir=$folder/spool.%n
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmdLogFile=$folder/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=10000
KillWait=10
InactiveLimit=0
ReturnToService=2
MaxArraySize=9
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
CONFIG
  slurmctld -f "$SLURM_CONF" 2>>"$folder/slurmctld.log" || fail "slurmctld did not start."
  slurmd -f "$SLURM_CONF" -N n1 2>>"$folder/slurmd.n1.log" || fail "slurmd of n1 did not start."
  # n2 has another, empty disk at FOLDER/not_on_n2, where the system lets root arrange that.
  # shellcheck disable=SC2016  # the variables are of the inner shell
  unshare --mount sh -c 'mount -t tmpfs none "$1" && exec slurmd -f "$2" -N n2' \
    sh "$folder/not_on_n2" "$SLURM_CONF" 2>>"$folder/slurmd.n2.log" ||
    slurmd -f "$SLURM_CONF" -N n2 2>>"$folder/slurmd.n2.log" || fail "slurmd of n2 did not start."
  await 30 both_idle || fail "the two nodes did not come up."
  say "two nodes are up; export SLURM_CONF=$SLURM_CONF"
}

case $1 in
  start) start ;;
  stop) stop && say "stopped" ;;
  status)
    for name in munged slurmctld slurmd.n1 slurmd.n2; do
      if alive "$name"; then echo "$name runs"; else echo "$name does not run"; fi
    done
    alive slurmctld || exit 1
    sinfo
    squeue
    ;;
esac
