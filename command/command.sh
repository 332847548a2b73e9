#!/usr/bin/env bash
# The commands of every published run. Copy one from here, or let this script run them:
#
#   bash command/command.sh                                 runs all of them, one after the other
#   JOBS=4 bash command/command.sh                          runs four at a time, spread over the GPUs
#   bash command/command.sh --list                          prints them and runs nothing
#   bash command/command.sh --list teachers                 prints those that need no other run: teachers, students alone
#   bash command/command.sh --list students                 prints those that need a teacher
#   ONLY="wrn_40_2" SEEDS="0 1 2 3" bash command/command.sh    takes only pairs with this network, and four seeds
#   ONLY="vgg13:vgg8 ResNet50:vgg8" bash command/command.sh    takes only these pairs
#
# More is explained below the list.

# Six teachers.
TEACHERS='
python teacher.py --arch vgg13 --lr 0.05
python teacher.py --arch ResNet50 --lr 0.05
python teacher.py --arch resnet32x4 --lr 0.05
python teacher.py --arch wrn_40_2 --lr 0.05
python teacher.py --arch resnet56 --lr 0.05
python teacher.py --arch vgg16 --lr 0.05
'

# Each student alone, without a teacher.
ALONE='
python teacher.py --arch MobileNetV2 --lr 0.01 --seed 0
python teacher.py --arch vgg8 --lr 0.05 --seed 0
python teacher.py --arch ShuffleV1 --lr 0.01 --seed 0
python teacher.py --arch ShuffleV2 --lr 0.01 --seed 0
python teacher.py --arch wrn_16_2 --lr 0.05 --seed 0
python teacher.py --arch wrn_40_1 --lr 0.05 --seed 0
python teacher.py --arch resnet20 --lr 0.05 --seed 0
python teacher.py --arch resnet8x4 --lr 0.05 --seed 0
'

