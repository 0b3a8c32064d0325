#!/usr/bin/env bash
# Runs on every host, again after code 42 (state saved) and deaths by a signal. The same words go on after a spot machine
# was taken away: delete.sh, create.sh. A secret of Secret Manager is read on the machines and never stands in a file.
set -uo pipefail
NAME=rdro-first
WHERE=(--project=my-project --zone=us-east5-b)
MOST_DEATHS=20

deaths=0
while true; do
  # shellcheck disable=SC2016  # the machines expand it, not this shell
  gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker=all --command='cd ~/rdro && PATH=$PWD/.venv/bin:$PATH rdro train configs/rdro.yaml model.path=models/sft output_dir=runs/first'
  code=$?
  if [ "$code" -gt 128 ] && [ "$code" -ne 255 ]; then
    deaths=$((deaths + 1))
  fi
  if [ "$code" -ne 42 ] && { [ "$code" -le 128 ] || [ "$code" -eq 255 ] || [ "$deaths" -gt "$MOST_DEATHS" ]; }; then
    exit "$code"
  fi
  echo "rdro ended with code $code; again"
done
