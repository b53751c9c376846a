"""`asymdiffrec prepare`: raw data to Parquet shards and a ready job file, one command for each kind of source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from asymdiffrec.trainer.commands.options import AsJson
from asymdiffrec.trainer.commands.recipe_options import lay, lay_common, lay_fields, names, recipe_of
from asymdiffrec.trainer.console import console, print_json, progress

if TYPE_CHECKING:
    from asymdiffrec.datasets.prepare.table.recipe import Recipe
    from asymdiffrec.datasets.prepare.table.samples import SampleLayout

app = typer.Typer(
    help="Raw data to a ready job file and Parquet shards: OUT/job.yaml, statistics.yaml, profile.json, "
    "{train,valid,test}/*.parquet.",
    no_args_is_help=True,
)

Out = Annotated[Path, typer.Argument(metavar="OUT", help="folder to make")]
SEED = typer.Option(min=0, help="of the split and of the order of the rows")
Seed = Annotated[int, SEED]
MaybeSeed = Annotated[int | None, SEED]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="PATH", help="file, folder, glob or URI (s3://, gs://, hdfs://); repeatable"),
]
Valid = Annotated[
    list[str] | None, typer.Option("--valid", metavar="SHARE|PATH", help="share of the rows, 0.1 if left out; or files")
]
Test = Annotated[
    list[str] | None, typer.Option("--test", metavar="SHARE|PATH", help="share of the rows, 0.1 if left out; or files")
]
MinCount = Annotated[
    int | None, typer.Option(min=1, help="ids that are in fewer training rows count as one; sized for the rest")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="any value of the recipe, as output.rows_per_file=500000"),
]
Division = Annotated[
    Literal["random", "time", "order"] | None,
    typer.Option(help="random (the default), the latest by time, or the last as the rows stand"),
]
Bad = Annotated[
    Literal["fail", "skip"] | None,
    typer.Option(help="at a row that cannot be read: fail (the default), or skip it, count it and report it"),
]


@app.command()
def synthetic(
    out: Out,
    rows: Annotated[int, typer.Option(min=1000, help="samples over all splits")] = 400_000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """A synthetic click log whose best possible AUC is known."""
    from asymdiffrec.datasets.prepare.synthetic.dataset import prepare_synthetic

    with console.status("preparing synthetic data"):
        profile = prepare_synthetic(out, rows=rows, seed=seed)
    _report(out, profile, as_json)


def _movielens(variant: Any) -> None:
    @app.command(f"movielens-{variant}")
    def movielens(
        out: Out,
        input: Annotated[
            Path | None, typer.Option(help="folder or zip file with its own files; downloaded when left out")
        ] = None,
        split: Annotated[
            Literal["random", "temporal"], typer.Option(help="how ratings are divided 80/10/10")
        ] = "random",
        seed: Annotated[int, typer.Option(min=0, help="of the split")] = 0,
        as_json: AsJson = False,
    ) -> None:
        from asymdiffrec.datasets.prepare.movielens.dataset import prepare_movielens

        with console.status(f"preparing MovieLens {variant}"):
            profile = prepare_movielens(out, variant=variant, input=input, split=split, seed=seed)
        _report(out, profile, as_json)

    movielens.__doc__ = f"MovieLens {variant.upper()} (GroupLens), with features of the past."
    app.registered_commands[-1].help = movielens.__doc__


_movielens("100k")
_movielens("1m")


@app.command()
def criteo(
    out: Out,
    input: Inputs = None,
    valid: Valid = None,
    test: Test = None,
    split: Division = None,
    min_count: MinCount = None,
    seed: MaybeSeed = None,
    bad_rows: Bad = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Criteo's logs (Kaggle or 1TB): tab-separated label, 13 numbers, 26 hexadecimal ids; gzip too.

    Numbers are transformed as log(x)^2, ids in fewer than 10 rows count as one. For the terabyte:
    `--input day_0.gz … --valid day_22.gz --test day_23.gz`.
    """
    from asymdiffrec.datasets.prepare.criteo import criteo_recipe

    document = criteo_recipe().model_dump(exclude_unset=True)
    lay_common(document, input, valid, test, split, min_count, seed, bad_rows)
    _prepare_table(out, recipe_of(document, settings, "prepare criteo"), as_json)


