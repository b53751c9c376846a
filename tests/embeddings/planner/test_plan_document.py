"""The document of a plan: its sums, and the same plan built again from the document."""

import json

import pytest

from asymdiffrec.base import InputError
from asymdiffrec.embeddings.planner.plan import solve
from asymdiffrec.embeddings.planner.plan_document import parse_plan, plan_document, solve_from_document, table_entries
from asymdiffrec.embeddings.planner.search_planner import plan_by_search
from asymdiffrec.embeddings.planner.torchrec_planner import plan_by_torchrec
from tests.embeddings.planner.test_plan import cluster, problem

ROWS = {"user": 10_000_000, "item": 100_000, "day": 7}


@pytest.mark.parametrize("planner", [plan_by_search, plan_by_torchrec])
def test_a_document_gives_the_same_plan_again(planner):
    unsolved = problem(ROWS, cluster(4, 2, "cuda"), 64)
    first = solve(unsolved, planner)
    document = json.loads(json.dumps(plan_document(first)))
    again = solve_from_document(unsolved, document)
    assert table_entries(again) == table_entries(first)
    assert again.plan.plan.keys() == first.plan.plan.keys()
    assert str(again.plan) == str(first.plan)
    assert plan_document(again)["ranks"] == document["ranks"]


def test_a_plan_for_another_problem_is_refused():
    document = plan_document(solve(problem(ROWS, cluster(4, 2))))
    for other, message in [
        (problem(ROWS, cluster(8, 2)), "the plan is for 4 ranks; the training has 8"),
        (problem(ROWS, cluster(4, 4)), "the plan is for 2 ranks on each host; the training has 4"),
        (problem(ROWS | {"tag": 9}, cluster(4, 2)), "the plan is for other tables: only the job has the table tag"),
        (problem({"user": 10_000_000, "item": 5}, cluster(4, 2)), "only the plan has the table day"),
        (problem(ROWS | {"item": 5}, cluster(4, 2)), "item is 100000 x 16 in the plan and 5 x 16 in the job"),
    ]:
        with pytest.raises(InputError, match=message):
            solve_from_document(other, document)
    document["tables"][0]["ranks"] = [7] * len(document["tables"][0]["ranks"])
    with pytest.raises(InputError, match="which the job does not allow"):
        solve_from_document(problem(ROWS, cluster(4, 2)), document)
    another = next(kind for kind in ("row_wise", "table_wise") if kind != document["tables"][1]["sharding"])
    with pytest.raises(InputError, match="which the job does not allow"):
        solve_from_document(problem(ROWS, cluster(4, 2), per_table={"item": {"sharding": another}}), document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a plan file written by"),
        (b'{"fits": false, "world_size": 4}', "local_world_size: field required"),
        (b'{"world_size": "four"}', "world_size: input should be a valid integer"),
    ],
)
def test_a_file_without_a_plan_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_plan(text)


def test_the_parts_of_a_document_add_up_to_its_totals():
    document = plan_document(solve(problem(ROWS, cluster(4, 2, "cuda"), 64)))
    json.dumps(document, allow_nan=False)
    assert document["step_milliseconds"] >= max(rank["step_milliseconds"] for rank in document["ranks"])
    parts = [value for name, value in document["step"].items() if name not in ("waiting", "batch_size")]
    assert document["step_milliseconds"] == pytest.approx(sum(parts))
    assert document["samples_per_second"] == pytest.approx(256_000 / document["step_milliseconds"])
    weights = sum(rank["weights_bytes"] for rank in document["ranks"])
    assert weights >= 4 * 64 * sum(ROWS.values())  # each replica counts
    for rank in document["ranks"]:
        parts = sum(rank[f"{name}_bytes"] for name in ("weights", "state", "activations"))
        shared = document["dense_bytes"] + document["reserved_bytes"]
        assert rank["memory_bytes"] == pytest.approx(parts + shared, abs=3)
    slowest = max(document["ranks"], key=lambda rank: rank["step_milliseconds"])["step_milliseconds"]
    assert document["ranks"][document["bottleneck"]["rank"]]["step_milliseconds"] == pytest.approx(slowest)
