"""`make launch-check`: every file of launch/ passes its validator, and a damaged copy of each does not.

Runs in an environment of its own (tests/launch/requirements.txt), hence without pytest and without rdro_jax.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HOME"] = tempfile.mkdtemp()  # SkyPilot writes into it
import kubernetes_validate
import sky
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

LAUNCH = Path(__file__).parents[2] / "launch"
KUBERNETES = "1.34"
RESTARTED = {42, 134, 137, 143}
NEVER = [2, 3, 4, 5, 6, 70]


def check_shell(path: Path) -> None:
    """shellcheck's opinion; gcloud's of its commands where gcloud is there."""
    run(Path(sys.executable).with_name("shellcheck"), path)


def check_docker(path: Path) -> None:
    """hadolint's opinion."""
    run(Path(sys.executable).with_name("hadolint"), path)


def check_jobset(path: Path) -> None:
    """JobSet's own model keeps every key; the Job within is strictly valid; codes are treated by the table."""
    document = yaml.safe_load(path.read_text())
    kept = JobsetV1alpha2JobSet.from_dict(document).to_dict()
    assert document["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    lost = sorted(set(keys(document)) - set(keys(kept)))
    assert not lost, f"keys that JobSet does not know: {lost}"
    for job in document["spec"]["replicatedJobs"]:
        spec = job["template"]["spec"]
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, "spec": spec}
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)
        [rule] = spec["podFailurePolicy"]["rules"]
        assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", NEVER)
        assert spec["template"]["spec"]["restartPolicy"] == "Never", "a pod failure policy wants it"
    policy = document["spec"]["failurePolicy"]
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    assert policy["maxRestarts"] > 0


def check_kueue(path: Path) -> None:
    """The objects that Kueue needs, each naming one that is there."""
    objects = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(path.read_text())}
    assert all(each["apiVersion"].startswith("kueue.x-k8s.io/v1") for each in objects.values())
    flavours = {name for kind, name in objects if kind == "ResourceFlavor"}
    queue = next(each for (kind, _), each in objects.items() if kind == "ClusterQueue")
    for group in queue["spec"]["resourceGroups"]:
        for flavour in group["flavors"]:
            assert flavour["name"] in flavours, flavour["name"]
            assert [resource["name"] for resource in flavour["resources"]] == group["coveredResources"]
    local = next(each for (kind, _), each in objects.items() if kind == "LocalQueue")
    assert ("ClusterQueue", local["spec"]["clusterQueue"]) in objects


def check_sky(path: Path) -> None:
    """SkyPilot reads it; recovery is by the table of exit codes; no secret has a value."""
    task = sky.Task.from_yaml(str(path))
    for resources in task.resources:
        recovery = resources.job_recovery
        assert recovery["strategy"] in ("FAILOVER", "EAGER_NEXT_REGION"), recovery
        assert {*recovery["recover_on_exit_codes"]} == RESTARTED
    assert all(value is None for value in yaml.safe_load(path.read_text()).get("secrets", {}).values())


def keys(node: Any, path: str = "") -> Iterator[str]:
    """Dotted keys of a document, whatever the case of the model that read it."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{path}.{key}"
            yield from keys(value, f"{path}.{key}")
    if isinstance(node, list):
        for index, value in enumerate(node):
            yield from keys(value, f"{path}.{index}")


def run(program: Path, path: Path) -> None:
    """Run a checker. Raises: AssertionError with what it says."""
    done = subprocess.run([program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


CHECKS: list[tuple[str, Callable[[Path], None], list[tuple[str, str]]]] = [
    (
        "slurm/*.sbatch",
        check_shell,
        [('"$SLURM_JOB_ID"', "$SLURM_JOB_ID"), ('"${SLURM_ARRAY_JOB', "${SLURM_ARRAY_JOB"), ("; then", "")],
    ),
    ("tpu_vm/*.sh", check_shell, [('"${WHERE[@]}"', "$WHERE"), ("WHERE=(", "WHERE=((("), ("--zone=us", "--zone=$us")]),
    (
        "docker/Dockerfile*",
        check_docker,
        [("FROM python:3.11.14-slim-bookworm", "FROM python"), ("WORKDIR /work", "WORKDIR work")],
    ),
    (
        "gke/jobset_*.yaml",
        check_jobset,
        [
            ("maxRestarts:", "maxRestart:"),
            ("restartPolicy: Never", "restartPolicy: OnFailure"),
            ("nodeSelector:", "nodeSelektor:"),
            ("[2, 3, 4, 5, 6, 70]", "[2, 3, 4, 5, 6, 42, 70]"),
            ("replicas: ", "replicas: a"),
        ],
    ),
    ("gke/kueue.yaml", check_kueue, [("clusterQueue: rdro", "clusterQueue: other"), ("- name: h100", "- name: a100")]),
    (
        "skypilot/*.yaml",
        check_sky,
        [
            ("accelerators:", "accelerator:"),
            ("strategy: EAGER_NEXT_REGION", "strategy: HOPE"),
            ("[42, ", "["),
            ("HF_TOKEN: null", "HF_TOKEN: hf_abc"),
            ("mode: MOUNT", "mode: MOUNTED"),
        ],
    ),
]
"""Files, their check, and damages (of which those that a file has room for must each be found)."""


def main() -> None:
    """Check everything; exit code 1 names what was not as it should be."""
    faults, checked, damaged = [], 0, 0
    for pattern, check, damages in CHECKS:
        files = sorted(LAUNCH.glob(pattern))
        assert files, pattern
        for path in files:
            checked += 1
            try:
                check(path)
            except Exception as error:
                faults.append(f"{path}: {error}")
            for old, new in damages:
                if old in path.read_text():
                    damaged += 1
                    faults += found_nothing(path, check, old, new)
    if shutil.which("gcloud") is None:
        print("no gcloud here: its commands were not checked by gcloud itself")
    print(f"{checked} files of launch/ checked, {damaged} damaged copies refused" if not faults else "\n".join(faults))
    sys.exit(bool(faults))


def found_nothing(path: Path, check: Callable[[Path], None], old: str, new: str) -> list[str]:
    """A fault where a damaged copy passes."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_text(path.read_text().replace(old, new))
        try:
            check(copy)
        except Exception:
            return []
    return [f"{path}: passes with {new!r} for {old!r}"]


if __name__ == "__main__":
    main()