@app.command()
def table(
    out: Out,
    input: Inputs = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with any of these settings, fields and more; see README")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="0 or 1, unless the next two say more")] = None,
    positive: Annotated[
        list[str] | None, typer.Option(metavar="VALUE", help="value of the label column that is label 1; repeatable")
    ] = None,
    at_least: Annotated[float | None, typer.Option(metavar="NUMBER", help="numbers from here on are label 1")] = None,
    user: Annotated[str | None, typer.Option(metavar="COLUMN", help="GAUC groups by it")] = None,
    time: Annotated[str | None, typer.Option(metavar="COLUMN", help="the sample's time, for --split time")] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", metavar="COLUMN,…", help="fields that are an id")] = None,
    numbers: Annotated[
        list[str] | None, typer.Option("--number", metavar="COLUMN,…", help="fields that are a number")
    ] = None,
    lists: Annotated[
        list[str] | None,
        typer.Option("--list", metavar="COLUMN,…", help="fields that are a list of ids; in text with | or ; between"),
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(metavar="COLUMN,…", help="columns that are not used")] = None,
    statistics: Annotated[
        list[str] | None,
        typer.Option(metavar="ID,ID*ID,…", help="add how often these ids (or pairs) came before, and with label 1"),
    ] = None,
    missing: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="string that means missing, in place of ?, NA, N/A, NaN, nan, NULL, null, None, \\N; repeatable",
        ),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="names of the columns of text that has none in its first line")
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="of text; found out when left out")] = None,
    valid: Valid = None,
    test: Test = None,
    split: Division = None,
    min_count: MinCount = None,
    seed: MaybeSeed = None,
    bad_rows: Bad = None,
    settings: Settings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what the columns would become, write nothing")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Any table: CSV, TSV, gzip of these, or Parquet.

    What a column is, is told from what it holds, and shown with the reason, unless you say it. Options win over the
    recipe.
    """
    from asymdiffrec.datasets.files.documents import read_yaml

    document = read_yaml(str(recipe)) if recipe else {}
    ignored = names(ignore)
    lay_fields(document, ids, numbers, lists, ignored)
    lay(document, "label", column=label, positive=positive, at_least=at_least)
    lay(document, "input", columns=columns and columns.split(","), delimiter=delimiter)
    lay(document, user=user, time=time, missing=missing, ignore=ignored or None, statistics=names(statistics) or None)
    lay_common(document, input, valid, test, split, min_count, seed, bad_rows)
    _prepare_table(out, recipe_of(document, settings, str(recipe or "prepare table")), as_json, dry_run)


def _prepare_table(out: Path, recipe: Recipe, as_json: bool, dry_run: bool = False) -> None:
    from asymdiffrec.datasets.prepare.table.dataset import prepare_table

    found: list[SampleLayout] = []
    with progress() as shown:

        def tell(samples: SampleLayout) -> None:
            found.append(samples)
            _show_choices(samples, Console() if dry_run and not as_json else console)

        profile = prepare_table(out, recipe, progress=shown, tell=tell, write=not dry_run)
    if not dry_run:
        _report(out, profile, as_json)
    elif as_json:
        (samples,) = found
        print_json({"columns": [choice.__dict__ for choice in samples.choices], "fields": samples.fields})


def _show_choices(samples: SampleLayout, where: Console) -> None:
    from rich.table import Table

    shown = Table(title="what becomes of the columns")
    for heading in ("column", "becomes", "because"):
        shown.add_column(heading, overflow="fold")
    for choice in samples.choices:
        shown.add_row(escape(choice.column), choice.kind or "-", escape(choice.reason))
    where.print(shown)


def _report(out: Path, profile: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(profile)
        return
    from rich.table import Table

    table = Table(title=f"{out}: {len(profile['fields'])} fields")
    for heading in ("field", "type", "group"):
        table.add_column(heading)
    for heading in ("missing", "distinct ids", "mean length"):
        table.add_column(heading, justify="right")
    for name, field in profile["fields"].items():
        ids = f"{field['cardinality']:,}" if "cardinality" in field else ""
        length = f"{field['mean_length']:.2f}" if "mean_length" in field else ""
        table.add_row(escape(name), field["type"], field["group"], f"{field['missing']:.1%}", ids, length)
    output = Console()
    output.print(table)
    for split, rows in profile["rows"].items():
        output.print(f"{split}: {rows:,} rows, {profile['label_rate'][split]:.1%} with label 1", highlight=False)
    for bad in profile.get("bad_rows", []):
        output.print(f"left out: {bad['rows']:,} rows, {bad['why']}; such as", highlight=False, markup=False)
        for example in bad["examples"]:
            output.print(f"  {example}", highlight=False, markup=False, soft_wrap=True)
    for field in profile["suspicious"]:
        output.print(f"look at {field['field']}: it {field['why']}", highlight=False, markup=False, soft_wrap=True)
    if ceiling := profile.get("ceiling"):
        output.print(
            f"Best AUC that anyone can reach on the test split: {ceiling['auc_observed']:.4f} from what was recorded, "
            f"{ceiling['auc_complete']:.4f} if nothing were missing.",
            highlight=False,
        )
    output.print(f"Train with: asymdiffrec train {out / 'job.yaml'}", highlight=False, soft_wrap=True)
