#!/bin/bash
# Collects in shards, then merges them.
#
#   deploy/slurm/submit.sh SHARDS OUT DATASET [flags of latentwire collect]
#   deploy/slurm/submit.sh 16 out dataset --model MODEL --dataset tasks.jsonl
#
# OUT gets a folder for each shard, DATASET the merged dataset. Both must be on a file system that all nodes share,
# or URLs like s3://bucket/out.
set -eu
if [ $# -lt 3 ]; then
  sed -n 's/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
shards=$1 out=$2 dataset=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
job=$(sbatch --parsable --array="0-$((shards - 1))" "$here/collect.sbatch" --output-dir "$out" --shard "/$shards" "$@")
# With several clusters, the cluster's name follows.
job=${job%%;*}
# Not afterok: a shard in which some rows failed ends with status 3. The merge checks that all shards are there.
sbatch --dependency="afterany:$job" "$here/merge.sbatch" "$out" -o "$dataset"
