"""`asymdiffrec prepare`: write raw data as Parquet files with a job file. Each source of data has a subcommand."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from asymdiffrec.trainer.commands.options import AsJson
from asymdiffrec.trainer.commands.recipe_options import (
    parse_recipe,
    set_common_options,
    set_field_types,
    set_values,
    split_names,
)
from asymdiffrec.trainer.console import console, print_json, show_progress

if TYPE_CHECKING:
    from asymdiffrec.datasets.prepare.movielens.files import Size
    from asymdiffrec.datasets.prepare.table.layout import SampleLayout
    from asymdiffrec.datasets.prepare.table.recipe import Recipe

app = typer.Typer(
    help="Prepare raw data for training: OUT/job.yaml, statistics.yaml, profile.json, {train,valid,test}/*.parquet.",
    no_args_is_help=True,
)

Out = Annotated[Path, typer.Argument(metavar="OUT", help="new folder for the data set")]
Seed = Annotated[int | None, typer.Option(min=0, help="seed of the random split and the order of the rows; default: 0")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input", metavar="PATH", help="input file, folder, glob or URI (s3://, gs://, hdfs://, file://); repeatable"
    ),
]
Valid = Annotated[
    list[str] | None,
    typer.Option("--valid", metavar="SHARE|PATH", help="validation rows: a share of all rows, or files; default: 0.1"),
]
Test = Annotated[
    list[str] | None,
    typer.Option("--test", metavar="SHARE|PATH", help="test rows: a share of all rows, or files; default: 0.1"),
]
MinCount = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="ids that occur in fewer training rows are replaced by one common id; they do not count for the size of "
        "the table",
    ),
]
RecipeOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="override one value of the recipe, for example output.rows_per_file=500000; repeatable",
    ),
]
SplitBy = Annotated[
    Literal["random", "time", "order"] | None,
    typer.Option(
        help="random: draw the validation and test rows; time: the latest rows are test rows, the rows before them "
        "validation rows; order: as time, but by the order of the rows in the input; default: random"
    ),
]
BadRows = Annotated[
    Literal["fail", "skip"] | None,
    typer.Option(help="fail: stop at the first wrong row; skip: leave wrong rows out and report them; default: fail"),
]


@app.command()
def synthetic(
    out: Out,
    rows: Annotated[int, typer.Option(min=1000, help="number of rows in all splits together")] = 400_000,
    seed: Annotated[int, typer.Option(min=0, help="seed of the click model and of the rows")] = 0,
    as_json: AsJson = False,
) -> None:
    """Prepare a synthetic click log for which the best possible AUC is known."""
    from asymdiffrec.datasets.prepare.synthetic.dataset import prepare_synthetic

    with console.status("preparing synthetic data"):
        profile = prepare_synthetic(out, rows=rows, seed=seed)
    _report(out, profile, as_json)


def _add_movielens_command(size: Size) -> None:
    help_text = f"Prepare MovieLens {size.upper()} from GroupLens, with features of earlier ratings."

    @app.command(f"movielens-{size}", help=help_text)
    def movielens(
        out: Out,
        input: Annotated[
            Path | None,
            typer.Option(help="folder or zip file with the original files; default: download"),
        ] = None,
        split: Annotated[
            Literal["random", "time"],
            typer.Option(
                help="random: draw 10 % validation and 10 % test rows; time: the latest 10 % are test rows, the 10 % "
                "before them validation rows"
            ),
        ] = "random",
        seed: Annotated[int, typer.Option(min=0, help="seed of the random split")] = 0,
        as_json: AsJson = False,
    ) -> None:
        from asymdiffrec.datasets.prepare.movielens.dataset import prepare_movielens

        with console.status(f"preparing MovieLens {size}"):
            profile = prepare_movielens(out, size=size, input=input, split=split, seed=seed)
        _report(out, profile, as_json)


_add_movielens_command("100k")
_add_movielens_command("1m")


@app.command()
def criteo(
    out: Out,
    input: Inputs = None,
    valid: Valid = None,
    test: Test = None,
    split: SplitBy = None,
    min_count: MinCount = None,
    seed: Seed = None,
    bad_rows: BadRows = None,
    overrides: RecipeOverrides = None,
    as_json: AsJson = False,
) -> None:
    """Prepare the Criteo logs (Kaggle or 1TB): tab-separated text, plain or gzip, with a label, 13 numbers and 26 ids.

    Numbers above 2 are transformed to log(x)^2. Ids in fewer than 10 training rows are replaced by one common id.
    Example for the 1TB log: `--input day_0.gz … --valid day_22.gz --test day_23.gz`.
    """
    from asymdiffrec.datasets.prepare.criteo import criteo_recipe

    document = criteo_recipe().model_dump(exclude_unset=True)
    set_common_options(document, input, valid, test, split, min_count, seed, bad_rows)
    _prepare_table(out, parse_recipe(document, overrides, "prepare criteo"), as_json)


@app.command()
def table(
    out: Out,
    input: Inputs = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file with more settings (see docs/data.md); options take precedence"),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="label column, with 0 and 1; for other values use --positive or --at-least"
        ),
    ] = None,
    positive: Annotated[
        list[str] | None, typer.Option(metavar="VALUE", help="value of the label column that means label 1; repeatable")
    ] = None,
    at_least: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="label is 1 if the label column is at least this number")
    ] = None,
    user: Annotated[str | None, typer.Option(metavar="COLUMN", help="user column; GAUC is computed per user")] = None,
    time: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="column with the time of a row, for --split time")
    ] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", metavar="COLUMN,…", help="columns that become id fields; repeatable")
    ] = None,
    numbers: Annotated[
        list[str] | None,
        typer.Option("--number", metavar="COLUMN,…", help="columns that become number fields; repeatable"),
    ] = None,
    lists: Annotated[
        list[str] | None,
        typer.Option(
            "--list",
            metavar="COLUMN,…",
            help="columns that become id_list fields; text with | or ; between the ids is split; repeatable",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN,…", help="columns to leave out of the fields; repeatable")
    ] = None,
    count_features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID,ID*ID,…",
            help="for each of these id fields or pairs, add two number fields: how many training rows have the id, and "
            "the share of label 1 among them; with a time column, only rows before the current row are counted",
        ),
    ] = None,
    missing: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="string that means missing; repeatable; default: ?, NA, N/A, NaN, nan, NULL, null, None, \\N",
        ),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="column names of text files without a header line")
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="delimiter of text files; default: detected")] = None,
    valid: Valid = None,
    test: Test = None,
    split: SplitBy = None,
    min_count: MinCount = None,
    seed: Seed = None,
    bad_rows: BadRows = None,
    overrides: RecipeOverrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show how each column would be used, and write nothing")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prepare any table: CSV or TSV, plain or gzip, or Parquet.

    The type of a field is inferred from the content of its column, unless an option or the recipe declares it. The
    decision on each column is shown with its reason.
    """
    from asymdiffrec.datasets.files.documents import read_yaml

    document = read_yaml(str(recipe)) if recipe else {}
    ignored = split_names(ignore)
    set_field_types(document, ids, numbers, lists, ignored)
    set_values(document, "label", column=label, positive=positive, at_least=at_least)
    set_values(document, "input", columns=columns and columns.split(","), delimiter=delimiter)
    set_values(document, user=user, time=time, missing=missing)
    set_values(document, ignore=ignored or None, count_features=split_names(count_features) or None)
    set_common_options(document, input, valid, test, split, min_count, seed, bad_rows)
    _prepare_table(out, parse_recipe(document, overrides, str(recipe or "prepare table")), as_json, dry_run)


