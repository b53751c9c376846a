"""Measure the figures of a device on this host, for `plan --calibrate`."""

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

NUM_EMBEDDINGS, EMBEDDING_DIM, BAGS, IDS_PER_BAG = 1 << 20, 64, 4096, 8
MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
"""Rows and columns of the square matrices that are multiplied."""
ALL_TO_ALL_BYTES = 16 << 20
"""Bytes that each rank sends in an all-to-all."""
PINNED_BYTES = 1 << 28
REPEATS = 7
PROCESS_GROUP_TIMEOUT = timedelta(seconds=60)


def calibrate(name: str, report: Callable[[str], None] = lambda step: None) -> Device:
    """Return a Device for this host's GPU, or for its CPU as one worker, with measured rates.

    `report` is called with the name of each measurement before it starts. The rates are measured as follows.

    - bandwidth: look-ups of random rows of 256 bytes, which are read, pooled and written
    - flops: matrix products, in bf16 on GPUs and in fp32 on CPUs
    - link: an all-to-all, by NCCL between the GPUs of the host, or by gloo between two processes; equal to `bandwidth`
      if the host has one GPU
    - host_link: a copy from pinned memory
    - nic: equal to `link`, because it cannot be measured on one host

    The overhead of a GPU's step is not measured.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind)
    report("look-ups")
    bandwidth = _lookup_rate(device)
    report("matrix products")
    flops = _matrix_product_rate(device)
    report("all-to-all")
    link = _all_to_all_rate(kind) or bandwidth
    if kind == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Device(
            name=name, kind="cpu", memory=memory / GB, bandwidth=bandwidth / GB, flops=flops / 1e12,
            link=link / GB, nic=link / GB, efficiency=1.0,
        )  # fmt: skip
    report("copies from pinned memory")
    memory = torch.cuda.get_device_properties(device).total_memory
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / torch.cuda.device_count()
    return Device(
        name=name, memory=memory / GB, bandwidth=bandwidth / GB, flops=flops / 1e12, link=link / GB, nic=link / GB,
        host_memory=host / GB, host_link=_copy_rate(device) / GB, efficiency=1.0,
    )  # fmt: skip


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the median time of REPEATS runs in seconds, after one run to warm up."""
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _lookup_rate(device: torch.device) -> float:
    """Return the bytes per second of look-ups, from the bytes of ids, rows and pooled bags."""
    bags = BAGS * (16 if device.type == "cuda" else 1)
    weight = torch.randn(NUM_EMBEDDINGS, EMBEDDING_DIM, device=device)
    ids = torch.randint(NUM_EMBEDDINGS, (bags * IDS_PER_BAG,), device=device)
    offsets = torch.arange(0, bags * IDS_PER_BAG, IDS_PER_BAG, device=device)
    work = lambda: torch.nn.functional.embedding_bag(ids, weight, offsets, mode="sum")  # noqa: E731
    moved = 8 * bags * IDS_PER_BAG + 4 * EMBEDDING_DIM * bags * (IDS_PER_BAG + 1)
    return moved / _seconds(work, device)


def _matrix_product_rate(device: torch.device) -> float:
    """Return the floating-point operations per second of matrix products."""
    side = MATRIX_SIZE[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: left @ right, device)


def _copy_rate(device: torch.device) -> float:
    """Return the bytes per second of a copy from pinned host memory to the GPU."""
    pinned = torch.empty(PINNED_BYTES, dtype=torch.uint8).pin_memory()
    target = torch.empty(PINNED_BYTES, dtype=torch.uint8, device=device)
    return float(pinned.nbytes / _seconds(lambda: target.copy_(pinned, non_blocking=True), device))


def _all_to_all_rate(kind: str) -> float | None:
    """Return the bytes per second that a rank sends to the other ranks; None if the host has only one GPU."""
    ranks = torch.cuda.device_count() if kind == "cuda" else 2
    if ranks < 2:
        return None
    with tempfile.TemporaryDirectory(prefix="asymdiffrec-") as folder:
        # Daemon processes end when this process ends.
        processes.spawn(_measure_all_to_all, (ranks, kind, folder), nprocs=ranks, daemon=True)
        return float(Path(folder, "rate").read_text())


def _measure_all_to_all(rank: int, ranks: int, kind: str, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    backend = "nccl" if kind == "cuda" else "gloo"
    device = torch.device("cuda", rank) if kind == "cuda" else torch.device("cpu")
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=PROCESS_GROUP_TIMEOUT)
    sent = torch.zeros(ALL_TO_ALL_BYTES // 4, device=device)
    received = torch.zeros_like(sent)
    seconds = _seconds(lambda: dist.all_to_all_single(received, sent), device)
    if rank == 0:
        Path(folder, "rate").write_text(str(ALL_TO_ALL_BYTES * (ranks - 1) / ranks / seconds))
    dist.destroy_process_group()
