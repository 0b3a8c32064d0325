#!/usr/bin/env bash
# Queues for a v6e-8, waits for it, installs rdro_jax and starts the run.
# Rendered by `rdro launch tpu-vm`; what to change stands in the cluster file.
set -euo pipefail
NAME=rdro-first
WHERE=(--project=my-project --zone=us-east5-b)
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" --node-id="$NAME" \
  --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e --spot

state=
until [ "$state" = ACTIVE ]; do
  sleep 30
  state=$(gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" --format='value(state.state)') || true
  case $state in FAILED | SUSPEND*) echo "$NAME: $state; bash $HERE/delete.sh, then again" >&2; exit 1 ;; esac
done

# What git knows of the working directory, and the environment, on every host.
git archive --format=tar.gz --output=/tmp/"$NAME".tar.gz HEAD
gcloud compute tpus tpu-vm scp /tmp/"$NAME".tar.gz "$NAME":~/rdro.tar.gz "${WHERE[@]}" --worker=all
gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker=all --command='
  set -e
  mkdir -p ~/rdro/runs && tar -xzf ~/rdro.tar.gz -C ~/rdro && cd ~/rdro
  mountpoint -q runs || gcsfuse --implicit-dirs my-bucket/rdro-runs runs
  python3.11 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e . "jax[tpu]"'

exec bash "$HERE/run.sh"
