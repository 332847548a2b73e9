#!/usr/bin/env bash
# Trains a teacher on 2,000 generated images, then a student on 200 of them: alone, by KD and by UNIX. It ends with a table
# of what each of them reached and cost. It needs neither data nor a GPU.
#
#   bash command/demo.sh
#
# Given again, it goes on where it was stopped, or prints the table. Delete experiments/demo/ to train anew.
set -euo pipefail
source "$(dirname "$0")/env.sh" requirements.txt

folder=experiments/demo
teacher=$folder/teacher_vgg8_epoch3_batchsize16_milestones2_datasetsynthetic_trainlimit2000_vallimit500
data=(--dataset synthetic --val-limit 500 --batch-size 16 --experiments "$folder")
few=("${data[@]}" --train-limit 200 --epoch 30 --milestones 22 28)
# So few steps are not enough to learn from the teacher alone, so the students learn from the labels as well.
distill=(student_v0.py --teacher-path "$teacher" --student-arch resnet8 --ce-weight 1)

echo "== The teacher, a vgg8, learns from 2,000 images."
"$PYTHON" teacher.py --arch vgg8 "${data[@]}" --train-limit 2000 --epoch 3 --milestones 2
echo "== A student of an eighth of its computation, a resnet8, learns alone from 200 images."
"$PYTHON" teacher.py --arch resnet8 "${few[@]}"
echo "== KD: the teacher sees all 16 images of each batch."
"$PYTHON" "${distill[@]}" --strategy 0 --k 16 --b 16 --w 1000 "${few[@]}"
echo "== UNIX: the student chooses 12 of them, and the teacher sees only those."
"$PYTHON" "${distill[@]}" --strategy 3 --k 12 --b 8 --w 10 "${few[@]}"
echo "== The table"
"$PYTHON" report.py "$folder"
