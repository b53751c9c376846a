"""Describe a Ray job as Kubernetes documents for the KubeRay operator (ray.io/v1, KubeRay 1.1 or newer)."""

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

MAX_NAME_LENGTH = 47
"""Maximum length of the name of a RayJob, in characters; the operator appends suffixes for pods and services"""
FILES_FOLDER = "/etc/asymdiffrec"
"""Folder of the job's files on the head pod"""
HEAD_RESOURCES = {"cpu": 2, "memory": "8Gi"}
"""Resources of the head pod: for the processes of Ray and the command that starts the workers"""
MAX_WORKERS_PER_POD = 8
"""Maximum of the default number of workers per pod; many hosts have 8 GPUs"""
KEEP_SECONDS = 3600
"""Seconds after the end of the job until the cluster and its logs are deleted"""


@dataclass(frozen=True)
class PodConfig:
    """Image and resources of the pods."""

    image: str
    """Container image with this package, its dependencies and Ray"""
    workers: int | None = None
    """Number of workers in each pod; None: see `_workers_per_pod`"""
    memory: str | None = None
    """Memory of each pod of workers in the notation of Kubernetes, for example 64Gi"""
    claim: tuple[str, str] | None = None
    """Name of a persistent volume claim, and the path where all pods mount it"""


def manifest(
    name: str, cluster: ClusterConfig, pods: PodConfig, arguments: Sequence[str], files: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return a ConfigMap with `files` and a RayJob that runs `asymdiffrec ARGUMENTS`.

    An argument that is a key of `files` is replaced by the path of the file on the head pod. The head pod runs no
    workers. The entrypoint is a single command: if it had several commands, the operator would run only the last one
    inside Ray.

    Raises ClusterError if `cluster.gpu` is null or the number of workers is not a multiple of the workers per pod.
    """
    if cluster.gpu is None:
        raise ClusterError(
            "cluster.gpu: is not set; add --set cluster.gpu=true or --set cluster.gpu=false for the cluster's workers"
        )
    fewest, most = cluster.worker_range.min, cluster.worker_range.max
    per_pod = pods.workers or _workers_per_pod(fewest, most)
    if fewest % per_pod or most % per_pod:
        workers = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        raise ClusterError(
            f"{workers} workers do not fill pods of {per_pod} workers; set --per-pod to a divisor of the number of "
            "workers"
        )
    name = _kubernetes_name(name)
    command = [f"{FILES_FOLDER}/{argument}" if argument in files else argument for argument in arguments]
    limits: dict[str, Any] = {"cpu": math.ceil(cluster.cpus_per_worker * per_pod)}
    limits |= {"nvidia.com/gpu": per_pod} if cluster.gpu else {}
    limits |= {"memory": pods.memory} if pods.memory else {}
    head = _pod("ray-head", pods, HEAD_RESOURCES, {"job": {"configMap": {"name": name}}}, {"job": FILES_FOLDER})
    worker_group = {
        "groupName": "workers",
        "replicas": most // per_pod,
        "minReplicas": fewest // per_pod,
        "maxReplicas": most // per_pod,
        "rayStartParams": {},
        "template": _pod("ray-worker", pods, limits, {}, {}),
    }
    spec = {
        "entrypoint": shlex.join(["python", "-m", "asymdiffrec", *command]),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEEP_SECONDS,
        "rayClusterSpec": {
            "rayVersion": version("ray"),
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0", "num-gpus": "0"}, "template": head},
            "workerGroupSpecs": [worker_group],
        },
    }
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": dict(files)},
        {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name}, "spec": spec},
    ]


def _workers_per_pod(fewest: int, most: int) -> int:
    """Return the default number of workers per pod: the greatest common divisor of `fewest` and `most`.

    If `most` is above MAX_WORKERS_PER_POD, the result also divides MAX_WORKERS_PER_POD, so no pod is too large.
    """
    return math.gcd(fewest, most) if most <= MAX_WORKERS_PER_POD else math.gcd(fewest, most, MAX_WORKERS_PER_POD)


def _kubernetes_name(name: str) -> str:
    """Return a name that Kubernetes accepts: at most MAX_NAME_LENGTH lower-case letters, digits and hyphens."""
    return re.sub("[^a-z0-9-]+", "-", name.lower())[:MAX_NAME_LENGTH].strip("-") or "asymdiffrec"


def _pod(
    name: str, pods: PodConfig, limits: Mapping[str, Any], volumes: Mapping[str, Any], mounts: Mapping[str, str]
) -> dict[str, Any]:
    """Return a pod template. Requests equal limits, so that Kubernetes never assigns a resource twice."""
    volumes = {"shm": {"emptyDir": {"medium": "Memory"}}, **volumes}  # NCCL and Ray's object store share memory
    paths = {"shm": "/dev/shm", **mounts}
    if pods.claim:
        claim, path = pods.claim
        volumes["shared"], paths["shared"] = {"persistentVolumeClaim": {"claimName": claim}}, path
    limits = {key: str(value) for key, value in limits.items()}
    container = {
        "name": name,
        "image": pods.image,
        "resources": {"limits": limits, "requests": dict(limits)},
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, path in paths.items()],
    }
    return {"spec": {"containers": [container], "volumes": [{"name": key, **value} for key, value in volumes.items()]}}
