#!/usr/bin/env bash
# Gives the machines back; the bucket keeps the run.
set -euo pipefail
gcloud compute tpus queued-resources delete rdro-first --project=my-project --zone=us-east5-b --force --quiet
