"""The recipe of `prepare table`: which files, which columns mean what, and how the rows are divided and written."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from asymdiffrec.base import Config

MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "\\N")

Kind = Literal["id", "id_list", "number"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_tab(value: Any) -> Any:
    """A tab is hard to type in a shell."""
    return "\t" if value == "\\t" else value


Files = Annotated[list[str], BeforeValidator(_as_list)]


class TableConfig(Config):
    """The files of one table."""

    files: Files = Field([], description="files, folders, globs or URIs")
    format: Literal["text", "parquet"] | None = Field(None, description="told by the names of the files when left out")
    delimiter: Annotated[str | None, BeforeValidator(_as_tab)] = Field(
        None, min_length=1, max_length=4, description="text: found out when left out"
    )
    quote: str = Field('"', max_length=1, description="text: what values with a delimiter in them are wrapped in")
    columns: list[str] | None = Field(None, min_length=1, description="text: names of the columns of files without any")
    encoding: Literal["utf-8", "utf-16", "latin-1"] = Field("utf-8", description="of text")
    hive: bool | None = Field(None, description="whether folders named day=2026-01-31 make a column day")


class LabelConfig(Config):
    """What makes a sample positive; without `positive` and `at_least` the column holds 0 and 1, or false and true."""

    column: str | None = Field(None, description="found by its name when left out")
    positive: Files | None = Field(None, description="the values that are label 1")
    at_least: float | None = Field(None, description="numbers from here on are label 1")

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.positive is not None and self.at_least is not None:
            raise ValueError("label.positive and label.at_least exclude each other")
        return self


class RecipeField(Config):
    """A field as a job file has it, of which everything may be left out, and how its column is read."""

    type: Kind | None = None
    column: str | None = None
    group: str | None = None
    drop: float | None = Field(None, ge=0)
    embedding_dim: int | None = Field(None, gt=0)
    num_embeddings: int | None = Field(None, gt=0)
    values: Literal["int", "string"] | None = None
    hash: bool | None = None
    table: str | None = None
    min_count: int | None = Field(None, gt=0)
    pooling: Literal["mean", "sum"] | None = None
    weights: str | None = None
    transform: Literal["standardise", "log1p", "log_squared"] | None = None
    separator: str | None = Field(None, min_length=1, description="id_list in text: what stands between the ids")
    missing: Files | None = Field(None, description="strings that mean missing here, in place of the recipe's")


class SplitConfig(Config):
    by: Literal["random", "time", "order", "column"] = Field(
        "random", description="time: the latest rows are test, the ones before valid; order: the same, as rows stand"
    )
    column: str | None = Field(None, description="by column: it holds train, valid or test")
    valid: float | Files = Field(0.1, description="share of the rows, or files")
    test: float | Files = Field(0.1, description="share of the rows, or files")

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        shares = [share for share in (self.valid, self.test) if isinstance(share, float)]
        if any(not 0 < share < 1 for share in shares) or sum(shares) >= 1:
            raise ValueError("shares of valid and test are above 0, and together below 1")
        if (self.by == "column") != (self.column is not None):
            raise ValueError("split.column goes with split.by: column")
        return self

    @property
    def files(self) -> dict[str, list[str]]:
        """The files of valid and test, where they have files of their own."""
        named = {"valid": self.valid, "test": self.test}
        return {split: files for split, files in named.items() if isinstance(files, list)}


class OutputConfig(Config):
    rows_per_file: int = Field(1_000_000, gt=0)
    rows_per_group: int = Field(16_384, gt=0)
    shuffle: bool = Field(True, description="rows are written in a drawn order, so that neighbours have nothing common")


class Recipe(Config):
    name: str = Field("table", pattern=r"^[\w.-]+$", description="of the job")
    input: TableConfig = TableConfig()
    others: dict[str, TableConfig] = Field({}, description="more tables, for the query")
    query: str | None = Field(
        None, description="SQL (DuckDB) over input and others that gives the samples; getvariable('seed') is the seed"
    )
    label: LabelConfig = LabelConfig()
    user: str | None = Field(None, description="column that GAUC groups by; found by its name when left out")
    weight: str | None = Field(None, description="column with the sample's weight")
    time: str | None = Field(None, description="column with the sample's time; found by its name when left out")
    fields: dict[str, RecipeField] = Field({}, description="by their names in the job file")
    infer: bool | None = Field(
        None, description="whether columns that `fields` lacks become fields; left out: only where it names none"
    )
    ignore: list[str] = Field([], description="columns that are not used")
    missing: Files = Field(list(MISSING), description="strings that mean missing, besides the empty one")
    min_count: int = Field(1, gt=0, description="of each id and id_list field without one of its own")
    statistics: list[Annotated[str, Field(pattern=r"^[^*]+(\*[^*]+)?$")]] = Field(
        [],
        description="id fields, or pairs as user_id*genre, whose count and rate of label 1 become number fields, from "
        "earlier training rows where there is a time, else out of fold",
    )
    split: SplitConfig = SplitConfig()
    output: OutputConfig = OutputConfig()
    train: dict[str, Any] = Field({}, description="the section `train` of the job file")
    seed: int = Field(0, ge=0, lt=2**63, description="of the random split and of the order of the rows")
    bad_rows: Literal["fail", "skip"] = Field("fail", description="skip: rows that cannot be read are counted instead")

    @property
    def infers(self) -> bool:
        return not self.fields if self.infer is None else self.infer

    @model_validator(mode="after")
    def _query_has_its_tables(self) -> Self:
        if self.others and not self.query:
            raise ValueError("others: more tables need a query that puts them together")
        if self.query and self.split.by == "order":
            raise ValueError("split.by: order does not go with a query, whose rows have none; let it give a time")
        if self.split.by == "column" and self.split.files:
            raise ValueError("split.by: column and files of their own for valid or test exclude each other")
        if "input" in self.others or "samples" in self.others:
            raise ValueError("others: input and samples are taken; choose other names")
        if self.query and self.split.files:
            raise ValueError("split: files of their own do not go with a query; let it give a column, split.by: column")
        return self
