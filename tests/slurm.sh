#!/usr/bin/env bash
# A Slurm cluster of one node, this machine, for test_slurm.py: in a folder of its own, apart from any other Slurm here.
#
#   bash tests/slurm.sh start FOLDER     starts munged, slurmctld and slurmd; as root it installs them first (Debian)
#   export SLURM_CONF=FOLDER/slurm.conf  for sbatch, squeue and the others
#   bash tests/slurm.sh stop FOLDER      ends them and their jobs
#
# Two tasks run at a time. What is submitted to the partition `high` preempts what runs in `low`, the default one.
# Exits with code 3 and one line where Slurm is not installed and cannot be.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
folder=$2
POLICY=/usr/sbin/policy-rc.d
cannot() { echo "$1" >&2; exit 3; }

install() {
  [ "$(id -u)" = 0 ] || cannot "Slurm is not installed, and only root can install it"
  command -v apt-get >/dev/null || cannot "Slurm is not installed, and there is no apt-get"
  export DEBIAN_FRONTEND=noninteractive
  if [ ! -e $POLICY ]; then # else the packages would start services, which are no part of this cluster
    trap 'rm -f $POLICY' EXIT
    printf '#!/bin/sh\nexit 101\n' >$POLICY
    chmod 755 $POLICY
  fi
  for attempt in 1 2; do
    apt-get install -y -qq --no-install-recommends slurm-wlm munge >"$folder/apt.log" 2>&1 && return
    [ $attempt = 2 ] || apt-get update -qq >>"$folder/apt.log" 2>&1 || :
  done
  cannot "Slurm cannot be installed: $(tail -n 1 "$folder/apt.log")"
}

start() {
  local node port
  mkdir -p "$folder"/{ctld,d}
  chmod 700 "$folder"
  for program in munged slurmctld slurmd sbatch; do command -v $program >/dev/null || { install && break; }; done
  node=${HOSTNAME%%.*}
  port=$((20000 + RANDOM % 10000))
  head -c 1024 /dev/urandom >"$folder/key"
  chmod 400 "$folder/key"
  munged --force --key-file="$folder/key" --socket="$folder/munge" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/seed"
  cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
# cred_expire, 5 at least, is how many seconds a requeued job waits
AuthInfo=socket=$folder/munge,cred_expire=5
StateSaveLocation=$folder/ctld
SlurmdSpoolDir=$folder/d
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobRequeue=0
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 State=UP
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF State=UP
CONF
  export SLURM_CONF=$folder/slurm.conf
  slurmctld
  slurmd
  for _ in {1..100}; do
    [ "$(sinfo --noheader --partition low --format %T 2>/dev/null)" != idle ] || return 0
    sleep 0.2
  done
  tail -n 5 "$folder"/*.log >&2
  cannot "Slurm was installed but has not come up"
}

stop() {
  export SLURM_CONF=$folder/slurm.conf
  scancel --user "$(id -un)" 2>/dev/null || :
  for _ in {1..50}; do
    [ -n "$(squeue --noheader 2>/dev/null)" ] || break
    sleep 0.2
  done
  for program in slurmd slurmctld munged; do
    [ -e "$folder/$program.pid" ] || continue
    kill "$(cat "$folder/$program.pid")" 2>/dev/null || :
    for _ in {1..50}; do # they remove it as they end
      [ -e "$folder/$program.pid" ] || break
      sleep 0.1
    done
  done
}

case $1 in
  start | stop) "$1" ;;
  *) echo "error: start or stop, not $1" >&2; exit 2 ;;
esac