# For each of the 12 pairs KD (--strategy 0 --k 64 --b 64 --w 1000) and UNIX (--strategy 3).
STUDENTS='
python student_v0.py --teacher-path ./experiments/teacher_vgg13/ --student-arch MobileNetV2 --lr 0.01 --seed 0 --strategy 0 --k 64 --b 64 --w 1000
python student_v0.py --teacher-path ./experiments/teacher_vgg13/ --student-arch MobileNetV2 --lr 0.01 --seed 0 --strategy 3 --k 48 --b 32 --w 10
python student_v0.py --teacher-path ./experiments/teacher_ResNet50/ --student-arch MobileNetV2 --lr 0.01 --seed 0 --strategy 0 --k 64 --b 64 --w 1000
python student_v0.py --teacher-path ./experiments/teacher_ResNet50/ --student-arch MobileNetV2 --lr 0.01 --seed 0 --strategy 3 --k 48 --b 32 --w 10
python student_v0.py --teacher-path ./experiments/teacher_ResNet50/ --student-arch vgg8 --lr 0.05 --seed 0 --strategy 0 --k 64 --b 64 --w 1000
python student_v0.py --teacher-path ./experiments/teacher_ResNet50/ --student-arch vgg8 --lr 0.05 --seed 0 --strategy 3 --k 48 --b 32 --w 10
python student_v0.py --teacher-path ./experiments/teacher_resnet32x4/ --student-arch ShuffleV1 --lr 0.01 --seed 0 --strategy 0 --k 64 --b 64 --w 1000
python student_v0.py --teacher-path ./experiments/teacher_resnet32x4/ --student-arch ShuffleV1 --lr 0.01 --seed 0 --strategy 3 --k 48 --b 32 --w 10
python student_v0.py --teacher-path ./experiments/teacher_resnet32x4/ --student-arch ShuffleV2 --lr 0.01 --seed 0 --strategy 0 --k 64 --b 64 --w 1000
python student_v0.py --teacher-path ./experiments/teacher_resnet32x4/ --student-arch ShuffleV2 --lr 0.01 --seed 0 --strategy 3 --k 48 --b 32 --w 10
python student_v0.py --teacher-path ./experiments/teacher_wrn_40_2/ --student-arch ShuffleV1 --lr 0.01 --seed 0 --strategy 0 --k 64 --b 64 --w 1000
python student_v0.py --teacher-path ./experiments/teacher_wrn_40_2/ --student-arch ShuffleV1 --lr 0.01 --seed 0 --strategy 3 --k 48 --b 32 --w 10
python student_v0.py --teacher-path ./experiments/teacher_wrn_40_2/ --student-arch wrn_16_2 --lr 0.05 --seed 0 --strategy 0 --k 64 --b 64 --w 1000
python student_v0.py --teacher-path ./experiments/teacher_wrn_40_2/ --student-arch wrn_16_2 --lr 0.05 --seed 0 --strategy 3 --k 48 --b 32 --w 10
python student_v0.py --teacher-path ./experiments/teacher_wrn_40_2/ --student-arch wrn_40_1 --lr 0.05 --seed 0 --strategy 0 --k 64 --b 64 --w 1000
python student_v0.py --teacher-path ./experiments/teacher_wrn_40_2/ --student-arch wrn_40_1 --lr 0.05 --seed 0 --strategy 3 --k 48 --b 32 --w 10
python student_v0.py --teacher-path ./experiments/teacher_resnet56/ --student-arch resnet20 --lr 0.05 --seed 0 --strategy 0 --k 64 --b 64 --w 1000
python student_v0.py --teacher-path ./experiments/teacher_resnet56/ --student-arch resnet20 --lr 0.05 --seed 0 --strategy 3 --k 48 --b 32 --w 10
python student_v0.py --teacher-path ./experiments/teacher_resnet32x4/ --student-arch resnet8x4 --lr 0.05 --seed 0 --strategy 0 --k 64 --b 64 --w 1000
python student_v0.py --teacher-path ./experiments/teacher_resnet32x4/ --student-arch resnet8x4 --lr 0.05 --seed 0 --strategy 3 --k 48 --b 32 --w 10
python student_v0.py --teacher-path ./experiments/teacher_vgg13/ --student-arch vgg8 --lr 0.05 --seed 0 --strategy 0 --k 64 --b 64 --w 1000
python student_v0.py --teacher-path ./experiments/teacher_vgg13/ --student-arch vgg8 --lr 0.05 --seed 0 --strategy 3 --k 48 --b 32 --w 10
python student_v0.py --teacher-path ./experiments/teacher_vgg16/ --student-arch vgg8 --lr 0.05 --seed 0 --strategy 0 --k 64 --b 64 --w 1000
python student_v0.py --teacher-path ./experiments/teacher_vgg16/ --student-arch vgg8 --lr 0.05 --seed 0 --strategy 3 --k 48 --b 32 --w 10
'

# Each command that has --seed 0 runs once for each of SEEDS, with that seed in place of the 0. A teacher that you have
# downloaded to experiments/teacher_NAME/ckpt/best.pth is used as it is and not trained.
#
# The students start when all runs that need no teacher have ended. Each run writes a log to experiments/logs/. If a run
# fails, the others still run, and the script names it at the end. It does not start the students of an unfinished
# teacher. Ctrl-C stops all runs. You can give the same command again at any time: the programs continue interrupted runs
# and leave finished ones as they are.
#
# With JOBS=4, the runs that go on at the same time are spread over the GPUs that nvidia-smi lists, or over those in
# CUDA_VISIBLE_DEVICES. With two GPUs, two runs share each. Without JOBS, or on a machine without a GPU, the
# programs choose the device.
set -euo pipefail
set -f
cd "$(dirname "$0")/.."

usage() {
  echo "error: $1" >&2
  exit 2
}

