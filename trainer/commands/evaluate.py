"""`asymdiffrec evaluate`: the metrics of a run with fields missing, and the outage drill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from asymdiffrec.base import InputError
from asymdiffrec.trainer.commands.options import AsInTraining, AsJson, Outages, RunFolder, Unseen, parse_shares
from asymdiffrec.trainer.console import console, output, print_json, print_line

if TYPE_CHECKING:
    from asymdiffrec.datasets.schema import Schema
    from asymdiffrec.trainer.evaluation.scenarios import Scenario
    from asymdiffrec.trainer.inference.evaluate_run import RunEvaluation


def evaluate(
    run: RunFolder,
    missing: Annotated[
        str,
        typer.Option(
            metavar="SHARE,…",
            help="evaluate once per share, dropping that share of all fields at random; 0 drops none",
        ),
    ] = "0",
    outage: Outages = None,
    rates: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD=SHARE,…",
            help="also evaluate with these fields missing from these shares of samples, for example age=0.3,city=0.5",
        ),
    ] = None,
    as_in_training: AsInTraining = False,
    unseen: Unseen = None,
    drill: Annotated[
        bool,
        typer.Option(
            "--drill", help="evaluate an outage of each field and each group; the largest loss of AUC comes first"
        ),
    ] = False,
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="with --drill: a second run to compare with")
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid or test")] = "test",
    tables: Annotated[
        Literal["fp16", "int8", "int4"] | None,
        typer.Option(help="first quantise the embedding tables to this type, as `export --tables` does"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate the best step of a run on a split, with fields missing in one or more ways (scenarios).

    Prints every metric for each scenario: AUC, GAUC (the AUC within each user), log loss, calibration and others.
    """
    from asymdiffrec.trainer.evaluation import scenarios
    from asymdiffrec.trainer.inference.evaluate_run import evaluate_run

    shares, share_by_field = parse_shares(missing), _parse_rates(rates)
    if drill and (outage or rates or as_in_training or unseen or missing != "0"):
        raise InputError("--drill: leave out --missing, --outage, --rates, --as-in-training and --unseen")
    if against and not drill:
        raise InputError("--against RUN: needs --drill")

    def make_scenarios(schema: Schema) -> list[Scenario]:
        if drill:
            return [scenarios.drop_at_random(0.0, schema), *scenarios.outage_drill(schema)]
        options = scenarios.ScenarioOptions(shares, outage or (), share_by_field, as_in_training, unseen or ())
        return options.scenarios(schema)

    evaluation = evaluate_run(run, split, make_scenarios, console, tables)
    other = evaluate_run(against, split, make_scenarios, console, tables) if against else None
    if as_json:
        document = _document(run, split, evaluation, tables, drill)
        if against and other:
            document["against"] = _document(against, split, other, tables, drill)
        print_json(document)
        return
    if drill:
        output().print(_drill_table(run, split, evaluation.results, against, other.results if other else None))
    else:
        output().print(_table(run, evaluation.step, split, evaluation.results))
    if tables and evaluation.table_bytes:
        trained, quantised = (size / 1e6 for size in evaluation.table_bytes)
        print_line(f"Tables quantised to {tables}: {quantised:,.3g} MB of weights, {trained:,.3g} MB as trained")


def outage_losses(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the losses of each outage, sorted by the loss of AUC, largest first.

    `results` are the results of an outage drill; in the first result no field is dropped.
    """
    from asymdiffrec.trainer.metrics import METRICS

    complete, *outages = results
    losses = [
        {
            "outage": result["scenario"].removesuffix(" outage"),
            "auc_lost": _minus(complete["auc"], result["auc"]),
            "log_loss_gained": _minus(result["log_loss"], complete["log_loss"]),
            **{name: result[name] for name in ("rows", *METRICS)},
        }
        for result in outages
    ]
    return sorted(losses, key=lambda row: -(row["auc_lost"] or 0))


def _parse_rates(text: str | None) -> dict[str, float]:
    """Parse FIELD=SHARE,…. Raises InputError for anything else."""
    rates = {}
    for part in text.split(",") if text else ():
        name, _, value = part.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise InputError(f"--rates {text}: expected FIELD=SHARE with shares in [0, 1], such as age=0.3,city=0.5")
        rates[name.strip()] = share
    return rates


def _document(run: Path, split: str, evaluation: RunEvaluation, tables: str | None, with_drill: bool) -> dict[str, Any]:
    quantised = {"dtype": tables, "bytes": evaluation.table_bytes[1]} if tables and evaluation.table_bytes else None
    document = {"run": str(run), "step": evaluation.step, "split": split, "tables": quantised}
    if not with_drill:
        return {**document, "results": evaluation.results}
    return {**document, "results": evaluation.results[:1], "drill": outage_losses(evaluation.results)}


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _table(run: Path, step: int, split: str, results: list[dict[str, Any]]) -> Table:
    from asymdiffrec.trainer.metrics import METRICS

    first, headings = results[0], {name: metric.heading for name, metric in METRICS.items()}
    same_rows = all(result["rows"] == first["rows"] for result in results)
    table = Table(title=f"{run}\n{split} split, {first['rows']:,} rows, step {step}")
    if first["gauc_users"]:
        table.caption = (
            f"GAUC over {first['gauc_users']:,} users; without {first['gauc_users_left_out']:,} users whose labels are "
            "all equal"
        )
    else:
        del headings["gauc"]
    table.add_column("missing", justify="right")
    for heading in ([] if same_rows else ["rows"]) + list(headings.values()):
        table.add_column(heading, justify="right")
    for result in results:
        rows = [] if same_rows else [f"{result['rows']:,}"]
        table.add_row(result["scenario"], *rows, *(_text(result[name]) for name in headings))
    return table


def _drill_table(
    run: Path, split: str, results: list[dict[str, Any]], against: Path | None, others: list[dict[str, Any]] | None
) -> Table:
    first = results[0]
    title = f"{run}\n{split} split, {first['rows']:,} rows, AUC {_text(first['auc'])} with every field"
    table = Table("outage", title=title)
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("AUC", lambda row: _text(row["auc"])),
        ("AUC lost", lambda row: _text(row["auc_lost"])),
        ("log loss gained", lambda row: _text(row["log_loss_gained"])),
        ("calibration", lambda row: _text(row["calibration"])),
    ]
    other_losses = {row["outage"]: row for row in outage_losses(others)} if others else {}
    for heading, _ in columns:
        table.add_column(heading, justify="right")
    if others:
        table.caption = f"second run: {against}, AUC {_text(others[0]['auc'])} with every field"
        for heading, _ in columns[:3]:
            table.add_column(f"{heading}, second run", justify="right")
    for row in outage_losses(results):
        other = other_losses.get(row["outage"])
        other_values = [value(other) if other else "-" for _, value in columns[:3]] if others else []
        table.add_row(row["outage"], *(value(row) for _, value in columns), *other_values)
    return table


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
