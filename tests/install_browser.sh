#!/usr/bin/env bash
# Install Chromium and its driver where that is allowed; say so plainly where it is not.
set -euo pipefail
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "No chromedriver here, and only root on Debian may install it: the tests of pages will be skipped."
    exit 0
fi
echo "Installing Chromium for the tests of pages"
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium chromium-driver >/dev/null
