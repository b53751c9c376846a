"""The command that plans, as its user runs it, and training by a plan made elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Command = Callable[..., Any]
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Two large tables and two small ones, without data."""
    fields = {
        "user": {"type": "id", "num_embeddings": 50_000_000, "embedding_dim": 64},
        "item": {"type": "id", "num_embeddings": 4_000_000, "embedding_dim": 64},
        "seen": {
            "type": "id_list",
            "num_embeddings": 4_000_000,
            "embedding_dim": 64,
            "table": "item",
            "expected_length": 20,
        },
        "day": {"type": "id", "num_embeddings": 7, "hash": False, "embedding_dim": 64},
        "age": {"type": "number", "embedding_dim": 64},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.dump({"name": "plans", "fields": fields, "train": {"batch_size": 8192}}))
    return path


def test_criteo_fits_eight_gpus(command: Command) -> None:
    outcome = command("plan", EXAMPLES / "criteo-1tb.yaml", "--gpus-per-node", 8, "--json", "--no-advise")
    assert outcome.status == 0, outcome.err
    document = outcome.document
    assert document["fits"]
    assert document["world_size"] == 8
    assert len(document["tables"]) == 26
    assert len(document["ranks"]) == 8
    assert all(rank["memory_bytes"] <= 80e9 for rank in document["ranks"])
    assert document["planner_seconds"] < 60


def test_no_rank_of_a_large_cluster_is_empty(command: Command) -> None:
    size = ("--nodes", 16, "--gpus-per-node", 8)
    document = command("plan", EXAMPLES / "criteo-1tb.yaml", *size, "--json", "--no-advise").document
    assert {rank for table in document["tables"] for rank in table["ranks"]} == set(range(128))
    assert all(rank["weights_bytes"] > 0 for rank in document["ranks"])


def test_a_plan_is_told_and_drawn(command: Command, job: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outcome = command("plan", job, "--gpu", "a100-80", "--gpus-per-node", 2, "--html", page)
    assert outcome.status == 0, outcome.err
    assert "1 x 2 a100-80: a step of 8,192 samples takes" in outcome.out
    assert "what binds: " in outcome.out
    text = page.read_text()
    assert text.count("<svg") == 3
    assert "http://" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "Sharding plan of plans" in text


def test_a_page_tells_what_is_cached_as_the_terminal_does(command: Command, job: Path, tmp_path: Path) -> None:
    caching = ("--set", "tables.kernels=[fused, fused_uvm_caching]", "--no-advise")
    outcome = command("plan", job, "--gpu", "l4", "--gpus-per-node", 1, *caching, "--html", tmp_path / "page.html")
    shown = re.search(r"fused_uvm_caching \d+%", outcome.out)
    assert shown is not None
    assert f"<td>{shown[0]}</td>" in (tmp_path / "page.html").read_text()


def test_advice_is_what_the_changed_job_gets(command: Command, job: Path) -> None:
    size = ("--gpus-per-node", 2)
    document = command("plan", job, *size, "--json").document
    assert document["advice"]
    for change in document["advice"]:
        settings = [part for setting in change["settings"] for part in ("--set", setting)]
        again = command("plan", job, *size, *settings, "--json", "--no-advise").document
        assert again["samples_per_second"] == pytest.approx(change["samples_per_second"])
        assert change["rate_ratio"] == pytest.approx(again["samples_per_second"] / document["samples_per_second"])


def test_lists_without_data_are_as_long_as_the_job_expects(command: Command, job: Path) -> None:
    document = command("plan", job, "--gpus-per-node", 2, "--json", "--no-advise").document
    (item,) = [table for table in document["tables"] if table["name"] == "item"]
    assert sorted(item["pooling_factors"]) == [1, 20]


def test_the_smallest_cluster_is_found(command: Command, job: Path) -> None:
    found = command("plan", job, "--gpu", "l4", "--json", "--no-advise").document
    assert found["fits"]
    ranks = found["world_size"]
    assert ranks > 1
    smaller = command("plan", job, "--gpu", "l4", "--gpus-per-node", ranks // 2, "--no-advise", "--json")
    assert smaller.status == 2
    assert not json.loads(smaller.out)["fits"]


def test_beyond_one_machine_the_smallest_cluster_is_of_whole_ones(command: Command, job: Path) -> None:
    """Three machines here, no power of two."""
    large = ("--gpu", "l4", "--set", "fields.user.num_embeddings=800000000", "--no-advise", "--json")
    assert command("plan", job, *large).document["cluster"] == {"nodes": 3, "gpus_per_node": 8, "gpu": "l4"}
    assert command("plan", job, *large, "--nodes", 2, "--gpus-per-node", 8).status == 2


def test_what_does_not_fit_is_told_with_what_would(command: Command, job: Path) -> None:
    outcome = command("plan", job, "--gpu", "l4", "--gpus-per-node", 1)
    assert outcome.status == 2
    assert "does not fit: tables: " in outcome.out
    assert "user (50000000 x 64" in outcome.out
    assert "What would help" in outcome.out
    assert "tables.kernels=[fused, fused_uvm_caching]" in outcome.out
    change = command("plan", job, "--gpu", "l4", "--gpus-per-node", 1, "--json").document["advice"][0]
    settings = [part for setting in change["settings"] for part in ("--set", setting)]
    assert command("plan", job, "--gpu", "l4", "--gpus-per-node", 1, *settings, "--no-advise").status == 0


def test_clusters_side_by_side(command: Command, job: Path) -> None:
    sizes = (1, 4, 12, 16)
    sweep = ("--sweep", f"gpus={','.join(map(str, sizes))}", "--gpu", "l4,h100")
    document = command("plan", job, *sweep, "--json").document
    rows = document["clusters"]
    assert [(row["gpu"], row["gpus"]) for row in rows] == [(gpu, n) for gpu in ("l4", "h100") for n in sizes]
    assert not rows[0]["fits"]
    assert "do not fit" in rows[0]["why"]
    assert "12 GPUs do not fill machines of 8" in rows[2]["why"]
    (note,) = document["notes"]
    assert note.startswith("l4: where cards share a PCIe switch")
    fitting = [row for row in rows if row["fits"]]
    assert len(fitting) == 5
    for row in fitting:
        assert row["gpu_hours_per_billion"] == pytest.approx(row["gpus"] * 1e9 / row["samples_per_second"] / 3600)
    assert "l4" in command("plan", job, *sweep).out


def test_a_device_of_ones_own(command: Command, job: Path, tmp_path: Path) -> None:
    figures = {"memory": 96, "bandwidth": 4000, "flops": 1000, "link": 400, "nic": 50}
    (tmp_path / "x1.yaml").write_text(yaml.dump(figures))
    document = command("plan", job, "--gpu", tmp_path / "x1.yaml", "--gpus-per-node", 2, "--json").document
    assert document["cluster"]["gpu"] == "x1"
    assert document["device_bytes"] == 96e9


def test_torchrecs_planner_plans_too(command: Command, job: Path) -> None:
    size = ("--gpus-per-node", 4, "--json", "--no-advise")
    theirs = command("plan", job, "--planner", "torchrec", *size).document
    ours = command("plan", job, *size).document
    assert theirs["planner"] == "torchrec"
    assert ours["step_milliseconds"] <= theirs["step_milliseconds"] * 1.001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "h1000"), "h1000: no such device; known are a100-40, a100-80, h100"),
        (("--nodes", 0), "--nodes 0: at least one is needed"),
        (("--gpus-per-node", 0), "--gpus-per-node 0: at least one"),
        (("--gpu", "h100,h200"), "several GPUs are compared with --sweep"),
        (("--sweep", "gpus=8,x"), "--sweep gpus=8,x: expected numbers of GPUs"),
        (("--nodes", 1000, "--gpus-per-node", 8), "8,000 GPUs: at most 4,096 are planned for"),
        (("--sweep", "gpus=8", "--nodes", 2), "--sweep goes with none of"),
        (("--html", "/nowhere/page.html"), "--html /nowhere/page.html: no file can be written there"),
        (("--set", "train.batch_size=4", "--gpus-per-node", 8), "4 samples are too few for 8 ranks"),
        (("--rows-from-data", 0.05), "--rows-from-data: there is no statistics.yaml"),
        (("--set", "tables.per_table.day.sharding=row_wise", "--gpus-per-node", 8), "tables.per_table.day: row_wise"),
    ],
)
def test_wrong_input_is_one_line(command: Command, job: Path, arguments: tuple[object, ...], message: str) -> None:
    outcome = command("plan", job, *arguments)
    assert outcome.status == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_data_tell_pooling_reuse_and_rows(command: Command, clicks: Path) -> None:
    document = command("plan", clicks / "job.yaml", "--gpus-per-node", 2, "--json", "--no-advise").document
    profile = json.loads((clicks / "profile.json").read_text())["fields"]
    factors = {table["name"]: table["pooling_factors"] for table in document["tables"]}
    assert factors["user_id"][0] == pytest.approx(1 - profile["user_id"]["missing"])
    again = command(
        "plan", clicks / "job.yaml", "--gpus-per-node", 2, "--rows-from-data", 0.1, "--json", "--no-advise"
    ).document
    rows = {table["name"]: table["rows"] for table in again["tables"]}
    ids = profile["city"]["cardinality"]
    assert 1 - (1 - 1 / rows["city"]) ** (ids - 1) == pytest.approx(0.1, abs=0.01)
    assert rows["user_id"] == 500  # which is not hashed


