"""Which ways to shard a table are open to it."""

from typing import get_args

import torch
from torch import nn

from asymdiffrec.embeddings.config import ShardingType
from asymdiffrec.embeddings.planner.devices import Cluster, device_of
from asymdiffrec.embeddings.planner.planned_tables import PlannedTable
from asymdiffrec.embeddings.planner.sharding_options import have_rows, ways


def table(rows: int, dim: int) -> PlannedTable:
    return PlannedTable("t", nn.Parameter(torch.empty(rows, dim, device="meta")), [1.0], get_args(ShardingType))


def test_no_way_leaves_a_rank_without_rows_or_splits_too_narrow() -> None:
    topology = Cluster(device_of("h100"), 2, 4).topology(reserved=0)
    able = {way.sharding for way in ways(("fused",)) if way.is_open(table(33, 32), topology)}
    assert not have_rows(33, 8)
    assert able == {"data_parallel", "table_wise", "table_row_wise"}
    columns = {way.columns for way in ways(("fused",)) if way.is_open(table(100_000, 128), topology)}
    assert columns == {1, 2, 4}
