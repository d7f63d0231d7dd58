#!/usr/bin/env bash
# Installs a Vulkan driver that runs on the CPU (Mesa's lavapipe), so that the wgpu backend can be
# tested without a GPU. Debian 12's own Mesa 22.3 silently ends a shader's loop after 65,535
# iterations, so on Debian 12 the version of bookworm-backports is installed. Needs apt and root, or
# sudo. `FLASHRNN_WGPU_CPU=1` lets the backend use such a driver.
set -euo pipefail

root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

release=()
if [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = bookworm ]; then
    # The mirror that bookworm itself is installed from.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' | head -n 1)
    echo "deb $mirror bookworm-backports main" |
        root tee /etc/apt/sources.list.d/bookworm-backports.list >/dev/null
    release=(-t bookworm-backports)
fi
# Unrelated lists may fail to update. If a needed one fails, the installation below does too.
root apt-get update -q || true
root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    "${release[@]}" mesa-vulkan-drivers libvulkan1
