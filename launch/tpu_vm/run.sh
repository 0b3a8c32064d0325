#!/usr/bin/env bash
# The run on one host, again after code 42 (state saved) and deaths by a signal; then the machines are given back.
# A secret of Secret Manager is read here and never stands in a file.
set -uo pipefail
NAME=rdro-first
MOST_DEATHS=20

# The machine goes down: every process of the unit gets the signal. rdro saves, and this shell must not start it again.
stopping=
trap 'stopping=yes' TERM
deaths=0
while true; do
  rdro train configs/rdro.yaml model.path=models/sft output_dir=runs/first
  code=$?
  if [ -n "$stopping" ]; then
    exit "$code"
  fi
  if [ "$code" -gt 128 ]; then
    deaths=$((deaths + 1))
  fi
  if [ "$code" -ne 42 ] && { [ "$code" -le 128 ] || [ "$deaths" -gt "$MOST_DEATHS" ]; }; then
    break
  fi
  echo "rdro ended with code $code; again"
done

# Done, or a fault that would come again: what was said stays in the bucket, the machines are paid for no longer.
metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes
if [ "$(curl -sf -H 'Metadata-Flavor: Google' "$metadata/agent-worker-number")" = 0 ]; then
  echo "rdro ended with code $code; the machines are given back"
  journalctl -u rdro >"runs/launch/$NAME/log.txt"
  gcloud compute tpus queued-resources delete "$NAME" --project=my-project --zone=us-east5-b --force --quiet --async
fi
exit "$code"
