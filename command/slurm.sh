#!/usr/bin/env bash
# Every published run as jobs of a Slurm cluster, students after their teachers.
#
#   bash command/slurm.sh --partition gpu --gres gpu:1 --time 12:00:00          submits them; the flags are sbatch's
#   ONLY="wrn_40_2" SEEDS="0 1 2 3" bash command/slurm.sh --gres gpu:1          some of them, see command.sh
#   squeue --me --name unixkd --array                                           shows them
#   scancel --me --name unixkd                                                  stops them
#
# An array for all runs that need none of the others, and one for each teacher's students, which start when it is
# finished and are canceled if it fails. A run that Slurm preempts, or that comes near its time limit, saves, is queued
# again and resumes; one that you cancel saves. Each run has its log in experiments/logs/; Slurm's is slurm.log.
#
# Give the command again at any time: what is queued or running is left alone, the rest is submitted anew. Interrupted
# and failed runs then go on, finished ones end within seconds. Packages are installed before anything is submitted.
# CIFAR-100 should be in data/ already, where the cluster's machines cannot download.
set -euo pipefail
cd "$(dirname "$0")/.."
source command/runs.sh

for flag in "$@"; do
  case $flag in
    -a* | --array* | -d* | --dependency*) usage "$flag: arrays and dependencies are made here" ;;
  esac
done
command -v sbatch >/dev/null || usage "there is no sbatch on this machine"
source command/env.sh requirements.txt

# A task reads its run from a line of `$list`, a file that stays as it is and that a job names in its comment.
mkdir -p "$LOGS"
list=$(mktemp "$PWD/$LOGS/slurm-$(date +%Y%m%d-%H%M%S)-XXX.list")
flags=("$@") ids=() submitted=0
trap '[ ${#ids[@]} -gt 0 ] || { rm -f "$list"; rmdir --ignore-fail-on-non-empty "$LOGS"; }' EXIT
for i in "${!runs[@]}"; do echo "${names[i]} ${runs[i]}"; done >"$list"
mapfile -t lines <"$list"

declare -A job # of each line that is queued or running: ARRAY_INDEX
queue=$(squeue --me --noheader --array --format '%F %K %k')
while read -r id index comment; do
  [ "${comment%/*}" = "${list%/*}" ] && [ -e "$comment" ] && job[$(sed -n "${index}p" "$comment")]=${id}_$index
done <<<"$queue"

# submit TEACHER FLAG...: one array of all runs that need this one and are not queued yet.
submit() {
  local i indices=() id
  for i in "${!runs[@]}"; do
    [ "${needs[i]}" != "$1" ] || [ -n "${job[${lines[i]}]:-}" ] || indices+=($((i + 1)))
  done
  [ ${#indices[@]} -gt 0 ] || return 0
  id=$(sbatch --parsable --job-name unixkd --requeue --signal B:USR1@120 --open-mode append --output "$LOGS/slurm.log" \
    "${flags[@]}" --comment "$list" --array "$(IFS=, && echo "${indices[*]}")" "${@:2}" \
    command/slurm_task.sh "$list" "$PYTHON")
  id=${id%%;*} # a federation names the cluster as well
  ids+=("$id") submitted=$((submitted + ${#indices[@]}))
  for i in "${indices[@]}"; do job[${lines[i - 1]}]=${id}_$i; done
}

submit ""
for i in "${!runs[@]}"; do submit "$i" --dependency "afterok:${job[${lines[i]}]:-}" --kill-on-invalid-dep yes; done
queued=$((${#runs[@]} - submitted))
echo "submitted $submitted of ${#runs[@]} runs${ids:+ as jobs ${ids[*]}}, $queued were queued already"
