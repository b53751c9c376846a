"""`submit --kuberay` prints the fields of the operator's RayJob and of Kubernetes' own models of a pod."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import models
from typer.testing import CliRunner

from asymdiffrec.trainer.commands.cli import app
from asymdiffrec.trainer.job import Job

STRINGS = dict[str, str]
RAY_JOB = {
    "entrypoint": str,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": {
        "rayVersion": str,
        "headGroupSpec": {"rayStartParams": STRINGS, "template": models.V1PodTemplateSpec},
        "workerGroupSpecs": [
            {
                "groupName": str,
                "replicas": int,
                "minReplicas": int,
                "maxReplicas": int,
                "rayStartParams": STRINGS,
                "template": models.V1PodTemplateSpec,
            }
        ],
    },
}
"""Fields of the operator's RayJobSpec (API reference of ray.io/v1) that the project uses; all must be present"""


def check(value: Any, kind: Any, path: str) -> None:
    """Assert that a value has a kind: a type, a list or a mapping of kinds, or a model of Kubernetes."""
    if isinstance(kind, dict):
        assert value.keys() == kind.keys(), path
        for key, inner in kind.items():
            check(value[key], inner, f"{path}.{key}")
    elif isinstance(kind, list):
        for index, element in enumerate(value):
            check(element, kind[0], f"{path}[{index}]")
    elif kind == STRINGS:
        assert all(isinstance(part, str) for item in value.items() for part in item), path
    elif isinstance(kind, str):
        check_named(value, kind, path)
    elif hasattr(kind, "openapi_types"):
        attributes = {key: attribute for attribute, key in kind.attribute_map.items()}
        assert value.keys() <= attributes.keys(), path
        for key, inner in value.items():
            check_named(inner, kind.openapi_types[attributes[key]], f"{path}.{key}")
        kind(**{attributes[key]: inner for key, inner in value.items()})  # ValueError if a required key is missing
    else:
        assert type(value) is kind, path


def check_named(value: Any, kind: str, path: str) -> None:
    """Assert a kind by its name in Kubernetes' models: `str`, `list[V1Volume]`, `dict(str, object)`."""
    if inner := re.fullmatch(r"[Ll]ist\[(.+)\]", kind):
        for index, element in enumerate(value):
            check_named(element, inner[1], f"{path}[{index}]")
    elif inner := re.fullmatch(r"[Dd]ict[(\[]str, (.+)[)\]]", kind):
        for key, element in value.items():
            check_named(element, inner[1], f"{path}.{key}")
    elif hasattr(models, kind):
        check(value, getattr(models, kind), path)
    else:
        assert kind in ("str", "int", "bool"), f"{path}: {kind}"
        assert type(value).__name__ == kind, path


@pytest.fixture
def printed(clicks: Path) -> Callable[..., list[dict[str, Any]]]:
    """The documents that `submit --kuberay` prints for the small job with further arguments."""

    def run(*arguments: str) -> list[dict[str, Any]]:
        given = ["submit", str(clicks / "job.yaml"), "--run", "/shared/a run", "--kuberay", "--image", "rec:1"]
        result = CliRunner().invoke(app, [*given, *arguments])
        assert result.exit_code == 0, result.output
        return list(yaml.safe_load_all(result.stdout))

    return run


@pytest.mark.parametrize(
    ("arguments", "pods", "limits"),
    [
        (("--workers", "16", "--set", "cluster.gpu=true"), (2, 2), {"cpu": "8", "nvidia.com/gpu": "8"}),
        (("--workers", "4", "--set", "cluster.gpu=false", "--memory", "64Gi"), (1, 1), {"cpu": "4", "memory": "64Gi"}),
        (
            ("--set", "cluster={workers: {min: 2, max: 8}, gpu: true, cpus_per_worker: 2.5}", "--claim", "nfs:/shared"),
            (1, 4),
            {"cpu": "5", "nvidia.com/gpu": "2"},
        ),
        (("--workers", "6", "--set", "cluster.gpu=false", "--per-pod", "1"), (6, 6), {"cpu": "1"}),
    ],
)
def test_ray_job_has_the_operator_s_fields(
    printed: Callable[..., list[dict[str, Any]]],
    arguments: tuple[str, ...],
    pods: tuple[int, int],
    limits: dict[str, str],
) -> None:
    files, job = printed(*arguments)
    check(job["spec"], RAY_JOB, "spec")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"]["name"] == files["metadata"]["name"]
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == pods
    assert workers["replicas"] == workers["maxReplicas"]
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"] == {"limits": limits, "requests": limits}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in workers["template"]["spec"]["volumes"]}
    assert mounts.get("shared") == ("/shared" if "--claim" in arguments else None)


def test_head_runs_the_job_file_of_the_config_map(printed: Callable[..., list[dict[str, Any]]]) -> None:
    files, job = printed("--workers", "2", "--set", "cluster.gpu=false", "--resume")
    check(files, {"apiVersion": str, "kind": str, "metadata": {"name": str}, "data": STRINGS}, "ConfigMap")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = [volume for volume in head["volumes"] if "configMap" in volume]
    (mount,) = [mount for mount in head["containers"][0]["volumeMounts"] if mount["name"] == volume["name"]]
    assert volume["configMap"]["name"] == files["metadata"]["name"]
    command = shlex.split(job["spec"]["entrypoint"])
    assert command[:4] == ["python", "-m", "asymdiffrec", "train"]
    assert command[4:] == [f"{mount['mountPath']}/job.yaml", "--run", "/shared/a run", "--resume"]
    job_file = Job.model_validate(yaml.safe_load(files["data"]["job.yaml"]))
    assert (job_file.cluster.workers, job_file.cluster.address) == (2, "auto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image", "rec:1"), "cluster.gpu: is not set"),
        (("--set", "cluster.gpu=true"), "needs --image"),
        (("--image", "rec:1", "--set", "cluster.gpu=true", "--claim", "nfs"), "--claim nfs: allowed is NAME:PATH"),
        (
            ("--image", "rec:1", "--set", "cluster.gpu=true", "--workers", "6", "--per-pod", "4"),
            "6 workers do not fill pods of 4",
        ),
    ],
)
def test_wrong_input_is_refused(clicks: Path, arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(
        app, ["submit", str(clicks / "job.yaml"), "--run", "/shared/run", "--kuberay", *arguments]
    )
    assert message in str(result.exception)
