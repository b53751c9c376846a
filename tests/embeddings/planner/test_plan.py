import json

import pytest
import torch
from torch import nn

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.planner.dense import DenseWork
from asymdiffrec.embeddings.planner.devices import Cluster, Device
from asymdiffrec.embeddings.planner.plan import DoesNotFitError, solve
from asymdiffrec.embeddings.planner.plan_document import plan_document, table_entries
from asymdiffrec.embeddings.planner.problem import RESERVED_MEMORY_SHARE, Problem
from asymdiffrec.embeddings.tables import FieldTables


def cluster(ranks: int, local: int | None = None, device: str = "cpu", memory: float = 16) -> Cluster:
    """Return a cluster whose ranks each have `memory` GB for tables."""
    figures = {"bandwidth": 100, "flops": 1, "link": 10, "nic": 1, "host_memory": 64}
    local = local or ranks
    return Cluster(
        Device(name="a", kind=device, memory=memory / (1 - RESERVED_MEMORY_SHARE), **figures), ranks // local, local
    )


def problem(rows: dict[str, int], on: Cluster, dim: int = 16, dense: int = 0, **settings) -> Problem:
    tables = TablesConfig.model_validate(settings)
    fields = {name: {"type": "id", "num_embeddings": count, "embedding_dim": dim} for name, count in rows.items()}
    schema = FieldsConfig.model_validate({"fields": fields}).to_schema()
    model = nn.Module()
    model.tables = FieldTables(schema, tables)
    return Problem(model, schema, tables, on, 64 * on.world_size, DenseWork(dense, 0.0, 0.0, 0, 4 * dense, 2))


def table_plans(rows: dict[str, int], on: Cluster, dim: int = 16, **settings) -> list[dict]:
    """Return the sharding of each table, after checking that the tables stay on the meta device."""
    unsolved = problem(rows, on, dim, **settings)
    solution = solve(unsolved)
    assert all(weight.is_meta for weight in unsolved.model.tables.ids.parameters())
    return table_entries(solution)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("ranks", [2, 16])
def test_plans_need_neither_the_hosts_nor_the_devices(device, ranks):
    rows = {"user": 10_000_000, "item": 100_000, "day": 7}
    tables = table_plans(rows, cluster(ranks, min(ranks, 8), device))
    assert json.loads(json.dumps(tables)) == tables
    assert [(table["name"], table["num_embeddings"], table["embedding_dim"]) for table in tables] == [
        (name, count, 16) for name, count in rows.items()
    ]
    for table in tables:
        assert set(table["ranks"]) <= set(range(ranks))
        assert table["kernel"] == ("dense" if table["sharding"] == "data_parallel" else "fused")


def test_a_single_rank_holds_whole_tables():
    tables = table_plans({"user": 1000, "item": 10}, cluster(1))
    assert [(table["sharding"], table["ranks"]) for table in tables] == [("table_wise", [0])] * 2


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [
        ("table_wise", 1),
        ("row_wise", 4),
        ("table_row_wise", 2),
        ("column_wise", 2),
        ("grid_shard", 4),
        ("data_parallel", 4),
    ],
)
@pytest.mark.parametrize("dim", [16, 32])
def test_a_job_can_fix_the_sharding(kind, ranks, dim):
    (table,) = table_plans({"user": 1000}, cluster(4, 2), dim, per_table={"user": {"sharding": kind}})
    assert table["sharding"] == kind
    assert len(table["ranks"]) == ranks


def test_rowwise_adagrad_never_splits_columns():
    rows = {f"f{number}": 100_000 for number in range(3)}
    ranks = cluster(2, memory=8)
    tables = table_plans(rows, ranks, 512, optimizer={"name": "rowwise_adagrad"})
    assert {table["sharding"] for table in tables} <= {"table_wise", "row_wise", "table_row_wise", "data_parallel"}


def test_tables_that_do_not_fit_are_named_with_their_sizes():
    rows = {"small": 10, "large": 4 * 10**9, "middle": 10**8, "less": 10**6}
    with pytest.raises(DoesNotFitError, match="large") as raised:
        table_plans(rows, cluster(2, memory=1))
    (line,) = str(raised.value).splitlines()
    assert "do not fit into 1 GB on each of 2 ranks" in line
    assert line.endswith("tables fit on no rank: large (4000000000 x 16, 512 GB), middle (100000000 x 16, 12.8 GB)")
    with pytest.raises(DoesNotFitError, match="large") as raised:
        table_plans(rows | {"large": 10**9}, cluster(2, memory=66))
    assert "the largest tables are large (1000000000 x 16, 128 GB), middle" in str(raised.value)
    assert "8.93 GB too much" in str(raised.value)