def _prepare_table(out: Path, recipe: Recipe, as_json: bool, dry_run: bool = False) -> None:
    """Run a recipe, show the decisions on the columns, and print the report."""
    from asymdiffrec.datasets.prepare.table.dataset import prepare_table

    layouts: list[SampleLayout] = []
    with show_progress() as report_progress:

        def show_layout(layout: SampleLayout) -> None:
            layouts.append(layout)
            _show_choices(layout, Console() if dry_run and not as_json else console)

        profile = prepare_table(out, recipe, progress=report_progress, on_layout=show_layout, write=not dry_run)
    if not dry_run:
        _report(out, profile, as_json)
    elif as_json:
        (layout,) = layouts
        print_json({"columns": [asdict(choice) for choice in layout.choices], "fields": layout.fields})


def _show_choices(layout: SampleLayout, target: Console) -> None:
    """Print a table with the decision on each column and its reason."""
    from rich.table import Table

    rows = Table(title="columns and fields")
    for heading in ("column", "field type", "reason"):
        rows.add_column(heading, overflow="fold")
    for choice in layout.choices:
        rows.add_row(escape(choice.column), choice.type or "-", escape(choice.reason))
    target.print(rows)


def _report(out: Path, profile: dict[str, Any], as_json: bool) -> None:
    """Print the profile of a data set as JSON, or as a table of the fields with notes."""
    if as_json:
        print_json(profile)
        return
    from rich.table import Table

    fields = Table(title=f"{out}: {len(profile['fields'])} fields")
    for heading in ("field", "type", "group"):
        fields.add_column(heading)
    for heading in ("missing", "distinct ids", "mean length"):
        fields.add_column(heading, justify="right")
    for name, field in profile["fields"].items():
        ids = f"{field['cardinality']:,}" if "cardinality" in field else ""
        length = f"{field['mean_length']:.2f}" if "mean_length" in field else ""
        fields.add_row(escape(name), field["type"], field["group"], f"{field['missing']:.1%}", ids, length)
    output = Console()
    output.print(fields)
    for split, rows in profile["rows"].items():
        output.print(f"{split}: {rows:,} rows, {profile['label_rate'][split]:.1%} with label 1", highlight=False)
    for bad in profile.get("bad_rows", []):
        output.print(f"skipped {bad['rows']:,} rows: {bad['why']}; examples:", highlight=False, markup=False)
        for example in bad["examples"]:
            output.print(f"  {example}", highlight=False, markup=False, soft_wrap=True)
    for field in profile["suspicious"]:
        output.print(f"check field {field['field']}: it {field['why']}", highlight=False, markup=False, soft_wrap=True)
    if optimal_auc := profile.get("optimal_auc"):
        output.print(
            f"The best possible AUC on the test split is {optimal_auc['observed']:.4f} given the recorded fields, and "
            f"{optimal_auc['complete']:.4f} given all fields.",
            highlight=False,
        )
    output.print(f"Train with: asymdiffrec train {out / 'job.yaml'}", highlight=False, soft_wrap=True)
