#!/usr/bin/env bash
# Every published run: the six teachers, each student alone, then for each of the 12 pairs KD and UNIX.
#
#   bash command/command.sh --list                             prints the commands, runs nothing
#   bash command/command.sh                                    runs them, one after the other
#   ONLY="wrn_40_2" SEEDS="0 1 2 3" bash command/command.sh    only pairs with this teacher or student, four seeds
#   ONLY="vgg13:vgg8 ResNet50:vgg8" bash command/command.sh    only these pairs
#
# A teacher is trained once, with seed 0 (a downloaded one in its folder is used); everything else once for each of SEEDS. A run that is finished is not repeated
# and an interrupted one is resumed, so the command may be given again.
set -euo pipefail
cd "$(dirname "$0")/.."

PAIRS="vgg13:MobileNetV2 ResNet50:MobileNetV2 ResNet50:vgg8 resnet32x4:ShuffleV1 resnet32x4:ShuffleV2
wrn_40_2:ShuffleV1 wrn_40_2:wrn_16_2 wrn_40_2:wrn_40_1 resnet56:resnet20 resnet32x4:resnet8x4 vgg13:vgg8 vgg16:vgg8"
SEEDS=${SEEDS:-0}

usage() { echo "error: $1; the head of command/command.sh tells what it takes" >&2; exit 2; }
[ $# -eq 0 ] || { [ $# -eq 1 ] && [ "$1" = --list ]; } || usage "unknown argument: $*"

# The pairs that ONLY names, each word a teacher, a student or a pair.
selected=$PAIRS
if [ -n "${ONLY:-}" ]; then
  selected=
  for word in $ONLY; do
    matching=$(printf '%s\n' $PAIRS | grep -x -e "$word" -e "$word:.*" -e ".*:$word") || usage "ONLY=$word is in no pair"
    selected+=" $matching"
  done
fi
selected=$(printf '%s\n' $selected | awk '!seen[$0]++')

rate() {
  case $1 in MobileNetV2 | Shuffle*) echo 0.01 ;; *) echo 0.05 ;; esac
}

downloaded() { [ -e "$1/ckpt/best.pth" ] && [ ! -e "$1/config.json" ]; }

commands() {
  local pair teacher student seed distil
  for teacher in $(printf '%s\n' $selected | cut -d: -f1 | awk '!seen[$0]++'); do
    downloaded "experiments/teacher_$teacher" || echo "teacher.py --arch $teacher --lr 0.05"
  done
  for seed in $SEEDS; do
    for student in $(printf '%s\n' $selected | cut -d: -f2 | awk '!seen[$0]++'); do
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

source command/env.sh requirements.txt
commands | while read -r command; do
  echo "python $command"
  "$PYTHON" $command </dev/null
done
