#!/usr/bin/env bash
# The start-up script of every host, run as root at each boot: mounts the bucket, installs rdro_jax and starts run.sh, which
# outlives every connection, as the unit `rdro`. What it says: journalctl -u google-startup-scripts.
set -euo pipefail
export HOME=/root PATH="/root/.local/bin:/snap/bin:$PATH"
mkdir -p /opt/rdro/runs && cd /opt/rdro

if ! command -v gcsfuse >/dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg -o "$key"
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" >/etc/apt/sources.list.d/gcsfuse.list
  apt-get update -qq && apt-get install -qq -y gcsfuse
fi
mountpoint -q runs || gcsfuse --implicit-dirs --only-dir rdro-runs my-bucket runs
tar -xzf runs/launch/rdro-first/source.tar.gz

# The images have Python 3.10; uv brings 3.11.
command -v uv >/dev/null || curl -fsSL https://astral.sh/uv/install.sh | sh
uv venv --quiet --allow-existing --python 3.11 .venv
uv pip install --quiet -c constraints.txt -e . 'jax[tpu]'
systemd-run --unit=rdro --working-directory=/opt/rdro --setenv=HOME=/root --setenv=PATH="/opt/rdro/.venv/bin:$PATH" \
  --property=TimeoutStopSec=120 bash runs/launch/rdro-first/run.sh
