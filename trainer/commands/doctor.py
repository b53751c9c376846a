"""`asymdiffrec doctor`: versions that fit each other, FBGEMM's operators, devices, Ray; and how to mend them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import typer

from asymdiffrec.trainer.commands.options import AsJson
from asymdiffrec.trainer.console import print_json

TOGETHER = {"torch": "2.13.0", "torchrec": "1.8.0"}
RAY = "2.60.0"
FBGEMM = "1.8.0"
INSTALL = (
    "pip install torch==2.13.0 {fbgemm}==1.8.0 && pip install --no-deps torchrec==1.8.0 "
    "(torchrec's own dependencies would bring the CUDA build of FBGEMM)"
)


@dataclass(frozen=True)
class Finding:
    name: str
    sound: bool
    found: str
    mend: str = ""


def doctor(as_json: AsJson = False) -> None:
    """Check that the environment is sound: versions that fit each other, FBGEMM's operators, devices, Ray."""
    findings = examine()
    if as_json:
        print_json(
            {"sound": all(finding.sound for finding in findings), "checks": [finding.__dict__ for finding in findings]}
        )
    else:
        for finding in findings:
            print(
                f"{'ok  ' if finding.sound else 'FAIL'} {finding.name}: {finding.found}"
                + (f"\n     mend: {finding.mend}" if finding.mend else "")
            )
    if not all(finding.sound for finding in findings):
        raise typer.Exit(1)


def examine() -> list[Finding]:
    """One finding for each thing that training needs."""
    return [_guarded(check) for check in (python, packages, fbgemm_build, fbgemm_operators, devices, ray_runtime)]


def _guarded(check: Callable[[], Finding]) -> Finding:
    """A check that breaks is itself a finding: the doctor must not fail on the patient's illness."""
    try:
        return check()
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        return Finding(check.__name__.replace("_", " "), False, f"{type(error).__name__}: {text}", _install_line())


def python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        "python", sys.version_info >= (3, 11), found, "" if sys.version_info >= (3, 11) else "use Python 3.11 or newer"
    )


def packages() -> Finding:
    found = {name: _version(name) for name in TOGETHER}
    sound = all((found[name] or "").split("+")[0] == wanted for name, wanted in TOGETHER.items())
    text = ", ".join(f"{name} {found[name] or 'is not installed'}" for name in found)
    return Finding("torch and torchrec", sound, text, "" if sound else _install_line())


def fbgemm_build() -> Finding:
    found = {name: _version(name) for name in ("fbgemm-gpu-cpu", "fbgemm-gpu") if _version(name)}
    sound = list(found.values()) == [FBGEMM]
    text = ", ".join(f"{name} {number}" for name, number in found.items()) or "is not installed"
    if len(found) > 1:
        text += ": one has overwritten the other"
    mend = "" if sound else f"pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu; {_install_line()}"
    return Finding("fbgemm", sound, text, mend)


def fbgemm_operators() -> Finding:
    """A pooled look-up with a fused optimizer step, by the operators that training uses."""
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    cuda = torch.cuda.is_available()
    location = EmbeddingLocation.DEVICE if cuda else EmbeddingLocation.HOST
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(4, 4, location, ComputeDevice.CUDA if cuda else ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ADAGRAD,
        learning_rate=0.1,
    )
    device = torch.device("cuda" if cuda else "cpu")
    before = table.split_embedding_weights()[0].detach().clone()
    table(torch.tensor([1, 2], device=device), torch.tensor([0, 2], device=device)).sum().backward()
    changed = (table.split_embedding_weights()[0] != before).any(dim=1).tolist()
    sound = changed == [False, True, True, False]
    text = "look-up and fused Adagrad work" if sound else f"rows updated: {changed}"
    return Finding("fbgemm operators", sound, f"{text} on {device.type}", "" if sound else _install_line())


def devices() -> Finding:
    import os

    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0))
    gpus = f"{len(names)} GPUs ({', '.join(sorted(set(names)))})" if names else "no GPU"
    mend = ""
    if names and _version("fbgemm-gpu-cpu"):
        mend = f"pip uninstall -y fbgemm-gpu-cpu; {_install_line()}"
    return Finding("devices", not mend, f"{cores} CPU cores, {gpus}", mend)


def ray_runtime() -> Finding:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    found = _version("ray")
    sound = found == RAY and callable(DataParallelTrainer.fit)
    return Finding("ray", sound, str(found), "" if sound else f'pip install "ray[train]=={RAY}"')


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _install_line() -> str:
    try:
        import torch

        cuda = torch.cuda.is_available()
    except ImportError:
        cuda = False
    return INSTALL.format(fbgemm="fbgemm-gpu" if cuda else "fbgemm-gpu-cpu")
