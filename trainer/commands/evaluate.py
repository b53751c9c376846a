"""`asymdiffrec evaluate`: a run's metrics with features missing in one way and another; and the outage drill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from asymdiffrec.base import InputError
from asymdiffrec.trainer.commands.console import console, output, print_json
from asymdiffrec.trainer.commands.options import AsJson, RunFolder

if TYPE_CHECKING:
    from asymdiffrec.datasets.schema import Schema
    from asymdiffrec.trainer.evaluation.scenarios import Scenario
    from asymdiffrec.trainer.inference.evaluate_run import RunEvaluation

Outages = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="also with a field, or all of a group, gone dark; repeatable")
]
AsInTraining = Annotated[
    bool, typer.Option("--as-in-training", help="also with fields missing together as they are in the training rows")
]
Unseen = Annotated[
    list[str] | None,
    typer.Option(metavar="FIELD", help="also those rows alone whose id is in no training row"),
]


def evaluate(
    run: RunFolder,
    missing: Annotated[
        str, typer.Option(metavar="R,R,…", help="shares of the present fields to drop, independently")
    ] = "0",
    outage: Outages = None,
    rates: Annotated[
        str | None,
        typer.Option(metavar="FIELD=R,…", help="with fields missing more often than in training, each by its share"),
    ] = None,
    as_in_training: AsInTraining = False,
    unseen: Unseen = None,
    drill: Annotated[
        bool, typer.Option("--drill", help="what is lost when each field and each group goes dark, worst first")
    ] = False,
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="with --drill: a second run, to be compared with")
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid or test")] = "test",
    tables: Annotated[
        Literal["fp16", "int8", "int4"] | None,
        typer.Option(help="round the weights of tables to this type first, as for serving"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """AUC, GAUC, log loss, normalised entropy and calibration of a run's best step, with features missing."""
    from asymdiffrec.trainer.evaluation import scenarios
    from asymdiffrec.trainer.inference.evaluate_run import evaluate_run

    shares, drifts = shares_of(missing), _rates(rates)
    if drill and (outage or rates or as_in_training or unseen or missing != "0"):
        raise InputError("--drill says itself what goes dark; leave out --missing, --outage, --rates and the like")
    if against and not drill:
        raise InputError("--against RUN goes with --drill")

    def asked(schema: Schema) -> list[Scenario]:
        if drill:
            return [scenarios.at_random(0.0, schema), *scenarios.drill(schema)]
        return scenarios.Asked(shares, outage or (), drifts, as_in_training, unseen or ()).of(schema)

    found = evaluate_run(run, split, asked, console, tables)
    other = evaluate_run(against, split, asked, console, tables) if against else None
    if as_json:
        print_json(_document(run, split, found, tables, drill) | _against(against, split, other, tables))
        return
    if drill:
        output().print(_drill_table(run, split, found.results, against, other.results if other else None))
    else:
        output().print(_table(run, found.step, split, found.results))
    if tables and found.table_bytes:
        before, after = (size / 1e6 for size in found.table_bytes)
        console.print(f"Tables rounded to {tables}: {after:,.3g} MB of weights, {before:,.3g} MB as trained")


def shares_of(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = [-1.0]
    if not all(0 <= share <= 1 for share in shares):
        raise InputError(f"--missing {text}: expected numbers in [0, 1], such as 0,0.1,0.3,0.5")
    return shares


def _rates(text: str | None) -> dict[str, float]:
    rates = {}
    for part in text.split(",") if text else ():
        name, equals, value = part.partition("=")
        try:
            rates[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not 0 <= rates[name.strip()] <= 1:
            raise InputError(f"--rates {text}: expected FIELD=SHARE with shares in [0, 1], such as age=0.3,city=0.5")
    return rates


def _document(run: Path, split: str, found: RunEvaluation, tables: str | None, drilled: bool) -> dict[str, Any]:
    rounded = {"dtype": tables, "bytes": found.table_bytes[1]} if tables and found.table_bytes else None
    document = {"run": str(run), "step": found.step, "split": split, "tables": rounded}
    if not drilled:
        return {**document, "results": found.results}
    return {**document, "results": found.results[:1], "drill": losses(found.results)}


def _against(run: Path | None, split: str, found: RunEvaluation | None, tables: str | None) -> dict[str, Any]:
    return {"against": _document(run, split, found, tables, True)} if run and found else {}


def losses(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is lost when a field or group goes dark, worst first; the first result is that of complete samples."""
    from asymdiffrec.trainer.metrics import METRICS

    complete, *dark = results
    found = [
        {
            "dark": result["scenario"].removesuffix(" dark"),
            "auc_lost": _minus(complete["auc"], result["auc"]),
            "log_loss_gained": _minus(result["log_loss"], complete["log_loss"]),
            **{name: result[name] for name in ("rows", *METRICS)},
        }
        for result in dark
    ]
    return sorted(found, key=lambda row: -(row["auc_lost"] or 0))


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _table(run: Path, step: int, split: str, results: list[dict[str, Any]]) -> Table:
    from asymdiffrec.trainer.metrics import METRICS

    first, headings = results[0], {name: metric.heading for name, metric in METRICS.items()}
    alike = all(result["rows"] == first["rows"] for result in results)
    table = Table(title=f"{run}\n{split} split, {first['rows']:,} rows, step {step}")
    if first["gauc_users"]:
        table.caption = (
            f"GAUC over {first['gauc_users']:,} users; left out for having labels of one kind: "
            f"{first['gauc_users_left_out']:,}"
        )
    else:
        del headings["gauc"]
    table.add_column("missing", justify="right")
    for name in ([] if alike else ["rows"]) + list(headings.values()):
        table.add_column(name, justify="right")
    for result in results:
        rows = [] if alike else [f"{result['rows']:,}"]
        table.add_row(result["scenario"], *rows, *(_shown(result[name]) for name in headings))
    return table


def _drill_table(
    run: Path, split: str, results: list[dict[str, Any]], against: Path | None, others: list[dict[str, Any]] | None
) -> Table:
    first = results[0]
    title = f"{run}\n{split} split, {first['rows']:,} rows, AUC {_shown(first['auc'])} with every field"
    table = Table("dark", title=title)
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("AUC", lambda row: _shown(row["auc"])),
        ("AUC lost", lambda row: _shown(row["auc_lost"])),
        ("log loss gained", lambda row: _shown(row["log_loss_gained"])),
        ("calibration", lambda row: _shown(row["calibration"])),
    ]
    theirs = {row["dark"]: row for row in losses(others)} if others else {}
    for heading, _ in columns:
        table.add_column(heading, justify="right")
    if others:
        table.caption = f"there: {against}, AUC {_shown(others[0]['auc'])} with every field"
        for heading, _ in columns[:3]:
            table.add_column(f"{heading} there", justify="right")
    for row in losses(results):
        other = theirs.get(row["dark"])
        more = [value(other) if other else "-" for _, value in columns[:3]] if others else []
        table.add_row(row["dark"], *(value(row) for _, value in columns), *more)
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
