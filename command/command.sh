#!/usr/bin/env bash
# Every published run: the six teachers, each student alone, then for each of the 12 pairs KD and UNIX.
#
#   bash command/command.sh --list                             prints the commands, runs nothing
#   bash command/command.sh                                    runs them, one after the other
#   GPUS="0 1 2 3" PER_GPU=2 bash command/command.sh           on these GPUs, two at a time on each
#   ONLY="wrn_40_2" SEEDS="0 1 2 3" bash command/command.sh    only pairs with this teacher or student, four seeds
#   ONLY="vgg13:vgg8 ResNet50:vgg8" bash command/command.sh    only these pairs
#
# A teacher is trained once, with seed 0, before the students that need it (a downloaded one in its folder is used);
# everything else once for each of SEEDS. GPUS takes what CUDA_VISIBLE_DEVICES takes, separated by spaces; without it
# the programs choose the device, and PER_GPU is how many share it. They share it through NVIDIA's MPS where that
# starts, with a daemon of this command's own (or the one that CUDA_MPS_PIPE_DIRECTORY names).
#
# Each run has its log in experiments/logs/. A failed run does not stop the others, but its students are not started;
# all are named at the end. Ctrl-C or SIGTERM stops the runs, which save. Give the command again at any time: finished
# runs are not repeated, interrupted ones resume. A run that another process is busy with, on this machine or another
# that sees the folder, counts as failed here and is left alone. On a cluster: slurm.sh.
# shellcheck disable=SC2086  # a command is words
set -euo pipefail
cd "$(dirname "$0")/.."
source command/runs.sh

