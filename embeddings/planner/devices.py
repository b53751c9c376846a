"""Devices and clusters, described by the few figures that a plan depends on. The hardware need not be available."""

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
    """One accelerator, with its share of the host's memory. Bandwidths are for one direction."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str
    kind: Literal["cuda", "cpu"] = "cuda"
    memory: float = Field(gt=0, description="memory in GB; for cpu, the worker's share of the host's memory")
    bandwidth: float = Field(gt=0, description="memory bandwidth in GB/s")
    flops: float = Field(gt=0, description="TFLOP/s of dense matrix products, in bf16 if supported")
    link: float = Field(gt=0, description="GB/s to the other devices of the same host")
    nic: float = Field(gt=0, description="GB/s to other hosts")
    host_memory: float = Field(0.0, ge=0, description="the device's share of the host's memory in GB")
    host_link: float = Field(32.0, gt=0, description="GB/s to the host's memory")
    efficiency: float = Field(
        default_factory=lambda figures: 0.630 if figures.get("kind") == "cuda" else 1.0,
        gt=0,
        le=1,
        description="fraction of the rates above that a step reaches; 1 if the rates were measured",
    )
    overhead: float = Field(
        default_factory=lambda figures: 0.696 if figures.get("kind") == "cuda" else 0.0,
        ge=0,
        description="fixed time of a step in milliseconds, independent of its size",
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
"""Built-in devices, by name.

The figures are from NVIDIA's data sheets: memory, bandwidth and dense bf16 rates of the SXM modules and of the cards L4
and L40. NVLink 3, 4 and 5 have half of their bidirectional 600, 900 and 1,800 GB/s. Cards without NVLink have PCIe 4
x16. Hosts are DGX A100 (1 and 2 TB, HDR), DGX H100, H200 and B200 (2 TB, NDR, PCIe 5), with one NIC for each module.
For L4 and L40 a common server is assumed, with 100 and 200 Gbit/s for each card. `cpu` is a guess for a worker on 16
cores of a server with Ethernet. Efficiency and overhead of GPUs are fitted to two published MLPerf figures, see
`benchmarks/plan_world.py`; no figures are published for CPUs.
"""


def find_device(name: str, option: str = "device") -> Device:
    """Return a device of DEVICES by name, or the device that a YAML file describes with the keys of `Device`.

    Raises InputError if `name` is neither. The message starts with `option`, the name of the option or setting.
    """
    if name in DEVICES:
        return DEVICES[name]
    file = Path(name)
    if not file.is_file():
        raise InputError(
            f"{option} {name}: no such device; allowed are {', '.join(DEVICES)}, or a YAML file with a device's figures"
        )
    try:
        return Device.model_validate({"name": file.stem, **yaml.safe_load(file.read_text())})
    except (yaml.YAMLError, TypeError) as error:
        raise InputError(f"{option} {name}: the file is not YAML with a device's figures") from error
    except ValidationError as error:
        (first, *_) = error.errors()
        raise InputError(f"{option} {name}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error


@dataclass(frozen=True)
class Cluster:
    """`nodes` hosts with `local_world_size` devices each, one rank for each device.

    Raises InputError if either number is below 1.

    >>> Cluster(DEVICES["h100"], nodes=2, local_world_size=8).world_size
    16
    """

    device: Device
    nodes: int
    local_world_size: int

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.local_world_size < 1:
            raise InputError(f"{self.nodes} nodes with {self.local_world_size} GPUs each: both must be at least 1")

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.local_world_size

    def topology(self, reserved: float) -> Topology:
        """Return TorchRec's topology of the cluster. Each device has `reserved` bytes less memory."""
        device, free = self.device, max(0, int(self.device.memory * GB - reserved))
        on_cpu = device.kind == "cpu"
        return TopologyFactory.create_topology(
            TrainerConfig(world_size=self.world_size, local_world_size=self.local_world_size),
            HardwareConfig(
                hbm_cap_bytes=0 if on_cpu else free,
                ddr_cap_bytes=free if on_cpu else int(device.host_memory * GB),
                intra_host_bw=_bytes_per_millisecond(device.link),
                inter_host_bw=_bytes_per_millisecond(device.nic),
                hbm_mem_bw=_bytes_per_millisecond(device.bandwidth),
                ddr_mem_bw=_bytes_per_millisecond(device.bandwidth),
                hbm_to_ddr_mem_bw=_bytes_per_millisecond(device.host_link),
            ),
            # Without the flag TorchRec silently ignores the bandwidths.
            KernelConfig(compute_device=device.kind, use_hardware_based_bandwidth=True),
        )


def _bytes_per_millisecond(gigabytes_per_second: float) -> float:
    """Convert a bandwidth to TorchRec's unit."""
    return gigabytes_per_second * GB / 1000


def local_cluster(device: str, rates: Device | None, world_size: int) -> Cluster:
    """Return the cluster of the running process group, assuming that all hosts are like this host.

    `rates` gives the rates of the devices. If `rates` is None, the rates of the built-in device with a similar name are
    used. The memory is measured: the memory of the GPU, or for `cpu` the rank's share of the host's memory.
    """
    local_world_size = get_local_size(world_size)
    if device == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / local_world_size
    else:
        memory = torch.cuda.get_device_properties(device).total_memory
    assumed = rates or _similar_device(device)
    local = assumed.model_copy(update={"memory": memory / GB})
    return Cluster(local, world_size // local_world_size, local_world_size)


def _similar_device(kind: str) -> Device:
    """Return the built-in device whose name is part of this GPU's name, or a100-80 if no name matches."""
    if kind == "cpu":
        return DEVICES["cpu"]
    words = torch.cuda.get_device_name(kind).lower()
    return next((device for name, device in DEVICES.items() if name.split("-")[0] in words), DEVICES["a100-80"])
