"""The shards of TorchRec match the plan, and a wrong plan is refused."""

import copy

import pytest

from asymdiffrec.embeddings.planner.plan import solve
from asymdiffrec.embeddings.planner.plan_validation import InvalidPlanError, validate_plan
from asymdiffrec.embeddings.planner.planned_tables import table_configs
from asymdiffrec.embeddings.planner.torchrec_planner import plan_by_torchrec
from asymdiffrec.embeddings.planner.verification import verify_plan
from tests.embeddings.planner.test_plan import cluster, problem

ROWS = {"user": 10_000_000, "item": 100_000, "day": 700}
KINDS = ["table_wise", "row_wise", "column_wise", "table_row_wise", "grid_shard", "data_parallel"]


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_hold_what_the_plan_says(kind: str) -> None:
    unsolved = problem(ROWS, cluster(16, 8, "cuda"), 128, per_table={"item": {"sharding": kind}})
    solution = solve(unsolved)
    assert {option.sharding_type for option in solution.options if option.name == "item"} == {kind}
    verify_plan(unsolved.model, solution.plan, unsolved.sharder, 16, 8, range(0, 16, 5))


@pytest.mark.parametrize("managed", [["user"], ["user", "item"]])
def test_ranks_hold_their_part_of_managed_tables(managed: list[str]) -> None:
    rows = {"user": 1 << 20, "item": 1 << 12}
    unsolved = problem(
        rows, cluster(16, 8, "cuda"), 128, per_table={name: {"collision": "managed"} for name in managed}
    )
    solution = solve(unsolved)
    assert {option.name for option in solution.options if option.sharding_type == "row_wise"} >= set(managed)
    verify_plan(unsolved.model, solution.plan, unsolved.sharder, 16, 8, range(0, 16, 5))


def test_plans_of_torchrecs_planner_can_be_verified() -> None:
    unsolved = problem(ROWS, cluster(16, 8, "cuda"), 128)
    solution = solve(unsolved, plan_by_torchrec)
    kernels = {(option.sharding_type == "data_parallel", option.compute_kernel) for option in solution.options}
    assert kernels <= {(True, "dense"), (False, "fused")}
    verify_plan(unsolved.model, solution.plan, unsolved.sharder, 16, 8, [0, 9])


def test_a_plan_with_missing_or_extra_parts_is_refused() -> None:
    unsolved = problem(ROWS, cluster(4, 4, "cuda"), 128, per_table={"user": {"sharding": "row_wise"}})
    plan = solve(unsolved).plan
    (module,) = copy.deepcopy(plan.plan).values()
    sharding = module["user"]
    validate_plan(plan, table_configs(unsolved.model), 4)
    shards_of_user = list(sharding.sharding_spec.shards)

    def with_shards(shards: list) -> object:
        changed = copy.deepcopy(plan)
        (changed_module,) = changed.plan.values()
        changed_module["user"].sharding_spec.shards = shards
        return changed

    with pytest.raises(InvalidPlanError, match="do not cover the table user exactly"):
        validate_plan(with_shards(shards_of_user[:3]), table_configs(unsolved.model), 4)
    with pytest.raises(InvalidPlanError, match="do not cover the table user exactly"):
        validate_plan(with_shards([*shards_of_user, shards_of_user[0]]), table_configs(unsolved.model), 4)
    without_item = copy.deepcopy(plan)
    (remaining,) = without_item.plan.values()
    del remaining["item"]
    with pytest.raises(InvalidPlanError, match="0 shardings of the table item"):
        validate_plan(without_item, table_configs(unsolved.model), 4)
