#!/bin/bash
# Start-up script of a spot machine on Google Cloud; runs as root at every boot.
# Metadata of the machine: outlast-root (gs://bucket/jobs or a folder), outlast-package.
set -euo pipefail

metadata() {
  curl --silent --fail --noproxy '*' --max-time 10 --header 'Metadata-Flavor: Google' \
    "http://169.254.169.254/computeMetadata/v1/instance/attributes/$1"
}

root=$(metadata outlast-root)
package=$(metadata outlast-package)

if [[ ! -x /opt/outlast/bin/outlast ]]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3-venv
  python3 -m venv /opt/outlast
  /opt/outlast/bin/pip install --quiet "$package"
fi

id outlast >/dev/null 2>&1 ||
  useradd --system --create-home --home-dir /var/lib/outlast outlast
printf 'OUTLAST_ROOT=%s\n' "$root" >/etc/default/outlast

metadata outlast-unit >/etc/systemd/system/outlast.service
systemctl daemon-reload
systemctl enable outlast.service
# It returns when every unfinished job of the root is running again.
systemctl restart --no-block outlast.service
