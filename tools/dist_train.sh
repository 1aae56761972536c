#!/usr/bin/env bash
# Train one config without Snakemake, with the arguments of the published recipe:
#   bash tools/dist_train.sh CONFIG GPUS --work-dir DIR --seed 0 --deterministic \
#       --options model.pretrained=CHECKPOINT
# Further options are those of `cae-seg train`.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: bash tools/dist_train.sh CONFIG GPUS --work-dir DIR [options of cae-seg train]" >&2
    exit 2
fi
config=$1
gpus=$2
shift 2
tool=$(command -v cae-seg || echo "$(dirname "$0")/../.venv/bin/cae-seg")
exec "$tool" train "$config" --gpus "$gpus" "$@"
