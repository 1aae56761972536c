#!/usr/bin/env bash
# Stands in for `cae-seg` in tests of planning: writes the files that a command declares, at once.
# Appends its arguments, NUL-terminated, and an end mark to the file that STUB_CALLS names.
set -euo pipefail
command=$1
[ -z "${STUB_CALLS:-}" ] || printf '%s\0' "$@" $'\x1e' >>"$STUB_CALLS"
write() { mkdir -p "$(dirname "$1")" && printf '%s\n' "$2" >"$1"; }
for argument in "$@"; do
    value=${argument#*=}
    case $argument in
        --archive=*) write "$value" "archive" ;;
        --checkpoints=*) for name in cae_tiny_300e cae_tiny_1600e swin_demo; do write "$value/$name.pth" "$name"; done ;;
        --manifest=*) write "$value" '{"schema": 1}' ;;
        --csv=*) write "$value" "backbone,miou" ;;
        --claim=*) write "$value" "not distinguishable" && write "${value%.md}.json" "{}" ;;
        --pages=*) write "$value/$([ $command = table ] && echo table || echo claim).html" "<p></p>"
            [ $command = figures ] || write "$value/runs/tiny_seed0.html" "<p></p>"
            [ $command = figures ] || write "$value/overview.rst" "Best: tiny" ;;
        --report=*) [ $command != train ] || write "$value" "{}" ;;
        --out=*)
            case $command in
                figures) write "$value/learning_rate.svg" "<svg xmlns='http://www.w3.org/2000/svg'/>" ;;
                train | collect-run) write "$value" "{}" && write "$(dirname "$value")/config.py" "x = 1" ;;
                track) write "$value" "{\"delivered\": ${STUB_DELIVERED:-true}}" ;;
                *) write "$value" "{}" ;;
            esac
            ;;
    esac
done
