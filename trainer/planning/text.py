"""A plan for people, in a terminal; and the parts of it that a page has too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from asymdiffrec.trainer.console import output

MOST_TABLES, MOST_RANKS = 40, 16
GB = 1e9

TABLE_HEADINGS = ("table", "rows", "dim", "type", "GB, all ranks", "sharding", "kernel", "ranks", "ms")
ADVICE_HEADINGS = ("change", "samples/s", "tables on the fullest rank", "--set")


def show_plan(document: Mapping[str, Any]) -> None:
    """Print a plan: its tables, its ranks, the step and what binds it."""
    out, rows = output(), table_rows(document)
    left = ("table", "sharding", "kernel", "ranks")
    out.print(_table("Tables, the largest first", TABLE_HEADINGS, rows[:MOST_TABLES], left))
    if len(rows) > MOST_TABLES:
        out.print(f"and {len(rows) - MOST_TABLES:,} smaller tables; --json has all")
    out.print(_ranks(document))
    for line in (*summary(document), *document["notes"]):
        out.print(line, highlight=False, soft_wrap=True)


def show_advice(document: Mapping[str, Any]) -> None:
    """Print what would help."""
    output().print(_table("What would help", ADVICE_HEADINGS, advice_rows(document), ("change", "--set")))


def show_unfit(document: Mapping[str, Any]) -> None:
    """Print why tables do not fit, and what makes them fit."""
    out = output()
    out.print(f"does not fit: {document['why']}", highlight=False, soft_wrap=True)
    if document["advice"]:
        show_advice(document)
    else:
        out.print("No single change that was tried makes them fit; a larger cluster may: leave out its size to see.")


def show_sweep(document: Mapping[str, Any]) -> None:
    """Print clusters side by side, and why those that do not fit do not."""
    out, clusters = output(), document["clusters"]
    headings = ("GPU", "GPUs", "fits", "step, ms", "samples/s", "GPU-hours per 10^9 samples", "memory")
    out.print(_table("Clusters side by side", headings, [_cluster_row(one) for one in clusters], ("GPU", "fits")))
    for one in clusters:
        if not one["fits"]:
            out.print(f"{one['gpus']} x {one['gpu']}: {one['why']}", highlight=False, soft_wrap=True)
    for note in document["notes"]:
        out.print(note, highlight=False, soft_wrap=True)


def _table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Collection[str] = (),
    caption: str | None = None,
) -> Table:
    """Numbers are on the right, all but the columns that are to be `left`."""
    table = Table(title=title, caption=caption)
    for heading in headings:
        overflow: Any = "fold" if heading == "--set" else "ellipsis"
        table.add_column(heading, justify="left" if heading in left else "right", overflow=overflow)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _ranks(document: Mapping[str, Any]) -> Table:
    ranks = document["ranks"]
    order = sorted(ranks, key=lambda rank: -rank["step_milliseconds"])
    shown = ranks if len(ranks) <= MOST_RANKS else [*order[: MOST_RANKS // 2], *order[-MOST_RANKS // 2 :]]
    some = f", the {MOST_RANKS // 2} slowest and the {MOST_RANKS // 2} quickest of {len(ranks):,}"
    title = "Ranks" + (some if len(ranks) > MOST_RANKS else "")
    caption = (
        "GB of memory: weights, optimizer's state, ids and embeddings in flight, dense part, reserve; ms of a step"
    )
    headings = (
        *("rank", "memory", "weights", "state", "activations", "dense", "reserve"),
        *("step", "forward", "backward", "communication"),
    )
    return _table(title, headings, [_rank_row(rank, document) for rank in shown], caption=caption)


def _rank_row(rank: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    own = (rank[f"{name}_bytes"] for name in ("memory", "weights", "state", "activations"))
    communication = rank["forward_communication_ms"] + rank["backward_communication_ms"]
    return [
        str(rank["rank"]),
        *(f"{size / GB:.3g}" for size in (*own, document["dense_bytes"], document["reserved_bytes"])),
        *(f"{rank[name]:.3f}" for name in ("step_milliseconds", "forward_ms", "backward_ms")),
        f"{communication:.3f}",
    ]


def _cluster_row(cluster: Mapping[str, Any]) -> list[str]:
    found = ["", "", "", ""]
    if cluster["fits"]:
        found = [
            f"{cluster['step_milliseconds']:.3g}", f"{cluster['samples_per_second']:,.0f}",
            f"{cluster['gpu_hours_per_billion']:.3g}", f"{cluster['memory_share']:.0%}",
        ]  # fmt: skip
    return [cluster["gpu"], f"{cluster['gpus']:,}", "yes" if cluster["fits"] else "no", *found]


def table_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """What TABLE_HEADINGS are over: a row for each table, the largest first."""
    return [_table_row(table, document["world_size"]) for table in sorted(document["tables"], key=held, reverse=True)]


def _table_row(table: Mapping[str, Any], world_size: int) -> list[str]:
    return [
        table["name"], f"{table['rows']:,}", str(table["dim"]), table["dtype"], f"{held(table) / GB:.3g}",
        table["sharding"], table["kernel"] + (f" {table['cached']:.0%}" if table["cached"] else ""),
        _ranges(table["ranks"], world_size), f"{table['milliseconds']:.3g}",
    ]  # fmt: skip


def held(table: Mapping[str, Any]) -> int:
    """Bytes of a table, wherever they are."""
    size: int = table["bytes"] + table["host_bytes"]
    return size


def _ranges(ranks: Sequence[int], world_size: int) -> str:
    """Ranks as people write them: `0-3, 6`."""
    ranks = sorted(set(ranks))
    if len(ranks) == world_size:
        return "all" if world_size > 1 else "0"
    found: list[list[int]] = []
    for rank in ranks:
        if found and rank == found[-1][-1] + 1:
            found[-1][1:] = [rank]
        else:
            found.append([rank])
    shown = ", ".join("-".join(map(str, part)) for part in found[:4])
    return shown + (f", … ({len(ranks)})" if len(found) > 4 else "")


def advice_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """What ADVICE_HEADINGS are over: a row for each change, with ratios to the plan where there is one without it."""
    return [_advice_row(change) for change in document["advice"]]


def _advice_row(change: Mapping[str, Any]) -> list[str]:
    if "rate_ratio" in change:
        effect = [f"{change[name] - 1:+.0%}" for name in ("rate_ratio", "memory_ratio")]
    else:
        effect = [f"{change['samples_per_second']:,.0f}", f"{change['table_bytes'] / GB:.3g} GB"]
    return [change["change"], *effect, "\n".join(change["settings"])]


def summary(document: Mapping[str, Any]) -> list[str]:
    """The step in a few lines."""
    step, binds, cluster = document["step"], document["binds"], document["cluster"]
    parts = ("forward", "backward", "communication", "dense", "all_reduce", "input_distribution", "overhead")
    shares = ", ".join(f"{name.replace('_', ' ')} {step[name]:.3g}" for name in parts)
    return [
        f"{cluster['nodes']} x {cluster['gpus_per_node']} {cluster['gpu']}: a step of {document['batch_size']:,} "
        f"samples takes {document['step_milliseconds']:.3g} ms, {document['samples_per_second']:,.0f} samples/s",
        f"of which, in ms: {shares}; {document['imbalance']:.0%} is waiting for the slowest rank",
        f"what binds: {binds['resource']}; of the tables, {binds['table']} on rank {binds['rank']} "
        f"({binds['table_milliseconds']:.3g} ms there); memory is fullest on rank {binds['fullest_rank']} "
        f"({binds['memory_share']:.0%}, reserve included)",
        f"planned in {document['planner_seconds']:.2f} s by {document['planner']}",
    ]
