#!/usr/bin/env bash
# Ships the working directory to the bucket and queues for a v6e-8, whose hosts start the run by themselves at each
# boot (start.sh): nothing of it needs this machine any more. Run again, it puts new machines in the place of those that were
# taken away, and the run goes on from its checkpoint; with --replace it does that only, with what was shipped before.
# Rendered by `rdro launch tpu-vm`; what to change stands in the cluster file.
set -euo pipefail
NAME=rdro-first
WHERE=(--project=my-project --zone=us-east5-b)
SHIPPED=gs://my-bucket/rdro-runs/launch/$NAME
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

state=$(gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" --format='value(state.state)' 2>/dev/null) || state=
case $state in
  FAILED | SUSPENDED) bash "$HERE/delete.sh" ;;
  "") if [ "${1:-}" = --replace ]; then exit 0; fi ;; # ended, and given back by itself
  *) echo "$NAME: $state already; bash $HERE/delete.sh gives it back"; exit 0 ;;
esac

# What git knows of the working directory and what it does not know yet, but for what it ignores.
if [ "${1:-}" != --replace ]; then
  git ls-files -z --cached --others --exclude-standard \
    | while IFS= read -r -d '' file; do if [ -e "$file" ]; then printf '%s\0' "$file"; fi; done \
    | tar --null -T - -czf - | gcloud storage cp - "$SHIPPED/source.tar.gz"
  gcloud storage cp "$HERE/run.sh" "$SHIPPED/run.sh"
fi

gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" --node-id="$NAME" \
  --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e --spot \
  --metadata-from-file=startup-script="$HERE/start.sh" --async
echo "queued. Its log: gcloud compute tpus tpu-vm ssh $NAME ${WHERE[*]} --worker=0 --command='journalctl -fu rdro'"
