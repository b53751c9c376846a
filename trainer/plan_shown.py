"""A plan for people: tables in a terminal, and a page with pictures."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

MOST_TABLES, MOST_RANKS = 40, 16
WIDTH = 132
"""Columns, where there is no terminal that has its own"""
GB = 1e9


def _output() -> Console:
    out = Console()
    return out if out.is_terminal else Console(width=WIDTH)


def show_plan(document: Mapping[str, Any], notes: Sequence[str]) -> None:
    """Print a plan: its tables, its ranks, the step and what binds it, and what would help."""
    out = _output()
    tables = sorted(document["tables"], key=lambda table: -table["bytes"] - table["host_bytes"])
    out.print(_tables(tables[:MOST_TABLES], document))
    if len(tables) > MOST_TABLES:
        out.print(f"and {len(tables) - MOST_TABLES:,} smaller tables; --json has all")
    out.print(_ranks(document))
    for line in (*summary(document), *notes):
        out.print(line, highlight=False, soft_wrap=True)
    if document["advice"]:
        out.print(_advice(document["advice"]))


def _tables(tables: Sequence[Mapping[str, Any]], document: Mapping[str, Any]) -> Table:
    shown = Table(title="Tables, the largest first")
    for heading in ("table", "rows", "dim", "type", "GB, all ranks", "sharding", "kernel", "ranks", "ms"):
        shown.add_column(heading, justify="left" if heading in ("table", "sharding", "kernel", "ranks") else "right")
    for table in tables:
        kernel = table["kernel"] + (f" {table['cached']:.0%}" if table["cached"] else "")
        shown.add_row(
            table["name"], f"{table['rows']:,}", str(table["dim"]), table["dtype"],
            f"{(table['bytes'] + table['host_bytes']) / GB:.3g}", table["sharding"], kernel,
            _ranges(table["ranks"], document["world_size"]), f"{table['milliseconds']:.3g}",
        )  # fmt: skip
    return shown


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


def _ranks(document: Mapping[str, Any]) -> Table:
    ranks = document["ranks"]
    order = sorted(ranks, key=lambda rank: -rank["step_milliseconds"])
    shown = ranks if len(ranks) <= MOST_RANKS else [*order[: MOST_RANKS // 2], *order[-MOST_RANKS // 2 :]]
    some = f", the {MOST_RANKS // 2} slowest and the {MOST_RANKS // 2} quickest of {len(ranks):,}"
    title = "Ranks" + (some if len(ranks) > MOST_RANKS else "")
    caption = (
        "GB of memory: weights, optimizer's state, ids and embeddings in flight, dense part, reserve; ms of a step"
    )
    table = Table(title=title, caption=caption)
    headings = (
        *("rank", "memory", "weights", "state", "activations", "dense", "reserve"),
        *("step", "forward", "backward", "communication"),
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for rank in shown:
        sizes = ("memory_bytes", "weights_bytes", "state_bytes", "activations_bytes")
        table.add_row(
            str(rank["rank"]),
            *(f"{rank[name] / GB:.3g}" for name in sizes),
            f"{document['dense_bytes'] / GB:.3g}",
            f"{document['reserved_bytes'] / GB:.3g}",
            f"{rank['step_milliseconds']:.3f}",
            f"{rank['forward_ms']:.3f}",
            f"{rank['backward_ms']:.3f}",
            f"{rank['forward_communication_ms'] + rank['backward_communication_ms']:.3f}",
        )
    return table


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


def _advice(advice: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="What would help")
    table.add_column("change")
    table.add_column("samples/s", justify="right")
    table.add_column("tables on the fullest rank", justify="right")
    table.add_column("--set", overflow="fold")
    for change in advice:
        rate = f"{change['rate_ratio'] - 1:+.0%}" if "rate_ratio" in change else f"{change['samples_per_second']:,.0f}"
        memory = (
            f"{change['memory_ratio'] - 1:+.0%}" if "memory_ratio" in change else f"{change['table_bytes'] / GB:.3g} GB"
        )
        table.add_row(escape(change["change"]), rate, memory, escape("\n".join(change["settings"])))
    return table


def show_unfit(document: Mapping[str, Any]) -> None:
    """Print why tables do not fit, and what makes them fit."""
    out = _output()
    out.print(f"does not fit: {document['why']}", highlight=False, soft_wrap=True)
    if document["advice"]:
        out.print(_advice(document["advice"]))
    else:
        out.print("No single change that was tried makes them fit; a larger cluster may: leave out its size to see.")


def show_sweep(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> None:
    """Print clusters side by side, and why those that do not fit do not."""
    out = _output()
    table = Table(title="Clusters side by side")
    for heading in ("GPU", "GPUs", "fits", "step, ms", "samples/s", "GPU-hours per 10^9 samples", "memory"):
        table.add_column(heading, justify="left" if heading in ("GPU", "fits") else "right")
    for row in rows:
        if row["fits"]:
            values = (
                f"{row['step_milliseconds']:.3g}", f"{row['samples_per_second']:,.0f}",
                f"{row['gpu_hours_per_billion']:.3g}", f"{row['memory_share']:.0%}",
            )  # fmt: skip
        else:
            values = ("", "", "", "")
        table.add_row(row["gpu"], f"{row['gpus']:,}", "yes" if row["fits"] else "no", *values)
    out.print(table)
    for row in rows:
        if not row["fits"]:
            out.print(f"{row['gpus']} x {row['gpu']}: {row['why']}", highlight=False, soft_wrap=True)
    for note in notes:
        out.print(note, highlight=False, soft_wrap=True)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; margin: 1em 0; font-size: 13px }}
th, td {{ padding: .2em .8em; text-align: left; border-bottom: 1px solid #ddd }}
th {{ border-bottom: 2px solid #888 }}
td.n, th.n {{ text-align: right; font-variant-numeric: tabular-nums }}
svg {{ max-width: 100%; height: auto; display: block; margin: 1em 0 }}
.big {{ font-size: 26px; font-weight: 600 }} .muted {{ color: #666 }}
</style></head><body>
<h1>{title}</h1><p class="big">{headline}</p>{lines}{pictures}{advice}{tables}
</body></html>
"""


