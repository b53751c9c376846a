"""The command `plan`, and training with a plan file."""

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
    """Return a job with two large tables and a small one, and without data."""
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


def test_every_rank_of_a_large_cluster_has_tables(command: Command) -> None:
    size = ("--nodes", 16, "--gpus-per-node", 8)
    document = command("plan", EXAMPLES / "criteo-1tb.yaml", *size, "--json", "--no-advise").document
    assert {rank for table in document["tables"] for rank in table["ranks"]} == set(range(128))
    assert all(rank["weights_bytes"] > 0 for rank in document["ranks"])


def test_a_plan_is_printed_and_drawn(command: Command, job: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outcome = command("plan", job, "--gpu", "a100-80", "--gpus-per-node", 2, "--html", page)
    assert outcome.status == 0, outcome.err
    assert "1 x 2 a100-80: a step of 8,192 samples takes" in outcome.out
    assert "bottleneck: " in outcome.out
    text = page.read_text()
    assert text.count("<svg") == 3
    assert "http://" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "Sharding plan of plans" in text


def test_page_and_terminal_show_the_same_share_of_cached_rows(command: Command, job: Path, tmp_path: Path) -> None:
    caching = ("--set", "tables.kernels=[fused, fused_uvm_caching]", "--no-advise")
    outcome = command("plan", job, "--gpu", "l4", "--gpus-per-node", 1, *caching, "--html", tmp_path / "page.html")
    kernel = re.search(r"fused_uvm_caching \d+%", outcome.out)
    assert kernel is not None
    assert f"<td>{kernel[0]}</td>" in (tmp_path / "page.html").read_text()


def test_the_effect_of_advice_is_that_of_the_changed_job(command: Command, job: Path) -> None:
    size = ("--gpus-per-node", 2)
    document = command("plan", job, *size, "--json").document
    assert document["advice"]
    for change in document["advice"]:
        settings = [part for setting in change["overrides"] for part in ("--set", setting)]
        again = command("plan", job, *size, *settings, "--json", "--no-advise").document
        assert again["samples_per_second"] == pytest.approx(change["samples_per_second"])
        assert change["rate_ratio"] == pytest.approx(again["samples_per_second"] / document["samples_per_second"])


def test_lists_without_data_have_their_expected_length(command: Command, job: Path) -> None:
    document = command("plan", job, "--gpus-per-node", 2, "--json", "--no-advise").document
    (item,) = [table for table in document["tables"] if table["name"] == "item"]
    assert sorted(item["pooling_factors"]) == [1, 20]


def test_the_smallest_cluster_is_found(command: Command, job: Path) -> None:
    document = command("plan", job, "--gpu", "l4", "--json", "--no-advise").document
    assert document["fits"]
    ranks = document["world_size"]
    assert ranks > 1
    smaller = command("plan", job, "--gpu", "l4", "--gpus-per-node", ranks // 2, "--no-advise", "--json")
    assert smaller.status == 2
    assert not json.loads(smaller.out)["fits"]


def test_beyond_one_host_the_smallest_cluster_has_whole_hosts(command: Command, job: Path) -> None:
    """Beyond one host the number of hosts need not be a power of two."""
    large = ("--gpu", "l4", "--set", "fields.user.num_embeddings=800000000", "--no-advise", "--json")
    assert command("plan", job, *large).document["cluster"] == {"nodes": 3, "gpus_per_node": 8, "gpu": "l4"}
    assert command("plan", job, *large, "--nodes", 2, "--gpus-per-node", 8).status == 2


def test_tables_that_do_not_fit_are_reported_with_changes_that_fit(command: Command, job: Path) -> None:
    outcome = command("plan", job, "--gpu", "l4", "--gpus-per-node", 1)
    assert outcome.status == 2
    assert "does not fit: tables: " in outcome.out
    assert "user (50000000 x 64" in outcome.out
    assert "Changes that help" in outcome.out
    assert "tables.kernels=[fused, fused_uvm_caching]" in outcome.out
    change = command("plan", job, "--gpu", "l4", "--gpus-per-node", 1, "--json").document["advice"][0]
    settings = [part for setting in change["overrides"] for part in ("--set", setting)]
    assert command("plan", job, "--gpu", "l4", "--gpus-per-node", 1, *settings, "--no-advise").status == 0


def test_sweep_compares_clusters(command: Command, job: Path) -> None:
    sizes = (1, 4, 12, 16)
    sweep = ("--sweep", f"gpus={','.join(map(str, sizes))}", "--gpu", "l4,h100")
    document = command("plan", job, *sweep, "--json").document
    rows = document["clusters"]
    assert [(row["gpu"], row["gpus"]) for row in rows] == [(gpu, n) for gpu in ("l4", "h100") for n in sizes]
    assert not rows[0]["fits"]
    assert "do not fit" in rows[0]["why"]
    assert "12 GPUs do not fill hosts with 8 GPUs" in rows[2]["why"]
    (note,) = document["notes"]
    assert note.startswith("l4: a step takes longer than planned if cards share a PCIe switch")
    fitting = [row for row in rows if row["fits"]]
    assert len(fitting) == 5
    for row in fitting:
        assert row["gpu_hours_per_billion"] == pytest.approx(row["gpus"] * 1e9 / row["samples_per_second"] / 3600)
    assert "l4" in command("plan", job, *sweep).out


def test_a_yaml_file_describes_a_device(command: Command, job: Path, tmp_path: Path) -> None:
    figures = {"memory": 96, "bandwidth": 4000, "flops": 1000, "link": 400, "nic": 50}
    (tmp_path / "x1.yaml").write_text(yaml.dump(figures))
    document = command("plan", job, "--gpu", tmp_path / "x1.yaml", "--gpus-per-node", 2, "--json").document
    assert document["cluster"]["gpu"] == "x1"
    assert document["device_bytes"] == 96e9


def test_verify_shards_ranks_as_planned(command: Command, job: Path) -> None:
    document = command("plan", job, "--gpus-per-node", 2, "--verify", "--json", "--no-advise").document
    assert any(note.startswith("verified: TorchRec shards rank") for note in document["notes"])


def test_a_bug_is_not_reported_as_wrong_input(command: Command, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ValueError of a library or of our own code leaves the command with its traceback; only InputError is exit 2."""

    def fails(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("asymdiffrec.embeddings.planner.search_planner.search", fails)
    with pytest.raises(ValueError, match="a bug"):
        command("plan", job, "--gpus-per-node", 2, "--json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "h1000"), "h1000: no such device; allowed are a100-40, a100-80, h100"),
        (("--nodes", 0), "--nodes 0: must be at least 1"),
        (("--gpus-per-node", 0), "--gpus-per-node 0: must be at least 1"),
        (("--gpu", "h100,h200"), "several GPUs can only be compared with --sweep"),
        (("--sweep", "gpus=8,x"), "--sweep gpus=8,x: expected numbers of GPUs"),
        (("--nodes", 1000, "--gpus-per-node", 8), "8,000 GPUs: at most 4,096 are allowed"),
        (("--sweep", "gpus=8", "--nodes", 2), "--sweep cannot be combined with"),
        (("--html", "/nowhere/page.html"), "--html /nowhere/page.html: a directory, or a file in"),
        (("--set", "train.batch_size=4", "--gpus-per-node", 8), "4 samples are too few for 8 ranks"),
        (("--num-embeddings-from-data", 0.05), "statistics.yaml does not exist; prepare the data first"),
        (("--set", "tables.per_table.day.sharding=row_wise", "--gpus-per-node", 8), "tables.per_table.day: row_wise"),
    ],
)
def test_wrong_input_is_one_line(command: Command, job: Path, arguments: tuple[object, ...], message: str) -> None:
    outcome = command("plan", job, *arguments)
    assert outcome.status == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_statistics_set_pooling_factors_and_table_sizes(command: Command, clicks: Path) -> None:
    document = command("plan", clicks / "job.yaml", "--gpus-per-node", 2, "--json", "--no-advise").document
    profile = json.loads((clicks / "profile.json").read_text())["fields"]
    factors = {table["name"]: table["pooling_factors"] for table in document["tables"]}
    assert factors["user_id"][0] == pytest.approx(1 - profile["user_id"]["missing"])
    again = command(
        "plan", clicks / "job.yaml", "--gpus-per-node", 2, "--num-embeddings-from-data", 0.1, "--json", "--no-advise"
    ).document
    sizes = {table["name"]: table["num_embeddings"] for table in again["tables"]}
    ids = profile["city"]["cardinality"]
    assert 1 - (1 - 1 / sizes["city"]) ** (ids - 1) == pytest.approx(0.1, abs=0.01)
    assert sizes["user_id"] == 500  # not hashed


def test_training_uses_the_plan_of_a_plan_file(
    command: Command, clicks: Path, small: list[str], tmp_path: Path
) -> None:
    settings = [*small, "--set", "train.steps=5"]
    outcome = command("plan", clicks / "job.yaml", "--gpu", "cpu", "--gpus-per-node", 1, "--json", *settings)
    plan = tmp_path / "plan.json"
    plan.write_text(outcome.out)
    outcome = command("train", clicks / "job.yaml", "--run", tmp_path / "run", "--plan", plan, *settings)
    assert outcome.status == 0, outcome.err
    used = json.loads((tmp_path / "run" / "plan.json").read_text())
    keys = ("name", "sharding", "kernel", "ranks")
    assert [[table[key] for key in keys] for table in used["tables"]] == [
        [table[key] for key in keys] for table in tables_of(plan)
    ]
    assert used["planner"] == "file"
    assert used["device"]["bandwidth"] == json.loads(plan.read_text())["device"]["bandwidth"]


def tables_of(plan: Path) -> list[dict[str, Any]]:
    tables: list[dict[str, Any]] = json.loads(plan.read_text())["tables"]
    return tables


def test_a_plan_file_of_another_job_is_refused(
    command: Command, clicks: Path, job: Path, small: list[str], tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    for size, message in ((1, "the plan is for other tables"), (2, "the plan is for 2 ranks; the training has 1")):
        plan.write_text(command("plan", job, "--gpus-per-node", size, "--json", "--no-advise").out)
        outcome = command("train", clicks / "job.yaml", "--run", tmp_path / "run", "--plan", plan, *small)
        assert outcome.status == 2
        assert message in outcome.err
        assert not (tmp_path / "run").exists()
    plan.write_text("{}")
    outcome = command("train", clicks / "job.yaml", "--run", tmp_path / "run", "--plan", plan, *small)
    assert outcome.status == 2
    assert "not a plan" in outcome.err
