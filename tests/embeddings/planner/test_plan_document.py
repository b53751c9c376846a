"""A plan that was written down adds up, and is made again from what was written."""

import json

import pytest

from asymdiffrec.base import InputError
from asymdiffrec.embeddings.planner.plan import solve
from asymdiffrec.embeddings.planner.plan_document import describe_plan, plan_document, solve_as
from tests.embeddings.planner.test_plan import cluster, problem

ROWS = {"user": 10_000_000, "item": 100_000, "day": 7}


@pytest.mark.parametrize("planner", ["fast", "torchrec"])
def test_a_plan_is_made_again_from_its_document(planner):
    asked = problem(ROWS, cluster(4, 2, "cuda"), 64)
    first = solve(asked, planner)
    document = json.loads(json.dumps(plan_document(first)))
    again = solve_as(asked, document)
    assert describe_plan(again) == describe_plan(first)
    assert again.plan.plan.keys() == first.plan.plan.keys()
    assert str(again.plan) == str(first.plan)
    assert plan_document(again)["ranks"] == document["ranks"]


def test_a_plan_of_something_else_is_refused():
    document = plan_document(solve(problem(ROWS, cluster(4, 2))))
    for asked, message in [
        (problem(ROWS, cluster(8, 2)), "the plan is for 4 ranks; there are 8"),
        (problem(ROWS, cluster(4, 4)), "the plan is for machines of 2 ranks; here are 4"),
        (problem(ROWS | {"tag": 9}, cluster(4, 2)), "the plan is of other tables: tag is in the job alone"),
        (problem({"user": 10_000_000, "item": 5}, cluster(4, 2)), "day is in the plan alone"),
        (problem(ROWS | {"item": 5}, cluster(4, 2)), "item is 100000 x 16 there, and 5 x 16 in the job"),
    ]:
        with pytest.raises(InputError, match=message):
            solve_as(asked, document)
    document["tables"][0]["ranks"] = [7] * len(document["tables"][0]["ranks"])
    with pytest.raises(InputError, match="which the job does not allow"):
        solve_as(problem(ROWS, cluster(4, 2)), document)
    other = next(kind for kind in ("row_wise", "table_wise") if kind != document["tables"][1]["sharding"])
    with pytest.raises(InputError, match="which the job does not allow"):
        solve_as(problem(ROWS, cluster(4, 2), per_table={"item": {"sharding": other}}), document)


def test_a_document_adds_up():
    document = plan_document(solve(problem(ROWS, cluster(4, 2, "cuda"), 64)))
    json.dumps(document, allow_nan=False)
    assert document["step_milliseconds"] >= max(one["step_milliseconds"] for one in document["ranks"])
    parts = [value for name, value in document["step"].items() if name not in ("waiting", "batch_size")]
    assert document["step_milliseconds"] == pytest.approx(sum(parts))
    assert document["samples_per_second"] == pytest.approx(256_000 / document["step_milliseconds"])
    weights = sum(rank["weights_bytes"] for rank in document["ranks"])
    assert weights >= 4 * 64 * sum(ROWS.values())  # replicas count each
    for rank in document["ranks"]:
        parts = sum(rank[f"{name}_bytes"] for name in ("weights", "state", "activations"))
        shared = document["dense_bytes"] + document["reserved_bytes"]
        assert rank["memory_bytes"] == pytest.approx(parts + shared, abs=3)
    slowest = max(document["ranks"], key=lambda rank: rank["step_milliseconds"])["step_milliseconds"]
    assert document["ranks"][document["binds"]["rank"]]["step_milliseconds"] == pytest.approx(slowest)
