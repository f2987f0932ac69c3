#!/bin/bash
# Start-up script of a spot machine on Google Cloud; runs as root at every boot.
# Metadata of the machine: holdfast-root (gs://bucket/jobs or a folder), holdfast-package.
set -euo pipefail

metadata() {
  curl --silent --fail --noproxy '*' --max-time 10 --header 'Metadata-Flavor: Google' \
    "http://169.254.169.254/computeMetadata/v1/instance/attributes/$1"
}

root=$(metadata holdfast-root)
package=$(metadata holdfast-package)

if [[ ! -x /opt/holdfast/bin/holdfast ]]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3-venv
  python3 -m venv /opt/holdfast
  /opt/holdfast/bin/pip install --quiet "$package"
fi

id holdfast >/dev/null 2>&1 ||
  useradd --system --create-home --home-dir /var/lib/holdfast holdfast
printf 'HOLDFAST_ROOT=%s\n' "$root" >/etc/default/holdfast

metadata holdfast-unit >/etc/systemd/system/holdfast.service
systemctl daemon-reload
systemctl enable holdfast.service
# It returns when every unfinished job of the root is at work again.
systemctl restart --no-block holdfast.service
