"""rayjob.yaml: what KubeRay and Kubernetes ask of it, and that it names the versions of this package."""

from __future__ import annotations

import copy
import os
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray_session import ROOT

TEXT = (ROOT / "rayjob.yaml").read_text()
CLAIM, JOB = yaml.safe_load_all(TEXT)
CLUSTER = JOB["spec"]["rayClusterSpec"]
GROUPS = {"head": CLUSTER["headGroupSpec"]} | {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}
PINNED = dict(re.findall(r'"(ray|torch)(?:\[[\w,]+\])?==([\d.]+)"', (ROOT / "pyproject.toml").read_text()))
DOCKERFILE = (ROOT / "docs/clusters/Dockerfile").read_text()


def closed(schema: Any) -> Any:
    """A schema of Kubernetes as JSON Schema, in which a field that is not named is an error instead of being dropped."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(part) for name, part in schema.items()}
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if made.get("x-kubernetes-int-or-string") is True:
        made.pop("type", None)
    return made


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """KubeRay's own, ray-operator/config/crd/bases/ray.io_rayjobs.yaml of its repository: 1.4 MB, and not kept here."""
    if "KUBERAY_CRD" not in os.environ:
        pytest.skip("KUBERAY_CRD=FILE names the schema of KubeRay's RayJob")
    (version,) = yaml.load(Path(os.environ["KUBERAY_CRD"]).read_text(), yaml.CSafeLoader)["spec"]["versions"][:1]
    assert version["name"] == "v1"
    return closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"])


def test_kuberay_s_schema_takes_it(schema):
    jsonschema.validate(JOB["spec"], schema)
    wrong = copy.deepcopy(JOB["spec"])
    wrong["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["nonsense"] = 1
    with pytest.raises(jsonschema.ValidationError, match="nonsense"):
        jsonschema.validate(wrong, schema)


def test_the_versions_are_those_of_the_package():
    assert CLUSTER["rayVersion"] == PINNED["ray"]
    assert f"FROM rayproject/ray:{PINNED['ray']}-py311-gpu" in DOCKERFILE
    assert f"torch=={PINNED['torch']} " in DOCKERFILE
    images = {container["image"] for group in GROUPS.values() for container in group["template"]["spec"]["containers"]}
    assert images == {f"REGISTRY/indm:ray-{PINNED['ray']}"}
    assert set(re.findall(r"REGISTRY/indm:[\w.-]+", TEXT + DOCKERFILE)) == images


def test_the_image_has_all_of_the_package_and_the_command_starts_there():
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()[1:]}
    assert all((ROOT / name).exists() for name in copied)
    packages = re.findall(r"\"(\w+)\*\"", (ROOT / "pyproject.toml").read_text())
    assert len(packages) == 3
    assert set(packages) < copied
    place = re.search(r"^WORKDIR (.+)$", DOCKERFILE, re.MULTILINE)
    assert place
    for group in GROUPS.values():
        assert group["template"]["spec"]["containers"][0]["workingDir"] == place[1]


def test_the_command_is_one_of_train_s():
    from pipelines.config.terminal.cli import options, override, split_arguments
    from pipelines.recipes import find
    from pipelines.training.launch import Launch

    python, script, *words = shlex.split(JOB["spec"]["entrypoint"])
    assert (python, script) == ("python", "pipelines/train.py")
    (recipe,), given = split_arguments(words)
    run = find(recipe)()
    known = {option.path for option in options(Launch())}
    launch = override(Launch(), {name: text for name, text in given.items() if name in known})
    assert given.keys() - known == {"source"}
    assert (launch.min_workers, launch.workers, launch.device) == (1, 4, "cuda")
    assert run.train.batch_size % launch.workers == 0
    assert GROUPS["gpu"]["minReplicas"] == launch.min_workers  # fewer GPUs are refused
    assert GROUPS["gpu"]["maxReplicas"] == launch.workers


def test_all_machines_write_where_the_command_does():
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]
    words = shlex.split(JOB["spec"]["entrypoint"])
    given = dict(pairwise(words))
    for group in GROUPS.values():
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert volumes[mounts["/mnt/indm"]]["persistentVolumeClaim"] == {"claimName": CLAIM["metadata"]["name"]}
        assert all(Path("/mnt/indm") in Path(given[option]).parents for option in ("--out", "--source"))
        assert "emptyDir" in volumes[mounts[group["rayStartParams"]["object-spilling-directory"]]]


def test_a_job_goes_on_in_a_new_cluster_and_nobody_enters_without_the_token():
    assert JOB["spec"]["backoffLimit"] >= 1
    assert JOB["spec"]["shutdownAfterJobFinishes"]
    assert CLUSTER["authOptions"] == {"mode": "token", "secretName": "indm-token"}
    assert "create secret generic indm-token --from-literal=auth_token=" in TEXT


@pytest.mark.parametrize("name", GROUPS)
def test_a_pod_is_no_root_and_has_what_it_asks_for(name):
    group = GROUPS[name]
    pod, (container,) = group["template"]["spec"], group["template"]["spec"]["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name == "gpu")
    assert pod["restartPolicy"] == "Never"  # what autoscaler v2 asks for
    assert group["labels"] == {"indm/kind": name}
    if name == "head":
        assert group["rayStartParams"]["num-cpus"] == "0"
    else:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert not pod["automountServiceAccountToken"]