def test_training_uses_a_plan_that_was_made_elsewhere(
    command: Command, clicks: Path, small: list[str], tmp_path: Path
) -> None:
    settings = [*small, "--set", "train.steps=5"]
    outcome = command("plan", clicks / "job.yaml", "--gpu", "cpu", "--gpus-per-node", 1, "--json", *settings)
    plan = tmp_path / "plan.json"
    plan.write_text(outcome.out)
    outcome = command("train", clicks / "job.yaml", "--run", tmp_path / "run", "--plan", plan, *settings)
    assert outcome.status == 0, outcome.err
    used = json.loads((tmp_path / "run" / "plan.json").read_text())
    places = ("name", "sharding", "kernel", "ranks")
    assert [[table[key] for key in places] for table in used["tables"]] == [
        [table[key] for key in places] for table in outcome_tables(plan)
    ]
    assert used["planner"] == "file"
    assert used["device"]["bandwidth"] == json.loads(plan.read_text())["device"]["bandwidth"]


def outcome_tables(plan: Path) -> list[dict[str, Any]]:
    tables: list[dict[str, Any]] = json.loads(plan.read_text())["tables"]
    return tables


def test_a_plan_of_another_job_is_refused(
    command: Command, clicks: Path, job: Path, small: list[str], tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    for size, message in ((1, "the plan is of other tables"), (2, "the plan is for 2 ranks; there are 1")):
        plan.write_text(command("plan", job, "--gpus-per-node", size, "--json", "--no-advise").out)
        outcome = command("train", clicks / "job.yaml", "--run", tmp_path / "run", "--plan", plan, *small)
        assert outcome.status == 2
        assert message in outcome.err
        assert not (tmp_path / "run").exists()
    plan.write_text("{}")
    outcome = command("train", clicks / "job.yaml", "--run", tmp_path / "run", "--plan", plan, *small)
    assert outcome.status == 2
    assert "not a plan" in outcome.err
