"""The sharding choices that a table allows."""

from typing import get_args

import torch
from torch import nn

from asymdiffrec.embeddings.config import ShardingType
from asymdiffrec.embeddings.planner.devices import Cluster, find_device
from asymdiffrec.embeddings.planner.planned_tables import PlannedTable
from asymdiffrec.embeddings.planner.sharding_choices import fills_all_parts, sharding_choices


def table(rows: int, dim: int) -> PlannedTable:
    return PlannedTable("t", nn.Parameter(torch.empty(rows, dim, device="meta")), [1.0], get_args(ShardingType))


def test_no_choice_leaves_a_rank_without_rows_or_makes_shards_too_narrow() -> None:
    topology = Cluster(find_device("h100"), 2, 4).topology(reserved=0)
    kinds = {
        choice.sharding_type for choice in sharding_choices(("fused",)) if choice.is_allowed(table(33, 32), topology)
    }
    assert not fills_all_parts(33, 8)
    assert kinds == {"data_parallel", "table_wise", "table_row_wise"}
    columns = {
        choice.column_parts
        for choice in sharding_choices(("fused",))
        if choice.is_allowed(table(100_000, 128), topology)
    }
    assert columns == {1, 2, 4}
