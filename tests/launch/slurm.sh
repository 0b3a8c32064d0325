#!/usr/bin/env bash
# A real SLURM on this machine: are the rendered scripts accepted, do runs survive SIGTERM, a killed process and their time
# limit with the parameters of a run that was left alone? Needs root and apt; without them it says so and passes.
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
  cat "$work"/*.log | tail -40
  exit 1
}

# Munge: keys and socket of our own.
mkdir -p "$work"/{state,spool1,spool2,munge,bin}
chmod 711 "$work"
dd if=/dev/urandom of="$work/munge/key" bs=128 count=1 status=none
chmod 400 "$work/munge/key"
chmod 755 "$work/munge"
munged --force --foreground --key-file="$work/munge/key" --socket="$work/munge/socket" --pid-file="$work/munge/pid" \
  --log-file="$work/munged.log" --seed-file="$work/munge/seed" >/dev/null 2>&1 &
started+=($!)

host=$(hostname -s)
cores=$(nproc)
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
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=16821 CPUs=$cores Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=16822 CPUs=$cores Gres=gpu:2 State=UNKNOWN
PartitionName=gpu Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
for device in 0 1; do mknod "$work/gpu$device" c 1 3; done
for node in n1 n2; do mkdir -p "$work/spool$node"; done
cat >"$work/gres.conf" <<CONF
NodeName=n[1-2] Name=gpu File=$work/gpu[0-1]
CONF
export SLURM_CONF=$work/slurm.conf
slurmctld -D >/dev/null 2>&1 &
started+=($!)
for node in n1 n2; do
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

render() { # gpus nodes output_dir words... -> script on stdout
  cat >"$work/cluster.yaml" <<CONF
cluster: {name: slurm, partition: gpu, nodes: $2, gpus_per_node: $1, cpus_per_node: 1, hours: 1, environment: $work/env}
CONF
  "$python" -m rdro_jax.cli launch slurm "$work/task/run.yaml" "output_dir=$3" "${@:4}" --cluster "$work/cluster.yaml" --dry-run | sed 1d
}
render 2 2 "$work/good" >"$work/good.sbatch"
sbatch --test-only "$work/good.sbatch" >/dev/null 2>&1 || fail "a job that fits is refused: $(sbatch --test-only "$work/good.sbatch" 2>&1)"
render 3 1 "$work/bad" >"$work/bad.sbatch"
sbatch --test-only "$work/bad.sbatch" >/dev/null 2>&1 && fail "three GPUs of two are accepted"
render 1 3 "$work/bad" >"$work/bad.sbatch"
sbatch --test-only "$work/bad.sbatch" >/dev/null 2>&1 && fail "three nodes of two are accepted"
sed -i 's/partition=gpu/partition=nowhere/; s/nodes=3/nodes=1/' "$work/bad.sbatch"
sbatch --test-only "$work/bad.sbatch" >/dev/null 2>&1 && fail "an unknown partition is accepted"
echo "sbatch accepts the script that fits and refuses three that do not"

submit() { sbatch --parsable --output="$work/job-%j.log" "$1"; }
wait_for() { # what, a command that succeeds when it is so
  for _ in $(seq 600); do
    if "${@:2}"; then return; fi
    sleep 0.5
  done
  fail "waited in vain for $1"
}
lines() { [ -f "$1/metrics.jsonl" ] && [ "$(wc -l <"$1/metrics.jsonl")" -ge "$2" ]; }
finished() { [ -f "$1/result.json" ]; }
restarted() { scontrol update "JobId=$1" StartTime=now 2>/dev/null || true; [ "$(scontrol show job "$1" | grep -oP 'Restarts=\K\d+')" -ge "$2" ]; }
hash_of() { sha256sum "$1"/model*.safetensors | cut -d' ' -f1 | sha256sum; }

render 0 1 "$work/whole" >"$work/whole.sbatch"
job=$(submit "$work/whole.sbatch")
wait_for "the run that is left alone" finished "$work/whole"

render 0 1 "$work/hurt" >"$work/hurt.sbatch"
job=$(submit "$work/hurt.sbatch")
wait_for "its first steps" lines "$work/hurt" 3
scancel --signal=TERM "$job"
wait_for "the requeue after SIGTERM" restarted "$job" 1
wait_for "its next steps" lines "$work/hurt" 12
scancel --signal=KILL "$job.0" 2>/dev/null || scancel --signal=KILL "$job"
wait_for "the requeue after SIGKILL" restarted "$job" 2
wait_for "its end" finished "$work/hurt"
[ "$(hash_of "$work/whole")" = "$(hash_of "$work/hurt")" ] || fail "the parameters differ"
grep -q "ended with code 42; requeued" "$work/job-$job.log" || fail "SIGTERM did not lead to code 42"
grep -q "ended with code 137; requeued" "$work/job-$job.log" || fail "SIGKILL did not lead to code 137"
echo "a run that was told to stop and then killed is requeued twice and ends with the same parameters"

render 0 1 "$work/task/no" loss.alpha=data data.train="$work/task/none.jsonl" >"$work/faulty.sbatch"
job=$(submit "$work/faulty.sbatch")
wait_for "a run with a fault" bash -c "scontrol show job $job | grep -q JobState=FAILED"
scontrol show job "$job" | grep -q "Restarts=0" || fail "code 3 was requeued"
scontrol show job "$job" | grep -q "ExitCode=3:0" || fail "code 3 was not passed on"
echo "a run that ends with code 3 is not requeued"

if ! "$python" -c "import optuna, submitit" 2>/dev/null; then
  echo "notice: no optuna or submitit for $python; the sweep was not checked"
  exit 0
fi
cat >"$work/sweep.yaml" <<CONF
base: $work/task/run.yaml
output_dir: $work/sweep
space: {optimizer: {learning_rate: {choice: [1.0e-3, 2.0e-3, 3.0e-3]}}}
sampler: {name: grid}
parallel: 2
executor: {name: slurm, timeout_min: 30, options: {slurm_partition: gpu, cpus_per_task: 1}}
CONF
"$python" -m rdro_jax.cli sweep "$work/sweep.yaml" >"$work/sweep.log" 2>&1 &
coordinator=$!
wait_for "the sweep's first steps" lines "$work/sweep/trials/0000" 9
job=$(grep -oP '\d+' "$work/sweep/trials/0000/job.json")
scontrol requeue "$job" || fail "the job of trial 0 cannot be requeued"
wait_for "the requeue of a preempted trial" restarted "$job" 1
wait "$coordinator" || fail "the sweep ended with code $?"
[ "$(grep -c '"state": "complete"' "$work/sweep/results.jsonl")" -eq 3 ] || fail "not three trials are complete"
grep -q "resuming after step" "$work/sweep/trials/0000/log.txt" || fail "the preempted trial began anew"
echo "a sweep of three trials by submitit survives a preemption"
