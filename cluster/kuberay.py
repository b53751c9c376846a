"""A Ray job as Kubernetes documents: what `kubectl apply` gives to the KubeRay operator (ray.io/v1, KubeRay 1.1 on)."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.errors import ClusterError

LONGEST_NAME = 47
"""Characters of a RayJob's name: the operator makes longer ones of it"""
FOLDER = "/etc/asymdiffrec"
"""Where the head has the files of the job"""
HEAD = {"cpu": 2, "memory": "8Gi"}
"""For Ray's own processes and the command that starts the workers"""
GPUS_OF_A_MACHINE = 8
KEPT_SECONDS = 3600
"""That the cluster stays, with its logs, after the job has ended"""


@dataclass(frozen=True)
class Pods:
    """What the pods are made of."""

    image: str
    """With this package, its dependencies and Ray"""
    workers: int | None = None
    """In each pod; left out: as many as there are, or eight where they are more and it divides them"""
    memory: str | None = None
    """Of each pod of workers, as Kubernetes writes it: 64Gi"""
    claim: tuple[str, str] | None = None
    """A persistent volume claim and the path where all pods see it"""


def manifest(
    name: str, cluster: ClusterConfig, pods: Pods, arguments: Sequence[str], files: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A ConfigMap with `files`, and a RayJob that runs `asymdiffrec ARGUMENTS`, in which they are named as in FOLDER.

    The entrypoint is one command: of several the operator's submitter would run all but the first by itself. The head
    has no workers. Raises ClusterError where it is not known whether workers have GPUs, or pods of so many
    workers do not make up their number.
    """
    if cluster.gpu is None:
        raise ClusterError("cluster.gpu: say whether each worker has a GPU there, with --set cluster.gpu=true or false")
    few, many = cluster.range.min, cluster.range.max
    each = pods.workers or _each(few, many)
    if few % each or many % each:
        raise ClusterError(f"{few if few == many else f'{few} to {many}'} workers do not fill pods of {each}")
    name = _name(name)
    named = [f"{FOLDER}/{part}" if part in files else part for part in arguments]
    limits: dict[str, Any] = {"cpu": math.ceil(cluster.cpus_per_worker * each)} | (
        {"nvidia.com/gpu": each} if cluster.gpu else {}
    )
    limits |= {"memory": pods.memory} if pods.memory else {}
    head = _pod("ray-head", pods, HEAD, {"job": {"configMap": {"name": name}}}, {"job": FOLDER})
    worker = _pod("ray-worker", pods, limits, {}, {})
    group = {
        "groupName": "workers",
        "replicas": many // each,
        "minReplicas": few // each,
        "maxReplicas": many // each,
        "rayStartParams": {},
        "template": worker,
    }
    spec = {
        "entrypoint": shlex.join(["python", "-m", "asymdiffrec", *named]),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEPT_SECONDS,
        "rayClusterSpec": {
            "rayVersion": version("ray"),
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0", "num-gpus": "0"}, "template": head},
            "workerGroupSpecs": [group],
        },
    }
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": dict(files)},
        {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name}, "spec": spec},
    ]


def _each(few: int, many: int) -> int:
    """As many as one machine mostly has, where that divides both numbers."""
    return math.gcd(few, many) if max(few, many) <= GPUS_OF_A_MACHINE else math.gcd(few, many, GPUS_OF_A_MACHINE)


def _name(name: str) -> str:
    """As Kubernetes takes it: small letters, digits and hyphens, at most LONGEST_NAME."""
    return re.sub("[^a-z0-9-]+", "-", name.lower())[:LONGEST_NAME].strip("-") or "asymdiffrec"


def _pod(
    name: str, pods: Pods, limits: Mapping[str, Any], volumes: Mapping[str, Any], mounts: Mapping[str, str]
) -> dict[str, Any]:
    """A pod template; requests equal limits, so that no pod takes what another was promised."""
    own = {"shm": {"emptyDir": {"medium": "Memory"}}, **volumes}  # NCCL and Ray's object store share memory
    paths = {"shm": "/dev/shm", **mounts}
    if pods.claim:
        claim, path = pods.claim
        own["shared"], paths["shared"] = {"persistentVolumeClaim": {"claimName": claim}}, path
    limits = {key: str(value) for key, value in limits.items()}
    container = {
        "name": name,
        "image": pods.image,
        "resources": {"limits": limits, "requests": dict(limits)},
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, path in paths.items()],
    }
    return {"spec": {"containers": [container], "volumes": [{"name": key, **value} for key, value in own.items()]}}
