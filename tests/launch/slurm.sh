#!/usr/bin/env bash
# A real SLURM on this machine, two nodes of it: are the rendered scripts accepted, does a run of both nodes train, do runs
# of both nodes survive SIGTERM, a killed rank and their time limit with the state and the metrics of a run that was left
# alone, does a sweep's array survive SIGTERM, a sweep by submitit its preemption, its time limit's signal and the death of
# its coordinator? Needs root and apt; without them it says so and passes.
# RDRO_PYTHON: an interpreter with rdro_jax (default .venv/bin/python).
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(realpath -s "${RDRO_PYTHON:-.venv/bin/python}")

if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "notice: no SLURM here and no way to install it; not checked"
    exit 0
  fi
  if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1; then
    echo "notice: apt has no slurm-wlm; not checked"
    exit 0
  fi
fi

work=$(mktemp -d)
started=()
stop() {
  squeue -h -o %A 2>/dev/null | xargs -r scancel --signal=KILL --full 2>/dev/null || true
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap stop EXIT
fail() {
  echo "FAILED: $*"
  tail -n 20 "$work"/slurmctld.log "$work"/job-*.log "$work"/sweep.log 2>/dev/null || true
  exit 1
}

# Munge: keys and socket of our own.
mkdir -p "$work"/{state,munge}
chmod 711 "$work"
dd if=/dev/urandom of="$work/munge/key" bs=128 count=1 status=none
chmod 400 "$work/munge/key"
chmod 755 "$work/munge"
munged --force --foreground --key-file="$work/munge/key" --socket="$work/munge/socket" --pid-file="$work/munge/pid" \
  --log-file="$work/munged.log" --seed-file="$work/munge/seed" >/dev/null 2>&1 &
started+=($!)

host=$(hostname -s)
cores=$(nproc)
# The name of the first node, as SLURM sorts them, must resolve: the processes of a run meet there.
cat >"$work/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool%n
SlurmctldPidFile=$work/ctld.pid
SlurmdPidFile=$work/d-%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd-%n.log
SlurmctldPort=16817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,requeue_delay=0
MailProg=/bin/true
KillWait=5
ReturnToService=2
GresTypes=gpu
NodeName=$host NodeHostname=$host NodeAddr=127.0.0.1 Port=16821 CPUs=$cores Gres=gpu:2 State=UNKNOWN
NodeName=$host-2 NodeHostname=$host NodeAddr=127.0.0.1 Port=16822 CPUs=$cores Gres=gpu:2 State=UNKNOWN
PartitionName=gpu Nodes=$host,$host-2 Default=YES MaxTime=INFINITE State=UP
CONF
for device in 0 1; do mknod "$work/gpu$device" c 1 3; done
for node in "$host" "$host-2"; do mkdir -p "$work/spool$node"; done
cat >"$work/gres.conf" <<CONF
NodeName=$host,$host-2 Name=gpu File=$work/gpu[0-1]
CONF
export SLURM_CONF=$work/slurm.conf
slurmctld -D >/dev/null 2>&1 &
started+=($!)
for node in "$host" "$host-2"; do
  slurmd -D -N "$node" >/dev/null 2>&1 &
  started+=($!)
done
for _ in $(seq 60); do
  [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ] && break
  sleep 1
done
[ "$(sinfo -h -t idle -o %D)" = 2 ] || fail "SLURM did not come up"
echo "SLURM $(sinfo --version | cut -d' ' -f2) is up with two nodes"

# A command `rdro` and an environment to activate, without installing anything.
mkdir -p "$work/env/bin"
# shellcheck disable=SC2016  # for the shell that activates it
printf 'export PATH=%q:$PATH PYTHONPATH=%q JAX_PLATFORMS=cpu\n' "$work/env/bin" "$PWD${PYTHONPATH:+:$PYTHONPATH}" >"$work/env/bin/activate"
printf '#!/bin/bash\nexec %q -m rdro_jax.cli "$@"\n' "$python" >"$work/env/bin/rdro"
chmod +x "$work/env/bin/rdro"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} JAX_PLATFORMS=cpu
export JAX_COMPILATION_CACHE_DIR=$work/cache JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
"$python" -m benchmarks.sweep_task "$work/task" >/dev/null

