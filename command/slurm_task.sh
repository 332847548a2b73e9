#!/usr/bin/env bash
# One run of a Slurm job array, see slurm.sh: line SLURM_ARRAY_TASK_ID of the list $1, by the Python $2.
#
# Slurm's SIGTERM (scancel, preemption, the time limit) reaches the program as well as this shell, which only has to wait
# until the program has saved; what was preempted, Slurm queues again. That holds for a child of this shell; srun would
# pass the signal on a second time. SIGUSR1 reaches this shell alone: the end is
# near, by the time limit, and this run is to be stopped and queued again from here.
# shellcheck disable=SC2086  # a command is words
set -euo pipefail

source command/runs.sh
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # SLURM_JOB_ID alone may mean the whole array
run=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")
log=$LOGS/$(name_of "$run").log
pid='' again=''
trap : TERM
trap 'again=yes; kill "$pid"' USR1

begin_log "$log" "$run" ", job $job"
"$2" $run </dev/null >>"$log" 2>&1 &
pid=$!
while kill -0 "$pid" 2>/dev/null; do wait "$pid" || :; done # a signal ends a wait as well
wait "$pid" && code=0 || code=$?
[ -z "$again" ] || [ $code -ne 143 ] || scontrol requeue "$job"
exit $code