GPUS=${GPUS:-} PER_GPU=${PER_GPU:-1}
[[ $# = 0 || $* = --list ]] || usage "unknown argument: $*"
[[ "$GPUS " =~ ^[[:space:]]*(([0-9]+|(GPU|MIG)-[0-9A-Za-z/-]+)[[:space:]]+)*$ ]] ||
  usage "GPUS=$GPUS must be ids of GPUs with spaces between"
[[ $PER_GPU =~ ^[1-9][0-9]?$ ]] || usage "PER_GPU=$PER_GPU must be a whole number from 1 to 99"

if [ "${1:-}" = --list ]; then
  printf 'python %s\n' "${runs[@]}"
  exit
fi

source command/env.sh requirements.txt
mapfile -t gpus < <(distinct $GPUS) # one, without a name, where GPUS is not set
visible=$(IFS=, && echo "${gpus[*]}")

# gpus_compute [VARIABLE=VALUE...]: whether torch can use all of them. A run whose GPU is missing would take the CPU.
gpus_compute() {
  env ${visible:+"CUDA_VISIBLE_DEVICES=$visible"} "$@" "$PYTHON" -c 'import sys, torch
for i in range(int(sys.argv[1])): torch.ones(1, device=f"cuda:{i}").item()' ${#gpus[@]} 2>/dev/null
}
[ -z "$GPUS" ] || gpus_compute || usage "GPUS=$GPUS: not all of these are here, or usable by torch"

mps=() # the variables by which a run finds the MPS daemon
if [ "$PER_GPU" -gt 1 ] && [ -n "$GPUS${CUDA_VISIBLE_DEVICES-all}" ] && [ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ] &&
  command -v nvidia-cuda-mps-control >/dev/null; then
  folder=$(mktemp -d)
  mps=("CUDA_MPS_PIPE_DIRECTORY=$folder" "CUDA_MPS_LOG_DIRECTORY=$folder")
  quit_mps=(env "${mps[@]}" nvidia-cuda-mps-control)
  trap 'trap "" INT TERM HUP; "${quit_mps[@]}" <<<quit &>/dev/null || :; rm -rf "$folder"' EXIT
  # The daemon sees every GPU: if it saw only some, the runs would have to number them anew.
  if ! env -u CUDA_VISIBLE_DEVICES "${mps[@]}" nvidia-cuda-mps-control -d &>/dev/null ||
    ! gpus_compute "${mps[@]}"; then
    echo "MPS does not start here: runs that share a GPU take turns"
    mps=()
  fi
fi

slots=() # one for each run that there is room for at a time: its GPU
for ((i = 0; i < PER_GPU; i++)); do slots+=("${gpus[@]}"); done
pid_of=() run_of=()     # of each busy slot
waiting=("${!runs[@]}") # the runs that are still to be started, each at its own index
problems=()             # of each run that failed, or whose teacher did: a line
ended=0 finished=0 stopped=''

say() { printf '%(%F %T)T [%d/%d] %s\n' -1 "$ended" ${#runs[@]} "$1" 2>/dev/null || :; }

# From here to the end of the loop nothing runs in the foreground: a Ctrl-C would end it, and this script with it.

# stop CODE: passes a signal on to the runs.
stop() {
  stopped=$1
  say "stopping: the runs save where they are; once more stops them at once"
  kill "${pid_of[@]}" 2>/dev/null || :
}

# start RUN SLOT: in a session of its own, out of reach of the terminal's Ctrl-C, which would be a second signal.
start() {
  local run=$1 slot=$2 gpu=${slots[$2]} log=$LOGS/${names[$1]}.log
  unset "waiting[run]"
  printf '== %(%F %T)T, %s%s: python %s\n' -1 "$HOSTNAME" "${gpu:+, GPU $gpu}" "${runs[run]}" >>"$log" || :
  env "${mps[@]}" ${gpu:+"CUDA_VISIBLE_DEVICES=$gpu"} setsid "$PYTHON" ${runs[run]} </dev/null >>"$log" 2>&1 &
  pid_of[slot]=$! run_of[slot]=$run
  [ -z "$stopped" ] || kill $! 2>/dev/null || : # the signal came before this run; twice at once is as once to a run
  say "started ${names[run]}${gpu:+ on GPU $gpu}"
}

# read_last LOG REGEX: sets `line` to the match in the last line that has one.
read_last() {
  local each
  line=
  while read -r each || [ -n "$each" ]; do [[ ! $each =~ $2 ]] || line=${BASH_REMATCH[0]}; done <"$1" || :
}

# end RUN CODE: what follows from its exit code.
end() {
  local run=$1 code=$2 log=$LOGS/${names[$1]}.log student
  [ -z "$stopped" ] || [ "$code" -le 128 ] || return 0
  ended=$((ended + 1))
  if [ "$code" -eq 0 ]; then
    finished=$((finished + 1))
    read_last "$log" ': best .*'
    say "finished ${names[run]}$line"
  else
    read_last "$log" '.+'
    problems[run]="failed: $log: $line"
    say "${problems[run]}"
  fi
  for student in "${!waiting[@]}"; do
    [ "${needs[student]}" = "$run" ] || continue
    needs[student]=
    [ "$code" -ne 0 ] || continue
    unset "waiting[student]"
    ended=$((ended + 1)) problems[student]="not started, as its teacher failed: ${names[student]}"
  done
}

mkdir -p "$LOGS"
trap 'stop 130' INT
trap 'stop 143' TERM HUP
trap '' PIPE # whoever reads the output may go
while :; do
  for slot in "${!pid_of[@]}"; do
    kill -0 "${pid_of[slot]}" 2>/dev/null && continue
    wait "${pid_of[slot]}" && code=0 || code=$?
    unset "pid_of[slot]"
    end "${run_of[slot]}" "$code"
  done
  for slot in "${!slots[@]}"; do
    [ -z "$stopped" ] || break
    [ -z "${pid_of[slot]:-}" ] || continue
    for run in "${!waiting[@]}"; do
      [ -n "${needs[run]}" ] || { start "$run" "$slot" && break; }
    done
  done
  [ ${#pid_of[@]} -gt 0 ] || break
  wait -n || :
done

[ ${#problems[@]} -eq 0 ] || printf '%s\n' "${problems[@]}" >&2
tally="$finished of ${#runs[@]} runs are finished"
if [ -n "$stopped" ]; then
  echo "stopped: $tally; the same command goes on from there"
  exit "$stopped"
elif [ "$finished" -lt ${#runs[@]} ]; then
  echo "error: $tally; the same command tries the others again" >&2
  exit 1
fi
echo "$tally: python report.py experiments"