# Rendered for three machines; what differs between jobs beyond that is put in by sed, as `rdro launch` takes seconds.
long=(num_train_epochs=20 checkpoint.save_steps=20) # 240 steps of some milliseconds: a signal meets a run that goes on
render() { # gpus nodes -> script on stdout, of a run in OUTPUT
  cat >"$work/cluster.yaml" <<CONF
cluster: {name: slurm, partition: gpu, nodes: $2, gpus_per_node: $1, cpus_per_node: 1, hours: 1, environment: $work/env}
CONF
  "$python" -m rdro_jax.cli launch slurm "$work/task/run.yaml" output_dir=OUTPUT "${long[@]}" --cluster "$work/cluster.yaml" --dry-run | sed 1d
}
render 2 2 >"$work/good.sbatch"
refused() { # what, a change of the good script
  sed "$2" "$work/good.sbatch" >"$work/bad.sbatch"
  cmp -s "$work/good.sbatch" "$work/bad.sbatch" && fail "nothing changed by $2"
  sbatch --test-only "$work/bad.sbatch" >/dev/null 2>&1 && fail "$1 are accepted"
  true
}
sbatch --test-only "$work/good.sbatch" >/dev/null 2>&1 || fail "a job that fits is refused: $(sbatch --test-only "$work/good.sbatch" 2>&1)"
refused "three GPUs of two" s/gpu:2/gpu:3/
refused "three nodes of two" s/nodes=2/nodes=3/
refused "more cores than a node has" s/cpus-per-task=1/cpus-per-task=999/
refused "nodes of no partition" s/partition=gpu/partition=nowhere/
echo "sbatch accepts the script that fits and refuses four that do not"

submit() { sbatch --parsable --output="$work/job-%j.log" "$1"; }
wait_for() { # what, a command that succeeds when it is so
  for _ in $(seq 3000); do
    if "${@:2}"; then return; fi
    sleep 0.1
  done
  fail "waited in vain for $1"
}
lines() { [ -f "$1/metrics.jsonl" ] && [ "$(wc -l <"$1/metrics.jsonl")" -ge "$2" ]; }
finished() { [ -f "$1/result.json" ]; }
# A requeued job would wait two minutes, and have the limit that the test has cut. At once it must not start: its nodes
# refuse what was signed in the second of the requeue ("job credential revoked").
restarted() { # job, times
  local told
  told=$(scontrol show job "$1")
  case $told in
    *JobState=PENDING*)
      sleep 3
      scontrol update "JobId=$1" StartTime=now TimeLimit=60 2>/dev/null || true
      ;;
  esac
  grep -qE "JobState=(RUNNING|COMPLETED)" <<<"$told" && [ "$(grep -oP 'Restarts=\K\d+' <<<"$told")" -ge "$2" ]
}
same() { # as the injected faults compare: parameters, moments, loss state, keys, data position, metrics without times
  PYTHONPATH=$PYTHONPATH:tests:tests/faults "$python" - "$work/$1" "$work/$2" <<'PYTHON'
import sys
from pathlib import Path
from driver import same
sys.exit(not same(*map(Path, sys.argv[1:])))
PYTHON
}
scored() { cat "$@" | grep -c "computing the others"; } # files of rows whose reference log-probs a log says were computed
requeued() { # job, code
  grep -q "ended with code $2; requeued" "$work/job-$1.log" ||
    fail "no requeue after code $2: $(grep -h "requeued\|rdro: error" "$work/job-$1.log")"
}
rank() { # job, rank -> process id
  for process in $(pgrep -f "rdro_jax.cli train"); do
    if tr '\0' '\n' <"/proc/$process/environ" 2>/dev/null | grep -cxE "SLURM_JOB_ID=$1|SLURM_PROCID=$2" | grep -qx 2; then
      echo "$process"
    fi
  done
}

