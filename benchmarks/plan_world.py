"""Compare planned with published step times: MLPerf's DLRM-DCNv2 in HugeCTR, by number and kind of GPU.

The two parameters of the step-time model are fitted to two published throughputs; the other throughputs test the model.
The model does not describe GPUs that are connected by PCIe only, nor NVL72, so their results have no goal. See
docs/step-time.md.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from asymdiffrec.diffusion.extractors.dcn import Cross
from asymdiffrec.diffusion.layers import mlp
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.planner.dense import DenseWork, dense_work
from asymdiffrec.embeddings.planner.devices import DEVICES, Cluster, Device
from asymdiffrec.embeddings.planner.search_planner import plan_by_search
from asymdiffrec.embeddings.planner.step_time import StepTime, step_time, table_times
from asymdiffrec.embeddings.sharder import TableSharder
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from benchmarks._report import arguments, show
from benchmarks._result import Result
from benchmarks._tables import RESERVED, dcn

DIM, TABLES, NUMBERS = 128, 26, 13
MAX_ERROR = 0.2
"""Goal: largest relative error of the planned throughput"""


@dataclass(frozen=True)
class Published:
    """The published throughput of a cluster, in million samples per second."""

    name: str
    device: Device
    nodes: int
    per_node: int
    batch_size: int
    throughput: float

    @property
    def cluster(self) -> Cluster:
        """The cluster in the form that the planner reads"""
        return Cluster(self.device, self.nodes, self.per_node)

    @property
    def milliseconds(self) -> float:
        """Published time of a step"""
        return self.batch_size / self.throughput / 1000


A100, H100, H200, B200, L40 = (DEVICES[name] for name in ("a100-80", "h100", "h200", "b200", "l40"))
FITTED = (
    Published("8 x A100-80", A100, 1, 8, 55296, 6.39),
    Published("8 x B200", B200, 1, 8, 55296, 22.9),
)
"""The longest and the shortest step on one host with NVLink. The longest step mainly determines the efficiency, the
shortest step the overhead"""
TEST = (
    Published("4 x H100", H100, 1, 4, 28000, 6.29),
    Published("8 x H100", H100, 1, 8, 55296, 13.5),
    Published("8 x H200", H200, 1, 8, 55296, 14.3),
    Published("64 x H100", H100, 8, 8, 135168, 46.8),
    Published("128 x H100", H100, 16, 8, 135168, 63.0),
    Published("8 x L40", L40, 1, 8, 55296, 2.1),
)
GB200 = B200.model_copy(update={"flops": 2450.0})
ADDED_LATER = (
    Published("8 x H100 on 2 machines", H100, 2, 4, 55296, 8.95),
    Published("4 x H100, batch 32,768", H100, 1, 4, 32768, 5.69),
    Published("4 x H100, batch 49,152", H100, 1, 4, 49152, 7.34),
    Published("16 x H200", H200, 2, 8, 65536, 16.27),
    Published("32 x H200", H200, 4, 8, 131200, 30.8),
    Published("8 x GB200", GB200, 1, 8, 55296, 23.8),
)
"""Throughputs that were not used until the model and the fit were final"""
A100_PCIE = A100.model_copy(update={"bandwidth": 1935.0, "link": 32.0})
H100_PCIE = H100.model_copy(update={"bandwidth": 2000.0, "flops": 756.0, "link": 64.0})
BEYOND = (
    Published("8 x A100 PCIe", A100_PCIE, 1, 8, 55296, 1.29),
    Published("8 x H100 PCIe", H100_PCIE, 1, 8, 55296, 4.53),
    Published("64 x GB200, NVL72", GB200, 1, 64, 135168, 83.8),
)
"""Throughputs of hosts that the model does not describe"""


class DenseDCN(nn.Module):
    """The dense part: an MLP 512-256-128 of 13 numeric values, three cross layers of rank 512, an MLP
    1024-1024-512-256-1."""

    def __init__(self) -> None:
        super().__init__()
        width = (1 + TABLES) * DIM
        self.bottom = nn.Sequential(mlp([NUMBERS, 512, 256, DIM]), nn.ReLU())
        self.crosses = nn.ModuleList(Cross(width, 512) for _ in range(3))
        self.top = mlp([width, 1024, 1024, 512, 256, 1])

    def forward(self, numbers: Tensor, vectors: Tensor, label: Tensor) -> Tensor:
        """Return the loss of a batch."""
        crossed = x_0 = torch.cat([self.bottom(numbers), vectors], dim=1)
        for cross in self.crosses:
            crossed = cross(x_0, crossed)
        return binary_cross_entropy_with_logits(self.top(crossed).squeeze(1), label)


def dense_dcn(batch_size: int) -> DenseWork:
    """Return the work of the dense part for the samples of one rank. Weights are fp16, updated in fp32 by Adagrad."""
    with torch.device("meta"):
        module = DenseDCN().half()
        numbers, label = torch.empty(batch_size, NUMBERS).half(), torch.empty(batch_size).half()
        vectors = torch.empty(batch_size, TABLES * DIM).half().requires_grad_()
    return dense_work(module, [numbers, vectors, label])


def planned_step(published: Published, **figures: float) -> StepTime:
    """Return the step time of our plan for the cluster. `figures` replace fields of its `Device`."""
    device = published.cluster.device.model_copy(update=figures)
    cluster, tables = replace(published.cluster, device=device), dcn()
    topology, model, batch_size = cluster.topology(RESERVED), tables.model(), published.batch_size // cluster.world_size
    sharder = TableSharder(TablesConfig(communication="fp16"), "cuda")
    _, options = plan_by_search(model, tables.planned(model), topology, batch_size, sharder)
    times = table_times(options, cluster.world_size)
    return step_time(times, dense_dcn(batch_size), cluster, published.batch_size)


def fit(first: Published, second: Published) -> tuple[float, float]:
    """Return the efficiency e and the overhead t0 of T = S / e + t0, fitted to two published step times T.

    S is the planned step time with e = 1 and t0 = 0.
    """
    sums = [planned_step(point, efficiency=1.0, overhead=0.0).milliseconds for point in (first, second)]
    slope = (first.milliseconds - second.milliseconds) / (sums[0] - sums[1])
    return 1 / slope, first.milliseconds - slope * sums[0]


def measure(quick: bool) -> Iterator[Result]:
    """Yield the fitted parameters and the planned throughput of each cluster."""
    efficiency, overhead = fit(*FITTED)
    built_in = FITTED[0].cluster.device
    yield Result("efficiency e", efficiency, "", "built in", built_in.efficiency)
    yield Result("overhead t0", overhead, "ms", "built in", built_in.overhead)
    for published in (*FITTED, *TEST[:1]) if quick else (*FITTED, *TEST, *ADDED_LATER, *BEYOND):
        million = planned_step(published).samples_per_second / 1e6
        note = "fitted" if published in FITTED else "outside the model" if published in BEYOND else ""
        holds = None if note else abs(million / published.throughput - 1) <= MAX_ERROR
        goal = note or f"within {MAX_ERROR:.0%}"
        yield Result(published.name, million, "M samples/s", "published", published.throughput, goal, holds)


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    silence_torchrec_warnings()
    logging.disable(logging.WARNING)
    options = arguments(__doc__ or "")
    with Console(stderr=True).status("planning"):
        results = list(measure(options.quick))
    show(results, options)


if __name__ == "__main__":
    main()
