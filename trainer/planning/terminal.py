"""A plan as tables and lines in a terminal; `html_page.py` shows the same rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from asymdiffrec.trainer.console import output

MAX_TABLES, MAX_RANKS = 40, 16
"""Maximum number of tables and of ranks that are printed."""
MAX_RANGES = 4
"""Maximum number of ranges of ranks that are printed for a table."""
GB = 1e9

TABLE_HEADINGS = (
    "table", "num_embeddings", "embedding_dim", "dtype", "GB, all ranks", "sharding", "kernel", "ranks", "ms",
)  # fmt: skip
ADVICE_HEADINGS = ("change", "samples/s", "tables on the fullest rank", "--set")


def show_plan(document: Mapping[str, Any]) -> None:
    """Print a plan: its tables, its ranks, the step, and the bottleneck."""
    out, rows = output(), table_rows(document)
    left = ("table", "sharding", "kernel", "ranks")
    out.print(_table("Tables, the largest first", TABLE_HEADINGS, rows[:MAX_TABLES], left))
    if len(rows) > MAX_TABLES:
        out.print(f"and {len(rows) - MAX_TABLES:,} smaller tables; --json prints all")
    out.print(_ranks_table(document))
    for line in (*summary(document), *document["notes"]):
        out.print(line, highlight=False, soft_wrap=True)


def show_advice(document: Mapping[str, Any]) -> None:
    """Print the changes that help."""
    output().print(_table("Changes that help", ADVICE_HEADINGS, advice_rows(document), ("change", "--set")))


def show_unfit(document: Mapping[str, Any]) -> None:
    """Print the reason why the tables do not fit, and the changes that make them fit."""
    out = output()
    out.print(f"does not fit: {document['why']}", highlight=False, soft_wrap=True)
    if document["advice"]:
        show_advice(document)
    else:
        out.print(
            "None of the changes that were tried makes the tables fit. Leave out --nodes and --gpus-per-node to find "
            "the smallest cluster that fits."
        )


def show_sweep(document: Mapping[str, Any]) -> None:
    """Print a comparison of clusters, and the reason for each cluster without a plan."""
    out, clusters = output(), document["clusters"]
    headings = ("GPU", "GPUs", "fits", "step, ms", "samples/s", "GPU-hours per 10^9 samples", "memory")
    rows = [_cluster_row(cluster) for cluster in clusters]
    out.print(_table("Comparison of clusters", headings, rows, ("GPU", "fits")))
    for cluster in clusters:
        if not cluster["fits"]:
            line = f"{cluster['gpus']} x {cluster['gpu']}: {cluster['why']}"
            out.print(line, highlight=False, soft_wrap=True)
    for note in document["notes"]:
        out.print(note, highlight=False, soft_wrap=True)


def _table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Collection[str] = (),
    caption: str | None = None,
) -> Table:
    """Return a table. Columns with a heading in `left` are aligned to the left, all others to the right."""
    table = Table(title=title, caption=caption)
    for heading in headings:
        overflow: Any = "fold" if heading == "--set" else "ellipsis"
        table.add_column(heading, justify="left" if heading in left else "right", overflow=overflow)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _ranks_table(document: Mapping[str, Any]) -> Table:
    ranks, title = document["ranks"], "Ranks"
    if len(ranks) > MAX_RANKS:
        half = MAX_RANKS // 2
        title = f"Ranks, the {half} slowest and the {half} quickest of {len(ranks):,}"
        by_time = sorted(ranks, key=lambda rank: -rank["step_milliseconds"])
        ranks = [*by_time[:half], *by_time[-half:]]
    caption = (
        "memory in GB: weights, optimizer state, activations (ids and embeddings that ranks exchange), dense part, "
        "reserve; times of a step in ms"
    )
    headings = (
        "rank", "memory", "weights", "state", "activations", "dense", "reserve", "step", "forward", "backward",
        "communication",
    )  # fmt: skip
    return _table(title, headings, [_rank_row(rank, document) for rank in ranks], caption=caption)


def _rank_row(rank: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    of_rank = (rank[f"{name}_bytes"] for name in ("memory", "weights", "state", "activations"))
    communication = rank["forward_communication_milliseconds"] + rank["backward_communication_milliseconds"]
    times = (rank[f"{name}_milliseconds"] for name in ("step", "forward", "backward"))
    return [
        str(rank["rank"]),
        *(f"{size / GB:.3g}" for size in (*of_rank, document["dense_bytes"], document["reserved_bytes"])),
        *(f"{time:.3f}" for time in (*times, communication)),
    ]


def _cluster_row(cluster: Mapping[str, Any]) -> list[str]:
    figures = ["", "", "", ""]
    if cluster["fits"]:
        figures = [
            f"{cluster['step_milliseconds']:.3g}", f"{cluster['samples_per_second']:,.0f}",
            f"{cluster['gpu_hours_per_billion']:.3g}", f"{cluster['memory_share']:.0%}",
        ]  # fmt: skip
    return [cluster["gpu"], f"{cluster['gpus']:,}", "yes" if cluster["fits"] else "no", *figures]


def table_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells under TABLE_HEADINGS: one row for each table, the largest first."""
    tables = sorted(document["tables"], key=total_bytes, reverse=True)
    return [_table_row(table, document["world_size"]) for table in tables]


