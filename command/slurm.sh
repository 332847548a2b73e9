#!/usr/bin/env bash
# Every published run as jobs of a Slurm cluster, students after their teachers.
#
#   bash command/slurm.sh --partition gpu --gres gpu:1 --time 12:00:00          submits them; the flags are sbatch's
#   ONLY="wrn_40_2" SEEDS="0 1 2 3" bash command/slurm.sh --gres gpu:1          some of them, see command.sh
#   squeue --me --name unixkd --array                                           shows them
#   scancel --me --name unixkd                                                  stops them
#
# An array for all runs that need none of the others, and for each teacher one of its students, which start as it is
# finished and are cancelled if it fails. A run that Slurm preempts, or that comes near its time limit, saves, is queued
# again and resumes; one that you cancel saves. Each run's output is in a log of its own in experiments/logs/, what Slurm
# itself says in slurm.log there.
#
# The command may be given again: runs that are queued or running are left alone, interrupted and failed ones are
# submitted anew, and so are finished ones, whose programs print the result and end within seconds (they alone know
# whether what lies there is a result of these settings). Packages are installed here, before anything is submitted.
# CIFAR-100 should be in data/ already, where the cluster's machines cannot download.
# shellcheck disable=SC2086  # lists of words are split on purpose
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { echo "error: $1; the head of command/slurm.sh tells what it takes" >&2; exit 2; }
for flag in "$@"; do
  case $flag in
    -a* | --array* | -d* | --dependency*) usage "$flag: arrays and dependencies are made here" ;;
  esac
done
command -v sbatch >/dev/null || usage "there is no sbatch on this machine"

listed=$(bash command/command.sh --list)
source command/runs.sh
source command/env.sh requirements.txt
read_list <<<"$listed"

# The run that a task stands for is a line of a file that is made now and stays: `$list`, the job's comment.
mkdir -p "$LOGS"
list=$(mktemp "$PWD/$LOGS/slurm-$(date +%Y%m%d-%H%M%S)-XXX.list")
printf '%s\n' "${runs[@]}" >"$list"
ids=()
trap '[ ${#ids[@]} -gt 0 ] || { rm -f "$list"; rmdir --ignore-fail-on-non-empty "$LOGS"; }' EXIT

declare -A job # of each command that is queued or running, ARRAY_INDEX
queue=$(squeue --me --noheader --array --format '%F %K %k')
while read -r id index comment; do
  [ "${comment%/*}" = "${list%/*}" ] && [ -e "$comment" ] && job[$(sed -n "${index}p" "$comment")]=${id}_$index
done <<<"$queue"

# submit DEPENDENCY RUN...: an array of the runs that are not there yet.
submit() {
  local dependency=$1 run new=() id
  for run in "${@:2}"; do
    [ -n "${job[${runs[run]}]:-}" ] || new+=($((run + 1)))
  done
  [ ${#new[@]} -gt 0 ] || return 0
  id=$(sbatch --parsable --job-name unixkd --requeue --signal B:USR1@120 --open-mode append --output "$LOGS/slurm.log" \
    "${flags[@]}" --comment "$list" --array "$(IFS=,; echo "${new[*]}")" $dependency \
    command/slurm_task.sh "$list" "$PYTHON")
  id=${id%%;*} # a federation names the cluster as well
  ids+=("$id") submitted=$((submitted + ${#new[@]}))
  for run in "${new[@]}"; do job[${runs[run - 1]}]=${id}_$run; done
}

flags=("$@") submitted=0
alone=()
for run in "${!runs[@]}"; do [ -n "${needs[run]}" ] || alone+=("$run"); done
submit "" "${alone[@]}"
for teacher in "${alone[@]}"; do
  students=()
  for run in "${!runs[@]}"; do [ "${needs[run]}" != "$teacher" ] || students+=("$run"); done
  submit "--dependency afterok:${job[${runs[teacher]}]} --kill-on-invalid-dep yes" "${students[@]}"
done
echo "submitted $submitted of ${#runs[@]} runs${ids:+ as jobs ${ids[*]}}, $((${#runs[@]} - submitted)) were queued already"
