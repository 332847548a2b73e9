#!/usr/bin/env bash
# Every published run: the six teachers, each student alone, then for each of the 12 pairs KD and UNIX.
#
#   bash command/command.sh --list                             prints the commands, runs nothing
#   bash command/command.sh                                    runs them, one after the other
#   GPUS="0 1 2 3" PER_GPU=2 bash command/command.sh           on these GPUs, two at a time on each
#   ONLY="wrn_40_2" SEEDS="0 1 2 3" bash command/command.sh    only pairs with this teacher or student, four seeds
#   ONLY="vgg13:vgg8 ResNet50:vgg8" bash command/command.sh    only these pairs
#
# A teacher is trained once, with seed 0 (a downloaded one in its folder is used), and before the students that need it;
# everything else once for each of SEEDS. GPUS takes what CUDA_VISIBLE_DEVICES takes, with spaces between; without it
# the programs choose the device, and PER_GPU is how many share it.
#
# Each run writes to a log of its own in experiments/logs/. A failed one does not stop the others (but its students are
# not started); all are named at the end. Ctrl-C or SIGTERM stops the runs, which save. A run that is finished is not
# repeated and an interrupted one is resumed, so the command may be given again. A run that another process is busy with,
# on this machine or another that sees the folder, counts as failed here and is left alone. On a cluster: slurm.sh.
# shellcheck disable=SC2046,SC2086  # lists of words are split on purpose
set -euo pipefail
cd "$(dirname "$0")/.."

PAIRS="vgg13:MobileNetV2 ResNet50:MobileNetV2 ResNet50:vgg8 resnet32x4:ShuffleV1 resnet32x4:ShuffleV2
wrn_40_2:ShuffleV1 wrn_40_2:wrn_16_2 wrn_40_2:wrn_40_1 resnet56:resnet20 resnet32x4:resnet8x4 vgg13:vgg8 vgg16:vgg8"
SEEDS=${SEEDS:-0} GPUS=${GPUS:-} PER_GPU=${PER_GPU:-1}

usage() { echo "error: $1; the head of command/command.sh tells what it takes" >&2; exit 2; }
[ $# -eq 0 ] || { [ $# -eq 1 ] && [ "$1" = --list ]; } || usage "unknown argument: $*"
for word in $SEEDS; do
  [[ $word =~ ^[0-9]+$ ]] || usage "SEEDS=$SEEDS must be whole numbers with spaces between"
done
for word in $GPUS; do
  [[ $word =~ ^([0-9]+|(GPU|MIG)-[0-9A-Za-z/-]+)$ ]] || usage "GPUS=$GPUS must be ids of GPUs with spaces between"
done
[[ $PER_GPU =~ ^[1-9][0-9]?$ ]] || usage "PER_GPU=$PER_GPU must be a whole number from 1 to 99"

distinct() { printf '%s\n' "$@" | awk '!seen[$0]++'; }

# The pairs that ONLY names, each word a teacher, a student or a pair.
selected=$PAIRS
if [ -n "${ONLY:-}" ]; then
  selected=
  for word in $ONLY; do
    matching=$(printf '%s\n' $PAIRS | grep -x -e "$word" -e "$word:.*" -e ".*:$word") || usage "ONLY=$word is in no pair"
    selected+=" $matching"
  done
fi
selected=$(distinct $selected)

rate() {
  case $1 in MobileNetV2 | Shuffle*) echo 0.01 ;; *) echo 0.05 ;; esac
}

downloaded() { [ -e "$1/ckpt/best.pth" ] && [ ! -e "$1/config.json" ]; }

