#!/usr/bin/env bash
# Print the path of a Python that cae-seg can be installed with; without one, say how to get it.
#   tools/find_python.sh [COMMAND]    COMMAND is the only candidate if given
set -euo pipefail

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

makes_environments() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

candidates=(python3.11 python3.12 python3.13 python3 python)
[[ $# == 0 || -z $1 ]] || candidates=("$1")
incomplete=
for candidate in "${candidates[@]}"; do
    path=$(command -v "$candidate") || continue
    fits "$path" || continue
    if makes_environments "$path"; then
        echo "$path"
        exit 0
    fi
    incomplete=${incomplete:-$path}
done

if [[ -n $incomplete ]]; then
    version=$("$incomplete" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    cat >&2 <<END
error: $incomplete cannot make virtual environments (no ensurepip); on Debian and Ubuntu:
    sudo apt-get install python$version-venv
END
    exit 1
fi
cat >&2 <<END
error: no Python 3.11, 3.12 or 3.13 among: ${candidates[*]}. Get one without root, then repeat the command:
    uv:     uv python install 3.11 && make install PYTHON="\$(uv python find 3.11)"
    pyenv:  pyenv install 3.11 && make install PYTHON="\$(pyenv prefix 3.11)/bin/python"
    conda:  conda create -n py311 python=3.11 && make install PYTHON="\$(conda run -n py311 which python)"
END
exit 1