def test_the_state_of_the_optimizer_takes_memory():
    memory = 4 * 16 * 1e6 * 3 / 2 / 1e9  # the weights, and half of adagrad's state
    assert table_plans({"user": 10**6}, cluster(1, memory=memory), optimizer={"name": "rowwise_adagrad"})
    with pytest.raises(DoesNotFitError, match="do not fit"):
        table_plans({"user": 10**6}, cluster(1, memory=memory), optimizer={"name": "adagrad"})


def test_the_dense_part_takes_memory():
    rows, ranks = {"user": 1000}, cluster(1, memory=0.002)
    assert solve(problem(rows, ranks))
    with pytest.raises(DoesNotFitError, match="do not fit"):
        solve(problem(rows, ranks, dense=256 * 256 * 2))


def test_adam_needs_a_gpu():
    optimizer = {"name": "adam"}
    assert table_plans({"user": 1000}, cluster(2, device="cuda"), optimizer=optimizer)
    with pytest.raises(InputError, match="adam has no fused kernel on cpu; use sgd, adagrad or rowwise_adagrad"):
        table_plans({"user": 1000}, cluster(2), optimizer=optimizer)


def test_weight_decay_needs_a_gpu():
    optimizer = {"name": "rowwise_adagrad", "weight_decay": 0.1}
    assert table_plans({"user": 1000}, cluster(2, device="cuda"), optimizer=optimizer)
    with pytest.raises(InputError, match=r"tables.optimizer.weight_decay: 0.1, but FBGEMM ignores it on cpu"):
        table_plans({"user": 1000}, cluster(2), optimizer=optimizer)


def test_no_rank_has_an_empty_part_of_a_table():
    with pytest.raises(
        InputError,
        match=r"tables\.per_table\.day: row_wise cannot divide .*num_embeddings 5.* use data_parallel, table_wise",
    ):
        table_plans({"day": 5}, cluster(4), per_table={"day": {"sharding": "row_wise"}})
    (table,) = table_plans({"day": 5}, cluster(4))
    assert table["sharding"] != "row_wise"
    assert table_plans({"day": 5}, cluster(3), per_table={"day": {"sharding": "row_wise"}})


def test_planning_logs_and_warns_nothing(caplog, recwarn):
    table_plans({"user": 1000, "day": 7}, cluster(2), per_table={"day": {"sharding": "data_parallel"}})
    assert not [record for record in caplog.records if record.levelname != "INFO"]
    assert not recwarn.list


def test_meta_tables_take_no_memory():
    rows = {"user": 2**40}
    tables = FieldTables(
        FieldsConfig.model_validate({"fields": {"user": {"type": "id", "num_embeddings": rows["user"]}}}).to_schema(),
        TablesConfig(),
    )
    assert tables.ids.embedding_bags["user"].weight.device == torch.device("meta")


def test_kernels_in_host_memory_make_room():
    rows, ranks = {"user": 10**8}, cluster(2, device="cuda", memory=8)
    with pytest.raises(DoesNotFitError, match="do not fit"):
        solve(problem(rows, ranks, 32))
    solution = solve(problem(rows, ranks, 32, kernels=["fused", "fused_uvm_caching"]))
    (table,) = table_entries(solution)
    assert table["kernel"] == "fused_uvm_caching"
    assert 0 < table["cache_load_factor"] < 1
    assert plan_document(solution)["tables"][0]["host_bytes"] >= 2 * 4 * 32 * 10**8
    (table,) = table_plans(rows, ranks, 32, per_table={"user": {"kernel": "fused_uvm"}})
    assert table["kernel"] == "fused_uvm"
    with pytest.raises(InputError, match=r"tables.per_table.user.kernel: found fused_uvm; on cpu only"):
        table_plans(rows, cluster(2), 32, per_table={"user": {"kernel": "fused_uvm"}})


def test_a_job_can_fix_the_number_of_ranks():
    (table,) = table_plans({"user": 10**6}, cluster(8, 4, "cuda"), 64, per_table={"user": {"ranks": 4}})
    assert len(table["ranks"]) == 4


def test_half_precision_halves_the_weights():
    sizes = []
    for settings in ({}, {"dtype": "fp16"}, {"per_table": {"user": {"dtype": "fp16"}}}):
        document = plan_document(solve(problem({"user": 10**7}, cluster(2, device="cuda"), 64, **settings)))
        sizes.append(sum(rank["weights_bytes"] for rank in document["ranks"]))
        assert sum(rank["state_bytes"] for rank in document["ranks"]) == 4 * 64 * 10**7
    assert sizes == [4 * 64 * 10**7, 2 * 64 * 10**7, 2 * 64 * 10**7]
