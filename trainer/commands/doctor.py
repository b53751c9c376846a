"""`asymdiffrec doctor`: check versions, FBGEMM's operators, devices and Ray, and say how to repair what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import typer

from asymdiffrec.trainer.commands.options import AsJson
from asymdiffrec.trainer.console import print_json

MIN_PYTHON = (3, 11)
TORCH_VERSIONS = {"torch": "2.13.0", "torchrec": "1.8.0"}
"""Versions that work together"""
FBGEMM_VERSION = "1.8.0"
RAY_VERSION = "2.60.0"
INSTALL_COMMAND = (
    "pip install torch==2.13.0 {fbgemm}==1.8.0 && pip install --no-deps torchrec==1.8.0 "
    "(the dependencies of torchrec would install the CUDA build of FBGEMM)"
)


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    sound: bool
    """True if the check passed"""
    detail: str
    """Versions and devices of this environment, or the error"""
    repair: str = ""
    """The command or step that repairs the problem; empty if the check passed"""


def doctor(as_json: AsJson = False) -> None:
    """Check versions, FBGEMM's operators, devices and Ray.

    Prints a line for each check, and how to repair what is wrong. Exit status 1 if a check fails.
    """
    checks = run_checks()
    is_sound = all(check.sound for check in checks)
    if as_json:
        print_json({"sound": is_sound, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            print(f"{'ok  ' if check.sound else 'FAIL'} {check.name}: {check.detail}")
            if check.repair:
                print(f"     repair: {check.repair}")
    if not is_sound:
        raise typer.Exit(1)


def run_checks() -> list[Check]:
    """Return the result of every check."""
    checks = (check_python, check_torch, check_fbgemm_build, check_fbgemm_operators, check_devices, check_ray)
    return [_run(check) for check in checks]


def _run(check: Callable[[], Check]) -> Check:
    """Run a check. An exception in it, for example of a broken package, is a failed check."""
    try:
        return check()
    except Exception as error:
        message = (str(error).strip().splitlines() or [""])[0]
        name = check.__name__.removeprefix("check_").replace("_", " ")
        return Check(name, False, f"{type(error).__name__}: {message}", _install_command())


def check_python() -> Check:
    """Check the version of Python."""
    installed = ".".join(map(str, sys.version_info[:3]))
    is_sound = sys.version_info >= MIN_PYTHON
    return Check("python", is_sound, installed, "" if is_sound else "use Python 3.11 or newer")


def check_torch() -> Check:
    """Check that the versions of torch and torchrec work together."""
    installed = {name: _version(name) for name in TORCH_VERSIONS}
    is_sound = all((installed[name] or "").split("+")[0] == wanted for name, wanted in TORCH_VERSIONS.items())
    text = ", ".join(f"{name} {installed[name] or 'is not installed'}" for name in installed)
    return Check("torch and torchrec", is_sound, text, "" if is_sound else _install_command())


def check_fbgemm_build() -> Check:
    """Check that exactly one of FBGEMM's two builds is installed, in the required version."""
    installed = {name: _version(name) for name in ("fbgemm-gpu-cpu", "fbgemm-gpu") if _version(name)}
    is_sound = list(installed.values()) == [FBGEMM_VERSION]
    text = ", ".join(f"{name} {number}" for name, number in installed.items()) or "is not installed"
    if len(installed) > 1:
        text += ": one has overwritten the other"
    repair = "" if is_sound else f"pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu; {_install_command()}"
    return Check("fbgemm", is_sound, text, repair)


def check_fbgemm_operators() -> Check:
    """Check the FBGEMM operators that training uses: a pooled look-up with a fused Adagrad step."""
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    has_gpu = torch.cuda.is_available()
    location = EmbeddingLocation.DEVICE if has_gpu else EmbeddingLocation.HOST
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(4, 4, location, ComputeDevice.CUDA if has_gpu else ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ADAGRAD,
        learning_rate=0.1,
    )
    device = torch.device("cuda" if has_gpu else "cpu")
    before = table.split_embedding_weights()[0].detach().clone()
    table(torch.tensor([1, 2], device=device), torch.tensor([0, 2], device=device)).sum().backward()
    changed = (table.split_embedding_weights()[0] != before).any(dim=1).tolist()
    is_sound = changed == [False, True, True, False]
    text = "look-up and fused Adagrad work" if is_sound else f"wrong rows were updated: {changed}"
    return Check("fbgemm operators", is_sound, f"{text} on {device.type}", "" if is_sound else _install_command())


def check_devices() -> Check:
    """Count CPU cores and GPUs. A host with GPUs needs the CUDA build of FBGEMM."""
    import os

    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0))
    gpus = f"{len(names)} GPUs ({', '.join(sorted(set(names)))})" if names else "no GPU"
    repair = ""
    if names and _version("fbgemm-gpu-cpu"):
        repair = f"pip uninstall -y fbgemm-gpu-cpu; {_install_command()}"
    return Check("devices", not repair, f"{cores} CPU cores, {gpus}", repair)


def check_ray() -> Check:
    """Check the version of Ray and that Ray Train can be imported."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    installed = _version("ray")
    is_sound = installed == RAY_VERSION and callable(DataParallelTrainer.fit)
    return Check("ray", is_sound, str(installed), "" if is_sound else f'pip install "ray[train]=={RAY_VERSION}"')


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _install_command() -> str:
    """Return the command that installs torch, FBGEMM and torchrec on this host."""
    try:
        import torch

        has_gpu = torch.cuda.is_available()
    except ImportError:
        has_gpu = False
    return INSTALL_COMMAND.format(fbgemm="fbgemm-gpu" if has_gpu else "fbgemm-gpu-cpu")
