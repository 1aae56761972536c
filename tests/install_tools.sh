#!/usr/bin/env bash
# Install what tests look at pages and tables with, Chromium and LaTeX (180 MB), where that is allowed.
set -euo pipefail
packages=()
command -v chromedriver >/dev/null || packages+=(chromium chromium-driver)
command -v pdflatex >/dev/null || packages+=(texlive-latex-base texlive-science)
[[ ${#packages[@]} == 0 ]] && exit 0
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "Missing, and only root on Debian may install them: ${packages[*]}. Their tests will be skipped."
    exit 0
fi
echo "Installing for the tests: ${packages[*]}"
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${packages[@]}" >/dev/null
