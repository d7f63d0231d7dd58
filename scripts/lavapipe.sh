#!/usr/bin/env bash
# Installs a Vulkan driver that runs on the CPU (Mesa's lavapipe), so that the wgpu backend's tests
# run on a machine without a GPU. Debian 12's own Mesa 22.3 ends a shader's loop silently after
# 65,535 iterations, so there the one of bookworm-backports is taken. Needs apt and root (or sudo).
# `FLASHRNN_WGPU_CPU=1` lets the backend take such a driver.
set -euo pipefail

root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

release=()
if [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = bookworm ]; then
    # From the mirror that bookworm itself comes from.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' | head -n 1)
    echo "deb $mirror bookworm-backports main" | root tee /etc/apt/sources.list.d/bookworm-backports.list >/dev/null
    release=(-t bookworm-backports)
fi
# Other lists may fail; what is needed here then fails below.
root apt-get update -q || true
root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${release[@]}" mesa-vulkan-drivers libvulkan1
