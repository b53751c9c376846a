"""The time of a step: computed by hand for small numbers, and properties that hold for every cluster and plan."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec.distributed.planner.types import Perf, Shard, ShardingOption

from asymdiffrec.embeddings.planner.dense import DenseWork
from asymdiffrec.embeddings.planner.devices import DEVICES, Cluster, Device
from asymdiffrec.embeddings.planner.step_time import TableTimes, step_time, step_time_cautions, table_times

# A millisecond is 10^9 operations, 10^6 bytes of memory, of a link and of a NIC.
UNIT = Device(name="unit", memory=1, bandwidth=1, flops=1, link=1, nic=1, efficiency=1, overhead=0)
NOTHING = DenseWork(parameters=0, flops=0.0, bytes=0.0, activations=0, gradients=0, moments=0)
PARTS = ("forward", "backward", "communication", "dense", "all_reduce", "input_distribution", "overhead")

milliseconds = st.floats(0, 100)
vectors = st.lists(milliseconds, min_size=4, max_size=4).map(np.array)
table_sets = st.builds(TableTimes, *[vectors] * 5)
works = st.builds(
    DenseWork,
    parameters=st.just(1),
    flops=st.floats(0, 1e12),
    bytes=st.floats(0, 1e9),
    activations=st.just(1),
    gradients=st.integers(0, 10**9),
)
clusters = st.sampled_from([Cluster(UNIT, 1, 4), Cluster(UNIT, 2, 2), Cluster(DEVICES["h100"], 4, 1)])


def idle(ranks: int = 4) -> TableTimes:
    return TableTimes(*np.zeros((5, ranks)))


def test_each_part_takes_the_time_of_its_slowest_rank() -> None:
    tables = TableTimes(
        forward=np.array([1.0, 3.0]),
        forward_communication=np.array([2.0, 4.0]),
        backward=np.array([6.0, 2.0]),
        backward_communication=np.array([5.0, 5.0]),
        input_distribution=np.array([1.0, 1.0]),
    )
    step = step_time(tables, NOTHING, Cluster(UNIT, 1, 2), 50)
    assert (step.forward, step.communication, step.backward) == (3, 4 + 5, 6)
    assert step.milliseconds == 18
    assert step.waiting == 1 + 1 + 2
    assert step.imbalance == 4 / 18
    assert step.samples_per_second == pytest.approx(50 * 1000 / 18)


def test_the_dense_part_takes_its_arithmetic_plus_its_memory_traffic() -> None:
    work = replace(NOTHING, flops=3e9, bytes=5e6)
    assert step_time(idle(), work, Cluster(UNIT, 1, 4), 1).dense == pytest.approx(3 + 5)


@pytest.mark.parametrize(
    ("nodes", "local_world_size", "expected"),
    [(1, 1, 0), (1, 4, 2 * 3 / 4), (4, 1, 2 * 3 / 4), (2, 2, 2 * 1 / 2 + 2 * 1 / 2 / 2)],
)
def test_all_reduce_is_rings_within_hosts_and_across_hosts(nodes: int, local_world_size: int, expected: float) -> None:
    work = replace(NOTHING, gradients=10**6)
    step = step_time(idle(nodes * local_world_size), work, Cluster(UNIT, nodes, local_world_size), 1)
    assert step.all_reduce == pytest.approx(expected)


def test_all_reduce_overlaps_with_the_dense_backward_pass() -> None:
    cluster, work = Cluster(UNIT, 1, 4), replace(NOTHING, flops=3e9)
    hidden = step_time(idle(), replace(work, gradients=10**6), cluster, 1)  # 1.5 ms overlap with 2 ms
    assert hidden.all_reduce == 0
    assert hidden.milliseconds == pytest.approx(3)
    longer = step_time(idle(), replace(work, gradients=4 * 10**6), cluster, 1)  # 2 of 6 ms overlap
    assert longer.all_reduce == pytest.approx(4)


def test_input_distribution_counts_if_links_are_busy_longer_than_the_step() -> None:
    cluster = Cluster(UNIT, 1, 4)
    busy = replace(idle(), forward=np.full(4, 10.0), forward_communication=np.full(4, 2.0))
    hidden = step_time(replace(busy, input_distribution=np.full(4, 9.0)), NOTHING, cluster, 1)
    assert hidden.input_distribution == 0
    longer = step_time(replace(busy, input_distribution=np.full(4, 13.0)), NOTHING, cluster, 1)
    assert longer.input_distribution == pytest.approx(3)
    assert longer.milliseconds == pytest.approx(2 + 13)


@given(table_sets, works, clusters)
def test_parts_add_up_to_the_step_and_none_is_negative(tables, work, cluster) -> None:
    step = step_time(tables, work, cluster, 8)
    parts = [getattr(step, part) for part in PARTS]
    assert min(parts) >= 0
    assert step.milliseconds == pytest.approx(sum(parts))
    assert 0 <= step.waiting <= step.forward + step.backward + step.communication + 1e-9


@given(table_sets, works, clusters, st.floats(0.1, 1), milliseconds)
def test_time_is_the_ideal_time_over_the_efficiency_and_the_overhead(
    tables, work, cluster, efficiency, overhead
) -> None:
    def time(**figures: float) -> float:
        device = cluster.device.model_copy(update=figures)
        return step_time(tables, work, replace(cluster, device=device), 8).milliseconds

    ideal, real = time(efficiency=1.0, overhead=0.0), time(efficiency=efficiency, overhead=overhead)
    assert real == pytest.approx(ideal / efficiency + overhead)


@given(table_sets, works, clusters, st.integers(0, 4), st.integers(0, 3), milliseconds)
def test_a_slower_rank_never_makes_a_faster_step(tables, work, cluster, phase, rank, more) -> None:
    slower = [values.copy() for values in astuple(tables)]
    slower[phase][rank] += more
    before, after = (step_time(one, work, cluster, 8) for one in (tables, TableTimes(*slower)))
    assert after.milliseconds >= before.milliseconds * (1 - 1e-12)


@given(table_sets, works, st.sampled_from(["bandwidth", "flops", "link", "nic"]), st.floats(1, 100))
def test_a_better_device_never_makes_a_slower_step(tables, work, figure, factor) -> None:
    better = UNIT.model_copy(update={figure: factor})
    before, after = (step_time(tables, work, Cluster(device, 2, 2), 8) for device in (UNIT, better))
    assert after.milliseconds <= before.milliseconds * (1 + 1e-12)


def test_equal_ranks_have_no_imbalance() -> None:
    tables = TableTimes(*np.ones((5, 4)))
    assert step_time(tables, NOTHING, Cluster(UNIT, 1, 4), 8).imbalance == 0


def test_cautions_name_cards_on_pcie_and_large_nvlink_domains() -> None:
    assert "PCIe" in step_time_cautions(Cluster(DEVICES["l40"], 1, 8))[0]
    assert "one NVLink domain" in step_time_cautions(Cluster(DEVICES["b200"], 1, 72))[0]
    without_cautions = [Cluster(DEVICES["h100"], 16, 8), Cluster(DEVICES["l40"], 1, 1), Cluster(DEVICES["cpu"], 1, 16)]
    assert not any(step_time_cautions(cluster) for cluster in without_cautions)


def test_table_times_add_up_by_rank_and_split_ids_by_rows() -> None:
    """Two tables: one completely on rank 1, one with a quarter of its rows on rank 0 and the rest on rank 1."""
    whole = shard(rows=8, rank=1, perf=Perf(1, 2, 3, 4, input_dist_comms=5, prefetch_compute=6))
    parts = [shard(rows, rank, Perf(10, 20, 30, 40, input_dist_comms=100)) for rows, rank in ((2, 0), (6, 1))]
    times = table_times([option([whole]), option(parts)], ranks=3)
    np.testing.assert_array_equal(times.forward, [10, 10 + 1 + 6, 0])
    np.testing.assert_array_equal(times.forward_communication, [20, 22, 0])
    np.testing.assert_array_equal(times.backward, [30, 33, 0])
    np.testing.assert_array_equal(times.backward_communication, [40, 44, 0])
    np.testing.assert_array_equal(times.input_distribution, [25, 75 + 5, 0])


def shard(rows: int, rank: int, perf: Perf) -> Shard:
    return Shard(size=[rows, 4], offset=[0, 0], perf=perf, rank=rank)


def option(shards: list[Shard]) -> ShardingOption:
    table = torch.nn.EmbeddingBag(8, 4, device="meta")
    return ShardingOption(
        name="t", tensor=table.weight, module=("", table), input_lengths=[1.0], batch_size=1, sharding_type="row_wise",
        partition_by="uniform", compute_kernel="fused", shards=shards,
    )  # fmt: skip
