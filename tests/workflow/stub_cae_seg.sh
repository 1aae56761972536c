#!/usr/bin/env bash
# Stands in for `cae-seg` in tests of planning: writes the files that a command declares, at once.
set -euo pipefail
command=$1
write() { mkdir -p "$(dirname "$1")" && printf '%s\n' "$2" >"$1"; }
while (($#)); do
    case $1 in
        --archive) write "$2" "archive" ;;
        --checkpoints) write "$2/cae_tiny_300e.pth" "300" && write "$2/cae_tiny_1600e.pth" "1600" ;;
        --manifest) write "$2" '{"schema": 1}' ;;
        --csv) write "$2" "backbone,miou" ;;
        --claim) write "$2" "not distinguishable" && write "${2%.md}.json" "{}" ;;
        --pages) write "$2/$([ $command = table ] && echo table || echo claim).html" "<p></p>"
            [ $command = figures ] || write "$2/runs/tiny_seed0.html" "<p></p>" ;;
        --out)
            case $command in
                figures) write "$2/learning_rate.svg" "<svg xmlns='http://www.w3.org/2000/svg'/>" ;;
                train) write "$2" "{}" && write "$(dirname "$2")/config.py" "x = 1" ;;
                track) write "$2" "{\"delivered\": ${STUB_DELIVERED:-true}}" ;;
                *) write "$2" "{}" ;;
            esac
            ;;
    esac
    shift
done