# list teachers|students: prints the commands that ONLY and SEEDS ask for.
list() {
  local arch folder seed
  local lines=$students
  if [ "$1" = teachers ]; then
    while read -r _ _ _ arch _; do
      [[ $students == *"/teacher_$arch/"* ]] || continue
      folder=experiments/teacher_$arch
      # A folder with weights and without a config.json holds a downloaded teacher.
      if [ -e "$folder/ckpt/best.pth" ] && [ ! -e "$folder/config.json" ]; then continue; fi
      grep -F " $arch " <<<"$TEACHERS"
    done <<<"$TEACHERS"
    lines=$(grep -F -f <(grep -o 'arch [^ ]* ' <<<"$students") <<<"$ALONE")
  fi
  for seed in $SEEDS; do echo "${lines//--seed 0/--seed $seed}"; done
}

# run COMMAND: runs one of the commands. If that fails, it prints a line that says why and returns 1.
run() {
  local name log visible gpus words
  name=$(sed -E -e 's/ --(lr|k|b|w) [^ ]+//g' -e 's/ --(seed|strategy) /_\1/g' \
    -e 's|.*/(teacher_[^/]*)/ --student-arch |\1_student_|' -e 's/.* --arch /teacher_/' <<<"$1")
  log=experiments/logs/$name.log
  if [[ $1 =~ --teacher-path\ ([^ ]+) ]] && [ -e "${BASH_REMATCH[1]}/config.json" ] &&
    [ ! -e "${BASH_REMATCH[1]}/result.json" ]; then
    echo "not started, because its teacher is not finished: $name"
    return 1
  fi
  if [ -n "${SLOT:-}" ]; then
    visible=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | tr '\n' ,)} || :
    IFS=, read -ra gpus <<<"$visible"
    [ ${#gpus[@]} = 0 ] || export CUDA_VISIBLE_DEVICES=${gpus[SLOT % ${#gpus[@]}]}
  fi
  mkdir -p experiments/logs
  echo "started $name: $log" >&2
  echo "== $(date '+%F %T') $HOSTNAME: $1" >>"$log"
  read -ra words <<<"${1#python }"
  if ! "$PYTHON" "${words[@]}" >>"$log" 2>&1; then
    echo "failed $name" >&2
    echo "failed: $log: $(tail -n 1 "$log")"
    return 1
  fi
  echo "finished $name" >&2
}

SEEDS=${SEEDS:-0}
[[ " $SEEDS" =~ ^(\ +(0|[1-9][0-9]*))+\ *$ ]] || usage "SEEDS=$SEEDS must be whole numbers with spaces between"
[ -z "$(tr ' ' '\n' <<<"$SEEDS" | grep . | sort | uniq -d)" ] || usage "SEEDS=$SEEDS names a seed twice"
[[ ${JOBS:-1} =~ ^[1-9][0-9]?$ ]] || usage "JOBS=$JOBS must be a whole number from 1 to 99"
students=$(grep python <<<"$STUDENTS")
if [ -n "${ONLY:-}" ]; then
  patterns=()
  for word in $ONLY; do # a teacher, a student or teacher:student
    match=(-e "/teacher_$word/ " -e "--student-arch $word " -e "/teacher_${word/:/\/ --student-arch } ")
    grep -qF "${match[@]}" <<<"$students" || usage "ONLY=$word is in no pair"
    patterns+=("${match[@]}")
  done
  [ ${#patterns[@]} -gt 0 ] || usage "ONLY=$ONLY names no network"
  students=$(grep -F "${patterns[@]}" <<<"$students")
fi

case "$*" in
  --list) list teachers && list students ;;
  "--list teachers" | "--list students") list "$2" ;;
  "--run python "*) # slurm.sh and this script itself call it like this
    source command/env.sh requirements.txt
    run "$2"
    ;;
  "")
    source command/env.sh requirements.txt
    failed=$(
      code=0
      for part in teachers students; do
        list $part | xargs -d '\n' -n 1 -P "${JOBS:-1}" ${JOBS:+--process-slot-var=SLOT} \
          bash command/command.sh --run || code=1
      done
      exit $code
    ) || { echo "$failed" >&2; exit 1; }
    echo "all runs are finished: python report.py experiments"
    ;;
  *) usage "unknown arguments: $*" ;;
esac
