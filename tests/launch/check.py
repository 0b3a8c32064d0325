"""`make launch-check`: every file of launch/ passes its validator, and a damaged copy of each does not.

Runs in an environment of its own (tests/launch/requirements.txt), hence without pytest and without rdro_jax.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
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
    """shellcheck's opinion."""
    run(Path(sys.executable).with_name("shellcheck"), path)


def check_tpu_vm(path: Path) -> None:
    """shellcheck's opinion, and gcloud's of its own commands where gcloud is there."""
    check_shell(path)
    text = re.sub(r" \\\n\s*", " ", path.read_text())
    where = re.search(r"^WHERE=\((.*)\)$", text, re.M)
    text = text.replace('"${WHERE[@]}"', where[1] if where else "").replace("$NAME", "name").replace("$HERE", "/here")
    commands = [
        line.split("2>")[0] for line in re.findall(r"^(?!\s*(?:#|echo)).*?\b(gcloud [^|;)\n]*\)?'?)", text, re.M)
    ]
    if not commands or shutil.which("gcloud") is None:
        return
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([{"command_string": each.strip()} for each in commands], file)
        file.flush()
        lint = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file.name}"]
        opinions = json.loads(subprocess.run(lint, capture_output=True, text=True, check=True).stdout)
    assert len(opinions) == len(commands)
    for each in opinions:
        assert each["success"], f"{each['command_string']}: {each['error_message']}"


def check_docker(path: Path) -> None:
    """hadolint's opinion; what the image copies is a package that builds, with the extras the image installs.

    Their packages are resolved by `make setup`, under the same constraints; no image is built here.
    """
    run(Path(sys.executable).with_name("hadolint"), path)
    text = path.read_text()
    [copied] = re.findall(r"^COPY (.*) \./$", text, re.M)
    [extras] = re.findall(r"^RUN python -m pip install -c constraints.txt '\.\[(.*?)\]'", text, re.M)
    known = extras_of(copied)
    assert {*extras.split(",")} <= {*known}, known


@functools.cache
def extras_of(copied: str) -> list[str]:
    """Extras of the package that builds from these files and rdro_jax/ alone. Raises: AssertionError if none does."""
    with tempfile.TemporaryDirectory() as folder:
        for name in copied.split():
            shutil.copy(LAUNCH.parent / name, folder)
        shutil.copytree(LAUNCH.parent / "rdro_jax", f"{folder}/rdro_jax")
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*pip, "."], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert Path(folder, "constraints.txt").exists()
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            [metadata] = [name for name in files.namelist() if name.endswith("/METADATA")]
            return re.findall(r"^Provides-Extra: (.*?)\r?$", files.read(metadata).decode(), re.M)


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
        assert spec["template"]["spec"]["securityContext"]["fsGroup"] == 1000, "the user of launch/docker writes there"
    policy = document["spec"]["failurePolicy"]
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    assert policy["maxRestarts"] > 0


KUEUE = {
    "ResourceFlavor": {"metadata.name", "spec.nodeLabels"},
    "ClusterQueue": {
        *("metadata.name", "spec.namespaceSelector", "spec.preemption.withinClusterQueue"),
        *("spec.resourceGroups.coveredResources", "spec.resourceGroups.flavors.name"),
        *(f"spec.resourceGroups.flavors.resources.{key}" for key in ("name", "nominalQuota")),
    },
    "LocalQueue": {"metadata.name", "metadata.namespace", "spec.clusterQueue"},
}
"""Keys of each kind of object in kueue.yaml, those and no other: Kueue publishes no models for Python."""


def check_kueue(path: Path) -> None:
    """The objects that Kueue needs, with the keys they have there, each naming one that is there."""
    for each in yaml.safe_load_all(path.read_text()):
        known = {"apiVersion", "kind", *KUEUE[each["kind"]]}
        found = {key for key in leaves(each) if not key.startswith("spec.nodeLabels.")}
        found |= {"spec.nodeLabels"} if each.get("spec", {}).get("nodeLabels") else set()
        assert found == known, f"{each['kind']}: {sorted(found ^ known)}"
    objects = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(path.read_text())}
    assert all(each["apiVersion"].startswith("kueue.x-k8s.io/v1") for each in objects.values())
    flavours = {name for kind, name in objects if kind == "ResourceFlavor"}
    queue = next(each for (kind, _), each in objects.items() if kind == "ClusterQueue")
    for group in queue["spec"]["resourceGroups"]:
        for flavour in group["flavors"]:
            assert flavour["name"] in flavours, flavour["name"]
            assert [resource["name"] for resource in flavour["resources"]] == group["coveredResources"]
            assert all(type(resource["nominalQuota"]) is int for resource in flavour["resources"])
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


def leaves(node: Any, path: str = "") -> Iterator[str]:
    """Dotted keys of the values of a document, whatever their place in a list."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else key)
    elif isinstance(node, list) and node and isinstance(node[0], dict):
        for each in node:
            yield from leaves(each, path)
    else:
        yield path


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
    (
        "tpu_vm/*.sh",
        check_tpu_vm,
        [
            ('"${WHERE[@]}"', "$WHERE"),
            ("--zone=us", "--zone=$us"),
            ("; then", ""),
            *([("--force", "--forced"), ("--node-id", "--nodeid")] if shutil.which("gcloud") else []),
        ],
    ),
    (
        "docker/Dockerfile*",
        check_docker,
        [
            ("FROM python:3.11.14-slim-bookworm", "FROM python"),
            ("WORKDIR /work", "WORKDIR work"),
            (" README.md", ""),
            (".[data,", ".[dat,"),
        ],
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
            ("fsGroup:", "fsGroop:"),
        ],
    ),
    (
        "gke/kueue.yaml",
        check_kueue,
        [
            ("clusterQueue: rdro", "clusterQueue: other"),
            ("- name: h100", "- name: a100"),
            ("nominalQuota: 16", "nominalQuotta: 16"),
            ("nodeLabels:", "nodeLabel:"),
            ("withinClusterQueue:", "withinQueue:"),
        ],
    ),
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
"""Files, their check, and damages: of a file those it has room for, one at least; each is used and must be found."""


def main() -> None:
    """Check everything; exit code 1 names what was not as it should be."""
    faults, checked, damaged = [], 0, 0
    for pattern, check, damages in CHECKS:
        files = sorted(LAUNCH.glob(pattern))
        assert files, pattern
        unused = {*damages}
        for path in files:
            checked += 1
            faults += fault_of(path, check)
            done = [damage for damage in damages if damage[0] in path.read_text()]
            assert done, f"{path}: no damage for it"
            unused -= {*done}
            damaged += len(done)
            faults += [fault for damage in done for fault in found_nothing(path, check, *damage)]
        assert not unused, f"{pattern}: no file to damage by {unused}"
    if shutil.which("gcloud") is None:
        print("no gcloud here: its commands were not checked by gcloud itself")
    print(f"{checked} files of launch/ checked, {damaged} damaged copies refused" if not faults else "\n".join(faults))
    sys.exit(bool(faults))


def fault_of(path: Path, check: Callable[[Path], None]) -> list[str]:
    """What a check has against a file."""
    try:
        check(path)
    except Exception as error:
        return [f"{path}: {error!r}"]
    return []


def found_nothing(path: Path, check: Callable[[Path], None], old: str, new: str) -> list[str]:
    """A fault where a damaged copy passes."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_text(path.read_text().replace(old, new))
        return [] if fault_of(copy, check) else [f"{path}: passes with {new!r} for {old!r}"]


if __name__ == "__main__":
    main()
