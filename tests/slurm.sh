#!/usr/bin/env bash
# A Slurm cluster of one node, this machine, for test_slurm.py: in a folder of its own, apart from any other Slurm here.
#
#   bash tests/slurm.sh start FOLDER     starts munged, slurmctld and slurmd
#   export SLURM_CONF=FOLDER/slurm.conf  for sbatch, squeue and the others
#   bash tests/slurm.sh stop FOLDER      ends them and their jobs
#
# Two tasks run at a time. What is submitted to the partition `high` preempts what runs in `low`, the default one.
# Exits with code 3 and one line where Slurm is not installed.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
folder=$2
cannot() { echo "$1" >&2; exit 3; }

start() {
  local node port
  mkdir -p "$folder"/{ctld,d}
  chmod 700 "$folder"
  for program in munged slurmctld slurmd sbatch; do
    command -v $program >/dev/null || cannot "there is no $program (on Debian: apt-get install slurm-wlm munge)"
  done
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
  cannot "Slurm has not come up"
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