def _table_row(table: Mapping[str, Any], world_size: int) -> list[str]:
    load_factor = table["cache_load_factor"]
    return [
        table["name"], f"{table['num_embeddings']:,}", str(table["embedding_dim"]), table["dtype"],
        f"{total_bytes(table) / GB:.3g}", table["sharding"],
        table["kernel"] + (f" {load_factor:.0%}" if load_factor else ""),
        _ranges(table["ranks"], world_size), f"{table['milliseconds']:.3g}",
    ]  # fmt: skip


def total_bytes(table: Mapping[str, Any]) -> int:
    """Return the bytes of a table's weights and optimizer state on all devices and hosts."""
    size: int = table["bytes"] + table["host_bytes"]
    return size


def _ranges(ranks: Sequence[int], world_size: int) -> str:
    """Return ranks as short text, such as `0-3, 6`."""
    ranks = sorted(set(ranks))
    if len(ranks) == world_size:
        return "all" if world_size > 1 else "0"
    ranges: list[list[int]] = []
    for rank in ranks:
        if ranges and rank == ranges[-1][-1] + 1:
            ranges[-1][1:] = [rank]
        else:
            ranges.append([rank])
    text = ", ".join("-".join(map(str, bounds)) for bounds in ranges[:MAX_RANGES])
    return text + (f", … ({len(ranks)})" if len(ranges) > MAX_RANGES else "")


def advice_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells under ADVICE_HEADINGS, one row for each change.

    Effects are relative to the plan of the unchanged job, or absolute if the unchanged job has no plan.
    """
    return [_advice_row(change) for change in document["advice"]]


def _advice_row(change: Mapping[str, Any]) -> list[str]:
    if "rate_ratio" in change:
        effect = [f"{change[name] - 1:+.0%}" for name in ("rate_ratio", "memory_ratio")]
    else:
        effect = [f"{change['samples_per_second']:,.0f}", f"{change['table_bytes'] / GB:.3g} GB"]
    return [change["change"], *effect, "\n".join(change["overrides"])]


def summary(document: Mapping[str, Any]) -> list[str]:
    """Return a few lines about the step: its time, its parts, the bottleneck, and the time to plan."""
    step, bottleneck, cluster = document["step"], document["bottleneck"], document["cluster"]
    parts = ("forward", "backward", "communication", "dense", "all_reduce", "input_distribution", "overhead")
    times = ", ".join(f"{name.replace('_', ' ')} {step[name]:.3g}" for name in parts)
    return [
        f"{cluster['nodes']} x {cluster['gpus_per_node']} {cluster['gpu']}: a step of {document['batch_size']:,} "
        f"samples takes {document['step_milliseconds']:.3g} ms, {document['samples_per_second']:,.0f} samples/s",
        f"parts of the step in ms: {times}; {document['imbalance']:.0%} of the step is waiting for the slowest rank",
        f"bottleneck: {bottleneck['resource']}; the most expensive table is {bottleneck['table']} on rank "
        f"{bottleneck['rank']} ({bottleneck['table_milliseconds']:.3g} ms); memory is fullest on rank "
        f"{bottleneck['fullest_rank']} ({bottleneck['memory_share']:.0%}, reserve included)",
        f"planned in {document['planner_seconds']:.2f} s",
    ]
