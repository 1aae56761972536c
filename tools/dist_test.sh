#!/usr/bin/env bash
# Evaluate fine-tuned weights without Snakemake, with the arguments of the published recipe:
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS --eval mIoU [--aug-test] [--out FILE] \
#       [--show-dir DIR]
# Further options are those of `cae-seg evaluate`.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS --eval mIoU [options]" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3
tool=$(command -v cae-seg || echo "$(dirname "$0")/../.venv/bin/cae-seg")
exec "$tool" evaluate "$config" "$checkpoint" --gpus "$gpus" "$@"
