#!/usr/bin/env bash
# A teacher, then a student alone, by KD and by UNIX, on little data; ends with a table of what each reached and cost.
#
#   bash command/demo.sh                       on generated images, nothing to download
#   DATASET=cifar100 bash command/demo.sh      on as many images of CIFAR-100 (downloaded, or from ./data)
#
# Given again, it goes on where it was stopped, or prints the table; delete experiments/demo_* to train anew.
set -euo pipefail
source "$(dirname "$0")/env.sh" requirements.txt

TEACHER=vgg8 STUDENT=resnet8 # a student of an eighth of the teacher's computation
DATASET=${DATASET:-synthetic}
folder=experiments/demo_$DATASET
short=(--dataset "$DATASET" --train-limit 6000 --val-limit 2000 --epoch 6 --milestones 5 --experiments "$folder")

train() {
  printf '\n== %s\n' "$1"
  "$PYTHON" "${@:2}" "${short[@]}"
}

train "teacher: $TEACHER" teacher.py --arch $TEACHER
train "student alone: $STUDENT" teacher.py --arch $STUDENT
distill=(student_v0.py --teacher-path "$folder/teacher_${TEACHER}_"* --student-arch "$STUDENT")
train "KD: the teacher sees every image" "${distill[@]}" --strategy 0 --k 64 --b 64 --w 1000
train "UNIX: the student chooses 48 of 64, the teacher sees only those" "${distill[@]}"

printf '\n== table\n'
"$PYTHON" report.py "$folder"/*
