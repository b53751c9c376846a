"""The recipe of `prepare table`: the input files, the meaning of the columns, the split and the output."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from asymdiffrec.base import Config

MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "\\N")

FieldType = Literal["id", "id_list", "number"]


def _as_list(value: Any) -> Any:
    """Return a list; a single string becomes a list with one string."""
    return [value] if isinstance(value, str) else value


def _as_tab(value: Any) -> Any:
    """Replace the two characters \\t by a tab, which is hard to type in a shell."""
    return "\t" if value == "\\t" else value


Strings = Annotated[list[str], BeforeValidator(_as_list)]


class TableConfig(Config):
    """The files of one input table."""

    files: Strings = Field([], description="files, folders, globs or URIs")
    format: Literal["text", "parquet"] | None = Field(None, description="default: by the extensions of the file names")
    delimiter: Annotated[str | None, BeforeValidator(_as_tab)] = Field(
        None, min_length=1, max_length=4, description="delimiter of text; default: detected"
    )
    quote: str = Field('"', max_length=1, description="quote around text values that contain a delimiter")
    columns: list[str] | None = Field(
        None, min_length=1, description="column names of text without a header line; default: read the first line"
    )
    encoding: Literal["utf-8", "utf-16", "latin-1"] = Field("utf-8", description="encoding of text")
    hive: bool | None = Field(
        None,
        description="whether a folder name such as day=2026-01-31 adds a column day; required if such folders exist",
    )


class LabelConfig(Config):
    """The label column and the rule for label 1. Without `positive` and `at_least`, values are 0 and 1, or booleans."""

    column: str | None = Field(None, description="default: the first column named label, click, clicked, target, ...")
    positive: Strings | None = Field(None, description="values that mean label 1")
    at_least: float | None = Field(None, description="label is 1 if the value is at least this number")

    @model_validator(mode="after")
    def _require_one_rule(self) -> Self:
        if self.positive is not None and self.at_least is not None:
            raise ValueError("label.positive and label.at_least cannot be used together; remove one of them")
        return self


class RecipeField(Config):
    """A field of the job file and the options for reading its raw column. Every key is optional."""

    type: FieldType | None = Field(None, description="default: inferred from the content of the column")
    column: str | None = Field(None, description="column of the input; default: the name of the field")
    group: str | None = None
    drop: float | None = Field(None, ge=0)
    embedding_dim: int | None = Field(None, gt=0)
    num_embeddings: int | None = Field(None, gt=0, description="default: by the number of distinct ids")
    values: Literal["int", "string"] | None = Field(None, description="default: int if all ids are integers")
    hash: bool | None = None
    table: str | None = None
    min_count: int | None = Field(None, gt=0, description="default: `min_count` of the recipe")
    pooling: Literal["mean", "sum"] | None = None
    weights: str | None = None
    transform: Literal["standardise", "log1p", "log_squared"] | None = None
    separator: str | None = Field(
        None, min_length=1, description="separator of the ids of an id_list in text; default: | or ; is detected"
    )
    missing: Strings | None = Field(
        None, description="strings that mean missing in this column; default: `missing` of the recipe"
    )


class SplitConfig(Config):
    """The division of the rows into train, valid and test."""

    by: Literal["random", "time", "order", "column"] = Field(
        "random",
        description="random: drawn with the seed; time: the latest rows are test rows, the rows before them validation "
        "rows; order: as time, but by the order of the rows in the input; column: a column contains the split",
    )
    column: str | None = Field(None, description="for `by: column`: column with train, valid or test")
    valid: float | Strings = Field(0.1, description="share of the rows, or files")
    test: float | Strings = Field(0.1, description="share of the rows, or files")

    @model_validator(mode="after")
    def _require_training_rows(self) -> Self:
        shares = [share for share in (self.valid, self.test) if isinstance(share, float)]
        if any(not 0 < share < 1 for share in shares) or sum(shares) >= 1:
            raise ValueError("the shares of valid and test must be above 0 and together below 1")
        if (self.by == "column") != (self.column is not None):
            raise ValueError("split.column is required with split.by: column and not allowed otherwise")
        return self

    @property
    def files(self) -> dict[str, list[str]]:
        """{split: its files} for valid and test, if they have separate files."""
        values = {"valid": self.valid, "test": self.test}
        return {split: files for split, files in values.items() if isinstance(files, list)}


class OutputConfig(Config):
    """The size of the Parquet files and the order of their rows."""

    rows_per_file: int = Field(1_000_000, gt=0)
    rows_per_group: int = Field(16_384, gt=0)
    shuffle: bool = Field(True, description="write the rows in random order; neighbours in the input are often similar")


class Recipe(Config):
    """All settings for the conversion of a table to a data set.

    >>> recipe = Recipe.model_validate({"input": {"files": "log.csv"}, "fields": {"city": {"type": "id"}}})
    >>> recipe.input.files, recipe.infers, recipe.split.by
    (['log.csv'], False, 'random')
    """

    name: str = Field("table", pattern=r"^[\w.-]+$", description="name of the job")
    input: TableConfig = TableConfig()
    other_tables: dict[str, TableConfig] = Field({}, description="more tables, for the query")
    query: str | None = Field(
        None,
        description="SQL (DuckDB) over `input` and the other tables that returns the samples; getvariable('seed') is "
        "the seed",
    )
    label: LabelConfig = LabelConfig()
    user: str | None = Field(
        None,
        description="user column; GAUC is computed per user; default: the column named user_id, userid, user or uid",
    )
    weight: str | None = Field(None, description="column with the weight of a sample")
    time: str | None = Field(
        None, description="column with the time of a sample; default: the column named timestamp, time, ts, date, ..."
    )
    fields: dict[str, RecipeField] = Field({}, description="fields by their names in the job file")
    infer: bool | None = Field(
        None, description="whether undeclared columns become fields too; default: only if `fields` is empty"
    )
    ignore: list[str] = Field([], description="columns to leave out of the fields")
    missing: Strings = Field(list(MISSING), description="strings that mean missing, in addition to the empty string")
    min_count: int = Field(
        1,
        gt=0,
        description="ids that occur in fewer training rows count as one common id; default for `min_count` of fields",
    )
    count_features: list[Annotated[str, Field(pattern=r"^[^*]+(\*[^*]+)?$")]] = Field(
        [],
        description="id fields, or pairs such as user_id*genre. For each, two numeric fields are added: the number "
        "of training rows with the id, and the share of label 1 among them. With a time, only earlier rows are "
        "counted; otherwise only rows of other folds",
    )
    split: SplitConfig = SplitConfig()
    output: OutputConfig = OutputConfig()
    train: dict[str, Any] = Field({}, description="section `train` of the job file")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the random split, the folds and the order of the rows")
    bad_rows: Literal["fail", "skip"] = Field(
        "fail", description="fail: stop at the first wrong row; skip: leave wrong rows out and report them"
    )

    @property
    def infers(self) -> bool:
        """Whether undeclared columns become fields."""
        return not self.fields if self.infer is None else self.infer

    @model_validator(mode="after")
    def _check_tables(self) -> Self:
        if self.other_tables and not self.query:
            raise ValueError("other_tables: needs a query that joins the tables")
        if self.query and self.split.by == "order":
            raise ValueError(
                "split.by: order cannot be used with a query, because SQL does not order rows; use time or column"
            )
        if self.split.by == "column" and self.split.files:
            raise ValueError("split.by: column cannot be used with separate files for valid or test")
        if "input" in self.other_tables or "samples" in self.other_tables:
            raise ValueError("other_tables: the names input and samples are reserved; choose other names")
        if self.query and self.split.files:
            raise ValueError(
                "split: separate files for valid or test cannot be used with a query; let the query return a column "
                "with the split and use split.by: column"
            )
        return self
