# shellcheck shell=bash
# Sourced by command.sh and slurm.sh: makes the list of runs that ONLY and SEEDS ask for, see command.sh. Of each:
#   runs[i]     its command without the `python`
#   names[i]    a name for its log
#   needs[i]    the index of the run that trains its teacher; empty where none of the list does
# shellcheck disable=SC2046,SC2086  # lists of words are split on purpose

# shellcheck disable=SC2034  # for those who source this
LOGS=experiments/logs
SEEDS=${SEEDS:-0}

usage() { echo "error: $1; the head of command/${0##*/} tells what it takes" >&2; exit 2; }
distinct() { printf '%s\n' "$@" | awk '!seen[$0]++'; }

[[ $SEEDS =~ ^[0-9[:space:]]+$ ]] || usage "SEEDS=$SEEDS must be whole numbers with spaces between"
pairs=()
declare -A lr # of each student
while IFS=, read -r teacher student student_lr _; do
  pairs+=("$teacher:$student") lr[$student]=$student_lr
done < <(tail -n +2 reporting/published.csv)
selected=
for word in ${ONLY:-${pairs[*]}}; do # a teacher, a student or a pair
  selected+=" $(printf '%s\n' "${pairs[@]}" | grep -x -e "$word" -e "$word:.*" -e ".*:$word")" ||
    usage "ONLY=$word is in no pair"
done
selected=$(distinct $selected)

runs=() names=() needs=()
add() { names+=("$1") needs+=("$2") runs+=("$3"); }

declare -A trainer # of each teacher: the index of its run
for teacher in $(distinct $(printf '%s\n' $selected | cut -d: -f1)); do
  folder=experiments/teacher_$teacher
  [ ! -e $folder/ckpt/best.pth ] || [ -e $folder/config.json ] || continue # a downloaded one
  trainer[$teacher]=${#runs[@]}
  add "teacher_$teacher" "" "teacher.py --arch $teacher --lr 0.05"
done
for seed in $(distinct $SEEDS); do
  for student in $(distinct $(printf '%s\n' $selected | cut -d: -f2)); do
    add "alone_${student}_seed$seed" "" "teacher.py --arch $student --lr ${lr[$student]} --seed $seed"
  done
  for pair in $selected; do
    teacher=${pair%:*} student=${pair#*:}
    distill="student_v0.py --teacher-path ./experiments/teacher_$teacher/ --student-arch $student"
    distill+=" --lr ${lr[$student]} --seed $seed"
    add "kd_${teacher}_${student}_seed$seed" "${trainer[$teacher]:-}" "$distill --strategy 0 --k 64 --b 64 --w 1000"
    add "unix_${teacher}_${student}_seed$seed" "${trainer[$teacher]:-}" "$distill --strategy 3 --k 48 --b 32 --w 10"
  done
done
