#!/usr/bin/env bash
# One run of a Slurm job array, see slurm.sh: line SLURM_ARRAY_TASK_ID of the list $1, with the Python $2.
#
# Slurm's SIGTERM (scancel, preemption, the time limit) reaches the program as well as this shell, which only waits
# until the program has saved; what was preempted, Slurm queues again. So the program is a child of this shell: srun
# would pass the signal on again. SIGUSR1 reaches this shell alone, near the time limit: stop the run, queue it again.
# shellcheck disable=SC2086  # a command is words
set -euo pipefail

job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # SLURM_JOB_ID alone may mean the whole array
read -r name run < <(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")
log=${1%/*}/$name.log
pid='' again=''
trap : TERM
trap 'again=yes; kill "$pid"' USR1

printf '== %(%F %T)T, %s, job %s: python %s\n' -1 "$HOSTNAME" "$job" "$run" >>"$log"
"$2" $run </dev/null >>"$log" 2>&1 &
pid=$!
while kill -0 "$pid" 2>/dev/null; do wait "$pid" || :; done # a signal ends a wait as well
wait "$pid" && code=0 || code=$?
[ -z "$again" ] || [ $code -ne 143 ] || scontrol requeue "$job"
exit $code
