"""Devices that can be rented, and clusters of them, with the few figures that a plan depends on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import yaml
from pydantic import ConfigDict, Field, ValidationError
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.planner.types import HardwareConfig, KernelConfig, Topology, TopologyFactory, TrainerConfig

from asymdiffrec.base import Config, InputError

GB = 10**9


class Device(Config):
    """One accelerator with its share of the machine around it. Bandwidths are those of one direction."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str
    kind: Literal["cuda", "cpu"] = "cuda"
    memory: float = Field(gt=0, description="GB; of a CPU worker, its share of the machine's")
    bandwidth: float = Field(gt=0, description="GB/s of its memory")
    flops: float = Field(gt=0, description="dense TFLOP/s, in bf16 where it has that")
    link: float = Field(gt=0, description="GB/s to the other devices of its machine")
    nic: float = Field(gt=0, description="GB/s to other machines")
    host_memory: float = Field(0.0, ge=0, description="GB of the machine's memory that are its share")
    host_link: float = Field(32.0, gt=0, description="GB/s to the machine's memory")
    efficiency: float = Field(
        default_factory=lambda figures: 0.630 if figures.get("kind") == "cuda" else 1.0,
        gt=0,
        le=1,
        description="what of the figures above a step reaches; 1 where they were measured",
    )
    overhead: float = Field(
        default_factory=lambda figures: 0.696 if figures.get("kind") == "cuda" else 0.0,
        ge=0,
        description="ms that a step takes however small it is",
    )


DEVICES = {
    device.name: device
    for device in (
        Device(name="a100-40", memory=40, bandwidth=1555, flops=312, link=300, nic=25, host_memory=125, host_link=32),
        Device(name="a100-80", memory=80, bandwidth=2039, flops=312, link=300, nic=25, host_memory=250, host_link=32),
        Device(name="h100", memory=80, bandwidth=3350, flops=989, link=450, nic=50, host_memory=250, host_link=64),
        Device(name="h200", memory=141, bandwidth=4800, flops=989, link=450, nic=50, host_memory=250, host_link=64),
        Device(name="b200", memory=180, bandwidth=8000, flops=2250, link=900, nic=50, host_memory=250, host_link=64),
        Device(name="l4", memory=24, bandwidth=300, flops=121, link=32, nic=12.5, host_memory=48, host_link=32),
        Device(name="l40", memory=48, bandwidth=864, flops=181, link=32, nic=25, host_memory=128, host_link=32),
        Device(name="cpu", kind="cpu", memory=64, bandwidth=50, flops=1, link=5, nic=1.25),
    )
}
"""From NVIDIA's data sheets: memory, bandwidth and dense bf16 of the SXM modules and of the cards L4 and L40; NVLink 3,
4 and 5 at half of their bidirectional 600, 900 and 1,800 GB/s, PCIe 4 x16 where there is none. The machines are DGX
A100 (1 and 2 TB, HDR), DGX H100, H200 and B200 (2 TB, NDR, PCIe 5), a NIC for each module; for L4 and L40 a common
server is assumed, with 100 and 200 Gbit/s a card. `cpu` is a guess at a worker on 16 cores of a server with Ethernet.
Efficiency and overhead of GPUs are from two published MLPerf figures, as `benchmarks/plan_world.py` says; for CPUs none
are published.
"""


def device_of(name: str) -> Device:
    """The device of a name in DEVICES, or of a YAML file with a Device's keys. Raises InputError for anything else."""
    if name in DEVICES:
        return DEVICES[name]
    file = Path(name)
    if not file.is_file():
        raise InputError(
            f"{name}: no such device; known are {', '.join(DEVICES)}, or a YAML file with a device's figures"
        )
    try:
        return Device.model_validate({"name": file.stem, **yaml.safe_load(file.read_text())})
    except (yaml.YAMLError, TypeError) as error:
        raise InputError(f"{name}: not YAML with a device's figures") from error
    except ValidationError as error:
        (first, *_) = error.errors()
        raise InputError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error


@dataclass(frozen=True)
class Cluster:
    """Machines with `per_node` devices each. Raises ValueError where that makes none."""

    device: Device
    nodes: int
    per_node: int

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.per_node < 1:
            raise ValueError(f"{self.nodes} nodes of {self.per_node} GPUs: at least one of each is needed")

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node

    def topology(self, reserved: float) -> Topology:
        """TorchRec's topology, whose devices lack `reserved` bytes of their memory."""
        device, free = self.device, max(0, int(self.device.memory * GB - reserved))
        on_cpu = device.kind == "cpu"
        return TopologyFactory.create_topology(
            TrainerConfig(world_size=self.ranks, local_world_size=self.per_node),
            HardwareConfig(
                hbm_cap_bytes=0 if on_cpu else free,
                ddr_cap_bytes=free if on_cpu else int(device.host_memory * GB),
                intra_host_bw=_per_millisecond(device.link),
                inter_host_bw=_per_millisecond(device.nic),
                hbm_mem_bw=_per_millisecond(device.bandwidth),
                ddr_mem_bw=_per_millisecond(device.bandwidth),
                hbm_to_ddr_mem_bw=_per_millisecond(device.host_link),
            ),
            # Without the flag the bandwidths are ignored in silence.
            KernelConfig(compute_device=device.kind, use_hardware_based_bandwidth=True),
        )


def _per_millisecond(gigabytes_per_second: float) -> float:
    """TorchRec counts bandwidths in bytes a millisecond."""
    return gigabytes_per_second * GB / 1000


def local_cluster(device: str, known: Device | None, world_size: int) -> Cluster:
    """Ranks like this one, on machines like this one; `known` has its rates, or None for those of what is found.

    Memory is that of the GPU, or for `cpu` the rank's share of the machine's.
    """
    local = get_local_size(world_size)
    if device == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / local
    else:
        memory = torch.cuda.get_device_properties(device).total_memory
    found = known or _likely_device(device)
    return Cluster(found.model_copy(update={"memory": memory / GB}), world_size // local, local)


def _likely_device(device: str) -> Device:
    """The known device that this one is called like; the most common GPU where it is like none."""
    if device == "cpu":
        return DEVICES["cpu"]
    words = torch.cuda.get_device_name(device).lower()
    return next((known for name, known in DEVICES.items() if name.split("-")[0] in words), DEVICES["a100-80"])
