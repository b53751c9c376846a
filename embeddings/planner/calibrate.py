"""The figures of a device as this machine has them: what `plan --calibrate` writes for later plans."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from asymdiffrec.embeddings.planner.devices import GB, Device

ROWS, DIM, BAGS, IDS = 1 << 20, 64, 4096, 8
SIDE = {"cuda": 8192, "cpu": 1024}
"""Rows and columns of the matrices that are multiplied"""
MESSAGE = 16 << 20
"""Bytes that each rank sends in an exchange"""
REPEATS = 7
PATIENCE = timedelta(seconds=60)


def calibrate(name: str, tell: Callable[[str], None] = lambda what: None) -> Device:
    """This machine's GPU, or its share of a CPU worker: rates that are reached, not those of data sheets.

    `bandwidth` is that of look-ups (random rows of 256 bytes, read, pooled and written), `flops` of products in bf16
    on GPUs and fp32 on CPUs, `link` of an all-to-all between the machine's GPUs by NCCL, or between two processes by
    gloo, `host_link` of a copy from pinned memory. `nic` cannot be measured on one machine and is taken as `link`; so
    is the link of a machine with one GPU, as the look-ups' bandwidth. The overhead of a GPU's step is not measured.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind)
    tell("look-ups")
    bandwidth = _lookups(device)
    tell("products")
    flops = _products(device)
    tell("exchanges")
    link = _exchanges(kind) or bandwidth
    if kind == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Device(
            name=name, kind="cpu", memory=memory / GB, bandwidth=bandwidth / GB, flops=flops / 1e12,
            link=link / GB, nic=link / GB, efficiency=1.0,
        )  # fmt: skip
    tell("copies")
    memory = torch.cuda.get_device_properties(device).total_memory
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / torch.cuda.device_count()
    return Device(
        name=name, memory=memory / GB, bandwidth=bandwidth / GB, flops=flops / 1e12, link=link / GB, nic=link / GB,
        host_memory=host / GB, host_link=_copies(device) / GB, efficiency=1.0,
    )  # fmt: skip


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of a few runs, after one that warms up."""
    taken = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def _lookups(device: torch.device) -> float:
    """Bytes a second, of ids, rows and bags."""
    bags = BAGS * (16 if device.type == "cuda" else 1)
    weight = torch.randn(ROWS, DIM, device=device)
    ids = torch.randint(ROWS, (bags * IDS,), device=device)
    offsets = torch.arange(0, bags * IDS, IDS, device=device)
    work = lambda: torch.nn.functional.embedding_bag(ids, weight, offsets, mode="sum")  # noqa: E731
    return (8 * bags * IDS + 4 * DIM * bags * (IDS + 1)) / _seconds(work, device)


def _products(device: torch.device) -> float:
    """Operations a second"""
    side = SIDE[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: left @ right, device)


def _copies(device: torch.device) -> float:
    """Bytes a second from pinned memory"""
    there, here = torch.empty(1 << 28, dtype=torch.uint8).pin_memory(), torch.empty(1 << 28, dtype=torch.uint8)
    here = here.to(device)
    return float(there.nbytes / _seconds(lambda: here.copy_(there, non_blocking=True), device))


def _exchanges(kind: str) -> float | None:
    """Bytes a second that a rank sends to others; None where there is one GPU, which has nobody to send to."""
    ranks = torch.cuda.device_count() if kind == "cuda" else 2
    if ranks < 2:
        return None
    with tempfile.TemporaryDirectory(prefix="asymdiffrec-") as folder:
        processes.spawn(_exchange, (ranks, kind, folder), nprocs=ranks, daemon=True)  # ended with this process
        return float(Path(folder, "rate").read_text())


def _exchange(rank: int, ranks: int, kind: str, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    backend = "nccl" if kind == "cuda" else "gloo"
    device = torch.device("cuda", rank) if kind == "cuda" else torch.device("cpu")
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=PATIENCE)
    sent = torch.zeros(MESSAGE // 4, device=device)
    received = torch.zeros_like(sent)
    seconds = _seconds(lambda: dist.all_to_all_single(received, sent), device)
    if rank == 0:
        Path(folder, "rate").write_text(str(MESSAGE * (ranks - 1) / ranks / seconds))
    dist.destroy_process_group()