commands() {
  local pair teacher student seed distil
  for teacher in $(distinct $(printf '%s\n' $selected | cut -d: -f1)); do
    downloaded "experiments/teacher_$teacher" || echo "teacher.py --arch $teacher --lr 0.05"
  done
  for seed in $(distinct $SEEDS); do
    for student in $(distinct $(printf '%s\n' $selected | cut -d: -f2)); do
      echo "teacher.py --arch $student --lr $(rate "$student") --seed $seed"
    done
    for pair in $selected; do
      teacher=${pair%:*} student=${pair#*:}
      distil="student_v0.py --teacher-path ./experiments/teacher_$teacher/ --student-arch $student"
      distil+=" --lr $(rate "$student") --seed $seed"
      echo "$distil --strategy 0 --k 64 --b 64 --w 1000"
      echo "$distil --strategy 3 --k 48 --b 32 --w 10"
    done
  done
}

if [ "${1:-}" = --list ]; then
  commands | sed 's/^/python /'
  exit
fi

# --------------------------------------------------------------------------------------------------------- running

source command/env.sh requirements.txt
source command/runs.sh
mapfile -t gpus < <(distinct $GPUS) # one, without a name, where GPUS is not set
if [ -n "$GPUS" ]; then # without this, a run would take the CPU where its GPU is missing
  visible=$(IFS=,; echo "${gpus[*]}")
  CUDA_VISIBLE_DEVICES=$visible "$PYTHON" -c 'import sys, torch; sys.exit(torch.cuda.device_count() < int(sys.argv[1]))' \
    ${#gpus[@]} || usage "GPUS=$GPUS: not all of these are here, or usable by torch"
fi
slots=()
for ((i = 0; i < PER_GPU; i++)); do slots+=("${gpus[@]}"); done
free=("${!slots[@]}")

read_list < <(commands)
names=()
for run in "${runs[@]}"; do names+=("$(name_of "$run")"); done
state=("${runs[@]/*/waiting}")   # of each run: waiting, running, finished, failed, skipped or stopped
declare -A run_of slot_of        # of each process
over=0 stopped=

say() { printf '%(%F %T)T [%d/%d] %s\n' -1 "$over" ${#runs[@]} "$1" 2>/dev/null || :; }

# A session of its own keeps a run out of reach of the terminal's Ctrl-C: stop() passes that on, and a second signal
# would make the run give up without saving.
start() {
  local run=$1 slot=$2 gpu=${slots[$2]} log=$LOGS/${names[$1]}.log
  begin_log "$log" "${runs[run]}" "${gpu:+, GPU $gpu}" || :
  env ${gpu:+"CUDA_VISIBLE_DEVICES=$gpu"} setsid "$PYTHON" ${runs[run]} </dev/null >>"$log" 2>&1 &
  run_of[$!]=$run slot_of[$!]=$slot state[run]=running
  [ -z "$stopped" ] || kill $!
  say "started ${names[run]}${gpu:+ on GPU $gpu}"
}

# The first run that waits for nothing, in `ready`; false where there is none.
next() {
  for ready in "${!runs[@]}"; do
    [ "${state[ready]}" = waiting ] || continue
    [ -z "${needs[ready]}" ] || [ "${state[needs[ready]]}" = finished ] || continue
    return 0
  done
  return 1
}

# Takes note of a run that has ended with this exit code.
note() {
  local run=$1 code=$2 log=$LOGS/${names[$1]}.log student
  if [ "$code" -eq 0 ]; then
    state[run]=finished over=$((over + 1))
    say "finished ${names[run]}$(grep -ao ': best .*' "$log" | tail -n 1)"
  elif [ -n "$stopped" ] && [ "$code" -gt 128 ]; then
    state[run]=stopped
  else
    state[run]=failed over=$((over + 1))
    say "failed ${names[run]}: $(tail -n 1 "$log")"
    for student in "${!runs[@]}"; do
      [ "${needs[student]}" != "$run" ] || { state[student]=skipped && over=$((over + 1)); }
    done
  fi
}

stop() {
  stopped=$1
  say "stopping: the runs save where they are; once more stops them at once"
  kill "${!run_of[@]}" 2>/dev/null || :
}
trap 'stop 130' INT
trap 'stop 143' TERM HUP
trap '' PIPE # whoever read this may be gone

mkdir -p "$LOGS"
while :; do
  alive=$(jobs -rp)
  for pid in "${!run_of[@]}"; do
    [[ $'\n'$alive$'\n' != *$'\n'$pid$'\n'* ]] || continue
    wait "$pid" && code=0 || code=$?
    note "${run_of[$pid]}" "$code"
    free+=("${slot_of[$pid]}")
    unset "run_of[$pid]" "slot_of[$pid]"
  done
  while [ -z "$stopped" ] && [ ${#free[@]} -gt 0 ] && next; do
    start "$ready" "${free[0]}"
    free=("${free[@]:1}")
  done
  [ ${#run_of[@]} -gt 0 ] || break
  wait -n || :
done

count() { printf '%s\n' "${state[@]}" | grep -cx "$1" || :; }

for run in "${!runs[@]}"; do
  case ${state[run]} in
    failed) echo "failed: $LOGS/${names[run]}.log: $(tail -n 1 "$LOGS/${names[run]}.log")" ;;
    skipped) echo "not started, as its teacher failed: ${names[run]}" ;;
  esac
done >&2
tally="$(count finished) of ${#runs[@]} runs are finished"
if [ -n "$stopped" ]; then
  echo "stopped: $tally; the same command goes on from there"
  exit "$stopped"
elif [ "$(count finished)" -lt ${#runs[@]} ]; then
  echo "error: $tally; the same command tries the others again" >&2
  exit 1
fi
echo "$tally: python report.py experiments"
