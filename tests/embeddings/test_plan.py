import json

import pytest
import torch
from torch import nn
from torchrec.distributed.planner.types import HardwareConfig, KernelConfig, Topology, TopologyFactory, TrainerConfig

from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.embeddings.plan import describe_plan, local_topology, plan_tables
from asymdiffrec.embeddings.tables import FieldTables, TablesConfig


def model(tables: TablesConfig, rows: dict[str, int], dim: int = 16) -> nn.Module:
    fields = {name: {"type": "id", "rows": count, "embedding_dim": dim} for name, count in rows.items()}
    found = nn.Module()
    found.tables = FieldTables(FieldsConfig.model_validate({"fields": fields}).to_schema(), tables)
    return found


def topology(ranks: int, local: int | None = None, device: str = "cpu", memory: int = 2**34) -> Topology:
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=ranks, local_world_size=local or ranks),
        HardwareConfig(ddr_cap_bytes=memory, hbm_cap_bytes=memory),
        KernelConfig(compute_device=device),
    )


def described(rows: dict[str, int], where: Topology, dim: int = 16, **settings) -> list[dict]:
    tables = TablesConfig.model_validate(settings)
    unsharded = model(tables, rows, dim)
    plan = plan_tables(unsharded, tables, where, 64)
    assert all(weight.is_meta for weight in unsharded.tables.ids.parameters())
    return describe_plan(plan, unsharded)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("ranks", [2, 16])
def test_plans_for_machines_that_are_not_here(device, ranks):
    rows = {"user": 10_000_000, "item": 100_000, "day": 7}
    tables = described(rows, topology(ranks, min(ranks, 8), device))
    assert json.loads(json.dumps(tables)) == tables
    assert [(table["name"], table["rows"], table["dim"]) for table in tables] == [(n, r, 16) for n, r in rows.items()]
    for table in tables:
        assert set(table["ranks"]) <= set(range(ranks))
        assert table["kernel"] == ("dense" if table["sharding"] == "data_parallel" else "fused")


def test_a_single_rank_holds_whole_tables():
    found = described({"user": 1000, "item": 10}, topology(1))
    assert [(table["sharding"], table["ranks"]) for table in found] == [("table_wise", [0])] * 2


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
def test_a_job_may_fix_the_sharding(kind, ranks, dim):
    (table,) = described({"user": 1000}, topology(4, 2), dim, per_table={"user": {"sharding": kind}})
    assert table["sharding"] == kind
    assert len(table["ranks"]) == ranks


def test_rowwise_adagrad_never_splits_columns_by_itself():
    rows = {f"f{number}": 100_000 for number in range(3)}
    where = topology(2, memory=2**33)
    found = described(rows, where, 512, optimizer={"name": "rowwise_adagrad"})
    assert {table["sharding"] for table in found} <= {"table_wise", "row_wise", "table_row_wise", "data_parallel"}


def test_tables_that_do_not_fit():
    rows = {"small": 10, "large": 4 * 10**9, "middle": 10**8, "less": 10**6}
    with pytest.raises(ValueError, match="large") as raised:
        described(rows, topology(2, memory=2**30))
    (line,) = str(raised.value).splitlines()
    assert "do not fit into 1 GiB on each of 2 ranks" in line
    assert line.index("large (4000000000 x 16, 238 GiB)") < line.index("middle") < line.index("less")
    assert "small" not in line


def test_optimizer_state_counts():
    memory = 4 * 16 * 10**6 * 3 // 2  # weights, and half of what adagrad keeps for them
    assert described({"user": 10**6}, topology(1, memory=memory), optimizer={"name": "rowwise_adagrad"})
    with pytest.raises(ValueError, match="do not fit"):
        described({"user": 10**6}, topology(1, memory=memory), optimizer={"name": "adagrad"})


def test_the_dense_part_counts():
    tables = TablesConfig()
    unsharded = model(tables, {"user": 1000})
    where = topology(1, memory=2**20)
    plan_tables(unsharded, tables, where, 64)
    unsharded.head = nn.Linear(256, 256)
    with pytest.raises(ValueError, match="do not fit"):
        plan_tables(unsharded, tables, where, 64)


def test_adam_needs_a_gpu():
    optimizer = {"name": "adam"}
    assert described({"user": 1000}, topology(2, device="cuda"), optimizer=optimizer)
    with pytest.raises(ValueError, match="adam has no fused kernel on cpu; use sgd, adagrad or rowwise_adagrad"):
        described({"user": 1000}, topology(2), optimizer=optimizer)


def test_weight_decay_needs_a_gpu():
    optimizer = {"name": "rowwise_adagrad", "weight_decay": 0.1}
    assert described({"user": 1000}, topology(2, device="cuda"), optimizer=optimizer)
    with pytest.raises(ValueError, match=r"tables.optimizer.weight_decay: 0.1, which FBGEMM ignores on cpu"):
        described({"user": 1000}, topology(2), optimizer=optimizer)


def test_no_rank_gets_an_empty_part():
    with pytest.raises(
        ValueError,
        match=r"tables\.per_table\.day: row_wise cannot divide 5 rows of 16 .* use data_parallel, table_wise",
    ):
        described({"day": 5}, topology(4), per_table={"day": {"sharding": "row_wise"}})
    (table,) = described({"day": 5}, topology(4))
    assert table["sharding"] != "row_wise"
    assert described({"day": 5}, topology(3), per_table={"day": {"sharding": "row_wise"}})


def test_memory_of_this_machine_is_shared_by_its_ranks(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    two = local_topology("cpu", 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    four = local_topology("cpu", 4)
    assert two.local_world_size == 2
    assert two.devices[0].storage.ddr == pytest.approx(2 * four.devices[0].storage.ddr, abs=2)


def test_plans_are_silent(caplog, recwarn):
    described({"user": 1000, "day": 7}, topology(2), per_table={"day": {"sharding": "data_parallel"}})
    assert not [record for record in caplog.records if record.levelname != "INFO"]
    assert not recwarn.list


def test_meta_tables_take_no_memory():
    rows = {"user": 2**40}
    tables = FieldTables(
        FieldsConfig.model_validate({"fields": {"user": {"type": "id", "rows": rows["user"]}}}).to_schema(),
        TablesConfig(),
    )
    assert tables.ids.embedding_bags["user"].weight.device == torch.device("meta")