render 0 2 >"$work/rendered-2"
for name in whole hurt late; do sed "s,OUTPUT,$work/$name," "$work/rendered-2" >"$work/$name.sbatch"; done
sed -i s/save_steps=20/save_steps=2/ "$work/late.sbatch" # a step takes longer so, and gives what it gives
job=$(submit "$work/whole.sbatch")
wait_for "the run that is left alone" finished "$work/whole"
grep -q "in 2 processes" "$work/job-$job.log" || fail "two nodes are not one run"
echo "a job of two nodes trains, as one run of two processes ($SECONDS s)"

# SLURM looks at limits twice a minute, and sends its signal 180 seconds before one. Until that has come the run is held:
# it works for a moment every eight seconds, as its processes give up one that does not answer for 25.
late=$(submit "$work/late.sbatch")
wait_for "its first steps" lines "$work/late" 3
scancel --signal=STOP "$late.0"
scontrol update "JobId=$late" TimeLimit=3
(
  held=("$(rank "$late" 0)" "$(rank "$late" 1)")
  for _ in 1 2 3 4 5; do
    sleep 8
    kill -CONT "${held[@]}" 2>/dev/null || break # it has heard the signal, and ended
    sleep 0.2
    kill -STOP "${held[@]}" 2>/dev/null || break
  done
  kill -CONT "${held[@]}" 2>/dev/null || true
  wait_for "the requeue before the time limit" restarted "$late" 1
) &
requeue=$!

job=$(submit "$work/hurt.sbatch")
wait_for "its first steps" lines "$work/hurt" 3
scancel --signal=TERM "$job"
wait_for "the requeue after SIGTERM" restarted "$job" 1
wait_for "its next steps" lines "$work/hurt" 60
kill -KILL "$(rank "$job" 1)"
wait_for "the requeue after SIGKILL of rank 1" restarted "$job" 2
wait_for "its end" finished "$work/hurt"
same whole hurt || fail "the run that was told to stop and killed differs"
requeued "$job" 42
requeued "$job" 137
echo "told to stop, then with one rank killed, it is requeued twice and ends in the same state ($SECONDS s)"

cat >"$work/array.yaml" <<CONF
base: $work/task/run.yaml
set: {num_train_epochs: 20, checkpoint: {save_steps: 1}} # a trial takes longer so, and is still there to be taken away
output_dir: $work/array
space: {loss: {rdro: {alpha: {choice: [0.3, 0.6]}}}}
sampler: {name: grid}
CONF
cat >"$work/cluster.yaml" <<CONF
cluster: {name: slurm, partition: gpu, gpus_per_node: 0, cpus_per_node: 1, hours: 1, environment: $work/env,
  settings: [logging_steps=2]}
CONF
"$python" -m rdro_jax.cli launch slurm "$work/array.yaml" --cluster "$work/cluster.yaml" --dry-run | sed 1d >"$work/array.sbatch"
sbatch --test-only "$work/array.sbatch" >/dev/null 2>&1 || fail "an array that fits is refused"
sed s/cpus-per-task=1/cpus-per-task=999/ "$work/array.sbatch" >"$work/bad.sbatch"
sbatch --test-only "$work/bad.sbatch" >/dev/null 2>&1 && fail "an array that does not fit is accepted"
job=$(sbatch --parsable --output="$work/job-%A_%a.log" "$work/array.sbatch")
wait_for "the second task's first steps" lines "$work/array/trials/0001" 3
scancel --signal=TERM "${job}_2"
wait_for "the requeue of the second task" restarted "${job}_2" 1
wait_for "the end of the first task" finished "$work/array/trials/0000"
wait_for "the end of the second task" finished "$work/array/trials/0001"
requeued "${job}_2" 42
metrics=$work/array/trials/0000/metrics.jsonl
if grep -q '"step": 1[,}]' "$metrics" || ! grep -q '"step": 2[,}]' "$metrics"; then fail "the cluster's settings did not reach a task"; fi
[ "$(scored "$work"/job-"$job"_*.log)" -eq 2 ] || fail "reference log-probs of the two files were not computed once"
echo "a sweep's array of two tasks prepares once, and the one told to stop is requeued and finishes ($SECONDS s)"