def write_page(document: Mapping[str, Any], name: str, file: Path, notes: Sequence[str]) -> None:
    """A page that needs nothing but itself: the step, memory and time of every rank, tables by size."""
    headline, *lines = summary(document)
    tables = sorted(document["tables"], key=lambda table: -table["bytes"] - table["host_bytes"])
    page = PAGE.format(
        title=html.escape(f"Sharding plan of {name}"),
        headline=html.escape(headline),
        lines="".join(f"<p>{html.escape(line)}</p>" for line in (*lines, *notes)),
        pictures="".join(_pictures(document)),
        advice=_html_table(
            "What would help",
            ("change", "samples/s", "tables on the fullest rank", "--set"),
            [
                (
                    one["change"], f"{one['rate_ratio'] - 1:+.0%}", f"{one['memory_ratio'] - 1:+.0%}",
                    " ".join(one["settings"]),
                )
                for one in document["advice"]
            ],
        )
        if document["advice"]
        else "",
        tables=_html_table(
            "Tables",
            ("table", "rows", "dim", "type", "GB, all ranks", "sharding", "kernel", "ranks", "ms"),
            [
                (
                    one["name"], f"{one['rows']:,}", one["dim"], one["dtype"],
                    f"{(one['bytes'] + one['host_bytes']) / GB:.3g}", one["sharding"], one["kernel"],
                    _ranges(one["ranks"], document["world_size"]), f"{one['milliseconds']:.3g}",
                )
                for one in tables
            ],
        ),
    )  # fmt: skip
    file.write_text(page)


def _html_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    numeric = [all(str(row[place])[:1] in "0123456789+-" for row in rows) for place in range(len(headings))]

    def line(tag: str, values: Sequence[Any]) -> str:
        cells = (
            f"<{tag}{' class=n' if is_number else ''}>{html.escape(str(value))}</{tag}>"
            for value, is_number in zip(values, numeric, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    return f"<h2>{title}</h2><table>{line('th', headings)}{''.join(line('td', row) for row in rows)}</table>"


def _pictures(document: Mapping[str, Any]) -> list[str]:
    from matplotlib.figure import Figure  # takes a second to import
    from matplotlib.ticker import MaxNLocator

    ranks = document["ranks"]
    shared = {"dense": document["dense_bytes"], "reserve": document["reserved_bytes"]}
    memory = {
        "weights": [rank["weights_bytes"] / GB for rank in ranks],
        "optimizer state": [rank["state_bytes"] / GB for rank in ranks],
        "activations": [rank["activations_bytes"] / GB for rank in ranks],
        **{name: [size / GB] * len(ranks) for name, size in shared.items()},
    }
    time = {
        "forward": [rank["forward_ms"] for rank in ranks],
        "backward": [rank["backward_ms"] for rank in ranks],
        "communication": [rank["forward_communication_ms"] + rank["backward_communication_ms"] for rank in ranks],
    }
    pictures = []
    for title, unit, parts, limit in (
        ("Memory of each rank", "GB", memory, document["device_bytes"] / GB),
        ("What the tables take on each rank, at nominal speed", "ms", time, None),
    ):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        axes = figure.subplots()
        bottom = [0.0] * len(ranks)
        for label, values in parts.items():
            top = [low + value for low, value in zip(bottom, values, strict=True)]
            if len(ranks) <= 64:
                axes.bar(range(len(ranks)), values, bottom=bottom, label=label, width=0.8)
            else:
                axes.fill_between(range(len(ranks)), bottom, top, label=label, step="mid", linewidth=0)
            bottom = top
        if limit:
            axes.axhline(limit, color="black", linestyle="--", linewidth=1, label="the device's memory")
        axes.set(title=title, xlabel="rank", ylabel=unit, xlim=(-0.6, len(ranks) - 0.4))
        axes.margins(y=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        pictures.append(_svg(figure))
    largest = sorted(document["tables"], key=lambda table: table["bytes"] + table["host_bytes"])[-20:]
    figure = Figure(figsize=(11, 1 + 0.26 * len(largest)), layout="constrained")
    axes = figure.subplots()
    sizes = [(table["bytes"] + table["host_bytes"]) / GB for table in largest]
    bars = axes.barh([table["name"] for table in largest], sizes)
    labels = [f"{size:.3g} GB, {table['sharding']}" for size, table in zip(sizes, largest, strict=True)]
    axes.bar_label(bars, labels, padding=4)
    axes.set(title=f"The {len(largest)} largest tables, with optimizer state", xlabel="GB")
    axes.margins(x=0.3)
    return [*pictures, _svg(figure)]


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]
