# shellcheck shell=bash
# Sourced by command.sh and slurm.sh: what there is to know of a list of runs, as `command.sh --list` prints it.

# shellcheck disable=SC2034  # for those who source this
LOGS=experiments/logs

# read_list: sets, from the list on stdin, runs[i] to a command without its `python`, and needs[i] to the index of the
# run that trains its teacher; that is empty where none of the list does.
read_list() {
  local line
  local -A trainer
  runs=() needs=()
  while read -r line; do
    line=${line#python }
    needs+=("")
    if [[ $line =~ --teacher-path\ ([^ ]+) ]]; then
      needs[-1]=${trainer[${BASH_REMATCH[1]}]:-}
    elif [[ $line =~ --arch\ ([^ ]+) && $line != *\ --seed\ * ]]; then # with a seed it is a student alone
      trainer[./experiments/teacher_${BASH_REMATCH[1]}/]=${#runs[@]}
    fi
    runs+=("$line")
  done
}

# name_of COMMAND: a name for its log, as in student_v0_teacher_vgg13_vgg8_lr0.05_seed0_strategy0_k64_b64_w1000.
name_of() {
  sed -E 's#\.py|\./experiments/|--(arch|teacher-path|student-arch) ##g; s# --([a-z-]+) #_\1#g; s#/? #_#g' <<<"$1"
}

# begin_log LOG COMMAND MORE: a line that tells one start from the next, as a log is appended to.
begin_log() {
  printf '== %(%F %T)T, %s%s: python %s\n' -1 "$HOSTNAME" "$3" "$2" >>"$1"
}