wait "$requeue" || exit 1
wait_for "its end" finished "$work/late"
same whole late || fail "the run whose time was up differs"
requeued "$late" 42
echo "a run of two nodes whose time is up saves, is requeued and ends in the same state ($SECONDS s)"

render 0 1 | sed "s,OUTPUT,$work/faulty data.train=$work/none.jsonl," >"$work/faulty.sbatch"
job=$(submit "$work/faulty.sbatch")
wait_for "a run with a fault" bash -c "scontrol show job $job | grep -q JobState=FAILED"
scontrol show job "$job" | grep -q "Restarts=0" || fail "code 3 was requeued"
scontrol show job "$job" | grep -q "ExitCode=3:0" || fail "code 3 was not passed on"
echo "a run that ends with code 3 is not requeued ($SECONDS s)"

if ! "$python" -c "import optuna, submitit" 2>/dev/null; then
  echo "notice: no optuna or submitit for $python; the sweep was not checked"
  exit 0
fi
cat >"$work/sweep.yaml" <<CONF
base: $work/task/run.yaml
set: {num_train_epochs: 20, checkpoint: {save_steps: 1}} # a trial takes longer so, and is still there to be taken away
output_dir: $work/sweep
space:
  optimizer: {learning_rate: {range: [1.0e-3, 3.0e-3]}}
  loss: {rdro: {alpha: {range: [0.3, 0.7]}}}
  seed: {choice: [1, 2, 3, 4, 5, 6, 7, 8]}
sampler: {name: random}
trials: 3
parallel: 2
executor: {name: slurm, timeout_min: 30, options: {slurm_partition: gpu, cpus_per_task: 1}}
CONF
programs() { find "$work/cache" -name 'jit_train_step-*-cache' | wc -l; }
compiled=$(programs)
[ "$compiled" -gt 0 ] || fail "no compiled program was kept"
"$python" -m rdro_jax.cli sweep "$work/sweep.yaml" >"$work/sweep.log" 2>&1 &
coordinator=$!
wait_for "its first job" test -f "$work/sweep/trials/0001/job.json"
kill -KILL "$coordinator"
wait "$coordinator" || true
"$python" -m rdro_jax.cli sweep "$work/sweep.yaml" >>"$work/sweep.log" 2>&1 &
coordinator=$!
wait_for "the sweep's first steps" lines "$work/sweep/trials/0000" 21
job=$(grep -oP '\d+' "$work/sweep/trials/0000/job.json")
scontrol requeue "$job" || fail "the job of trial 0 cannot be requeued"
# What SLURM sends before the time limit, as submitit asked it to; submitit saves and requeues by itself.
wait_for "the first steps of the second trial" lines "$work/sweep/trials/0001" 21
second=$(grep -oP '\d+' "$work/sweep/trials/0001/job.json")
scancel --signal=USR2 "$second" || fail "the job of trial 1 is gone"
wait_for "the requeue of a preempted trial" restarted "$job" 1
wait_for "the requeue that submitit asks for" restarted "$second" 1
wait "$coordinator" || fail "the sweep ended with code $?"
grep -rqs "Requeued job $second" "$work/sweep/slurm" || fail "it was not submitit that requeued the second trial"
[ "$(grep -c '"state": "complete"' "$work/sweep/results.jsonl")" -eq 3 ] || fail "not three trials are complete"
for trial in 0000 0001; do
  # One that has ended by the time it is taken away has nothing to go on with, and says so.
  grep -Eq "resuming after step|this run is finished" "$work/sweep/trials/$trial/log.txt" ||
    fail "trial $trial, taken away, began anew: $(tail -n 5 "$work/sweep/trials/$trial/log.txt")"
done
[ "$(programs)" -eq "$compiled" ] || fail "trials that differ in a number compiled a program of their own"
[ "$(scored "$work"/sweep/trials/*/log.txt)" -eq 2 ] || fail "reference log-probs of the two files were not computed once"
[ "$(find "$work/sweep/slurm" -name '*_submitted.pkl' | wc -l)" -eq 3 ] || fail "a trial was submitted twice"
echo "a sweep of three trials by submitit survives a preemption, the signal of a time limit and the death of its coordinator ($SECONDS s)"
