"""Plans whose ranks are sharded by TorchRec hold what they say; a plan that was tampered with is found out."""

import copy

import pytest

from asymdiffrec.embeddings.planner.plan import solve
from asymdiffrec.embeddings.planner.plan_check import check_plan
from asymdiffrec.embeddings.planner.planned_tables import table_configs
from asymdiffrec.embeddings.planner.rehearsal import rehearse
from tests.embeddings.planner.test_plan import cluster, problem

ROWS = {"user": 10_000_000, "item": 100_000, "day": 700}
KINDS = ["table_wise", "row_wise", "column_wise", "table_row_wise", "grid_shard", "data_parallel"]


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_hold_what_the_plan_says(kind: str) -> None:
    asked = problem(ROWS, cluster(16, 8, "cuda"), 128, per_table={"item": {"sharding": kind}})
    found = solve(asked)
    assert {option.sharding_type for option in found.options if option.name == "item"} == {kind}
    rehearse(asked.model, found.plan, asked.sharder, 16, 8, range(0, 16, 5))


@pytest.mark.parametrize("managed", [["user"], ["user", "item"]])
def test_ranks_hold_their_part_of_managed_tables(managed: list[str]) -> None:
    rows = {"user": 1 << 20, "item": 1 << 12}
    asked = problem(rows, cluster(16, 8, "cuda"), 128, per_table={name: {"collision": "managed"} for name in managed})
    found = solve(asked)
    assert {option.name for option in found.options if option.sharding_type == "row_wise"} >= set(managed)
    rehearse(asked.model, found.plan, asked.sharder, 16, 8, range(0, 16, 5))


def test_torchrecs_own_plans_can_be_rehearsed() -> None:
    asked = problem(ROWS, cluster(16, 8, "cuda"), 128)
    found = solve(asked, "torchrec")
    kernels = {(option.sharding_type == "data_parallel", option.compute_kernel) for option in found.options}
    assert kernels <= {(True, "dense"), (False, "fused")}
    rehearse(asked.model, found.plan, asked.sharder, 16, 8, [0, 9])


def test_a_shard_on_another_rank_is_found_out() -> None:
    asked = problem(ROWS, cluster(4, 4, "cuda"), 128, per_table={"user": {"sharding": "row_wise"}})
    plan = solve(asked).plan
    (module,) = copy.deepcopy(plan.plan).values()
    sharding = module["user"]
    check_plan(plan, table_configs(asked.model), 4)
    whole = list(sharding.sharding_spec.shards)

    def tampered(shards: list) -> object:
        spoilt = copy.deepcopy(plan)
        (spoilt_module,) = spoilt.plan.values()
        spoilt_module["user"].sharding_spec.shards = shards
        return spoilt

    with pytest.raises(ValueError, match="do not make up the table user"):
        check_plan(tampered(whole[:3]), table_configs(asked.model), 4)
    with pytest.raises(ValueError, match="do not make up the table user"):
        check_plan(tampered([*whole, whole[0]]), table_configs(asked.model), 4)
    dropped = copy.deepcopy(plan)
    (left,) = dropped.plan.values()
    del left["item"]
    with pytest.raises(ValueError, match="0 shardings of the table item"):
        check_plan(dropped, table_configs(asked.model), 4)
