"""What the rows of a raw table become: the columns of the samples, the fields of the job, and the reasons for both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.table import infer, values
from asymdiffrec.datasets.prepare.table.infer import Choice
from asymdiffrec.datasets.prepare.table.recipe import Recipe, RecipeField
from asymdiffrec.datasets.prepare.table.sql import quoted
from asymdiffrec.datasets.prepare.table.store import Store
from asymdiffrec.datasets.prepare.table.survey import Column, survey
from asymdiffrec.datasets.prepare.table.values import Value


@dataclass
class SampleLayout:
    """How samples are made of the rows of a table."""

    table: str
    values: dict[str, Value] = field(default_factory=dict)
    """The columns that are written, by their names"""
    sources: dict[str, str] = field(default_factory=dict)
    """The column of the table that each of them comes from"""
    data: dict[str, Any] = field(default_factory=dict)
    """The section `data` of the job file"""
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The section `fields` of the job file"""
    choices: list[Choice] = field(default_factory=list)
    """What becomes of each column of the table, in their order"""
    moment: Value | None = None
    """What the rows are ordered by in time"""
    split: str | None = None
    """The column that says which split a row is in"""

    def add(self, name: str, source: str, value: Value) -> None:
        self.values[name], self.sources[name] = value, source


def layout_of(store: Store, table: str, recipe: Recipe) -> SampleLayout:
    """Find out what the columns of a table hold and what becomes of them, as far as the recipe leaves that open.

    Raises InputError where the recipe names a column that is not there, or none is the label.
    """
    kinds = store.types(table)
    given = _by_column(recipe, kinds)
    _require_columns(recipe, given, kinds)
    missing = {column: _missing(recipe, given, column) for column in kinds}
    lists = {column: field.separator for column, (_, field) in given.items() if field.type == "id_list"}
    single = {column for column, (_, field) in given.items() if field.type in ("id", "number")}
    present = {column: values.present(column, kind, missing[column]) for column, kind in kinds.items()}
    columns = survey(store, table, kinds, present, missing, lists, single)
    if not any(column.rows for column in columns.values()):
        raise InputError("the input has no rows")

    layout = SampleLayout(table, data={"path": "."})
    roles = _roles(recipe, columns)
    weights = {field.weights: name for name, field in given.values() if field.weights}
    for name, column in columns.items():
        if name in roles and name not in given and roles[name] != "user":
            choice = Choice(name, None, f"is the {roles[name]}")
        elif name in weights:
            choice = Choice(name, None, f"weighs the ids of {weights[name]}")
        elif name in given and given[name][1].type:
            choice = Choice(name, given[name][1].type, "as declared")
        elif name in recipe.ignore:
            choice = Choice(name, None, "is to be ignored")
        elif name in given or recipe.infers:
            choice = infer.choose(column)
        else:
            choice = Choice(name, None, "is not among the declared fields")
        if choice.kind is None and name in given:
            raise InputError(f"column {name}: {choice.reason}; say what it is, or leave it out of the fields")
        if choice.kind is not None:
            own = given.get(name, (name, RecipeField()))
            choice = _add_field(layout, store, recipe, column, choice, *own, present[name], missing[name])
        layout.choices.append(choice)
    for name, owner in weights.items():
        if not values.is_list(kinds[name]):
            raise InputError(f"column {name}: the weights of {owner} have to be lists of numbers in Parquet")
        layout.add(name, name, values.id_weights(present[name], layout.values[owner]))
    _add_roles(layout, recipe, roles, columns, present)
    return layout


def _roles(recipe: Recipe, columns: Mapping[str, Column]) -> dict[str, str]:
    """Which columns are label, weight, time, user and split."""
    label = recipe.label.column or infer.guessed(infer.LABELS, columns)
    if label is None:
        raise InputError(
            f"--label: none of the columns is named {', '.join(infer.LABELS[:-1])} or {infer.LABELS[-1]}; say which "
            f"one is the label. They are {', '.join(columns)}"
        )
    taken = (*recipe.ignore, label, recipe.weight, recipe.split.column, recipe.user, recipe.time)
    free = {name: column for name, column in columns.items() if name not in taken}
    time = recipe.time or infer.guessed(infer.TIMES, free)
    if time and not recipe.time and not _is_time(columns[time]):
        time = None
    if time is None and recipe.split.by == "time":
        raise InputError("--split time: say with --time which column is the time")
    user = recipe.user or infer.guessed(infer.USERS, free)
    columns_of = {"user": user, "time": time, "weight": recipe.weight, "split": recipe.split.column, "label": label}
    found: dict[str | None, str] = {}
    for role, name in columns_of.items():
        if name is not None and name in found:
            raise InputError(f"column {name} cannot be both the {found[name]} and the {role}; a query can copy it")
        found[name] = role
    return {column: role for column, role in found.items() if column is not None}


def _is_time(column: Column) -> bool:
    return column.present == column.rows and (values.is_time(column.kind) or column.numbers == column.rows)


def _by_column(recipe: Recipe, kinds: Mapping[str, str]) -> dict[str, tuple[str, RecipeField]]:
    """The declared fields by their columns."""
    found: dict[str, tuple[str, RecipeField]] = {}
    for name, given in recipe.fields.items():
        column = given.column or name
        if column in found:
            raise InputError(f"fields: {found[column][0]} and {name} have the one column {column}; a query can copy it")
        if name != column and name in kinds:
            raise InputError(f"fields: {name} is the name of another column; give the field of {column} another one")
        found[column] = name, given
    return found


def _require_columns(recipe: Recipe, given: Iterable[str], kinds: Mapping[str, str]) -> None:
    named = {column: f"fields: {column}" for column in given}
    named |= {column: f"ignore: {column}" for column in recipe.ignore}
    named |= {field.weights: "weights" for field in recipe.fields.values() if field.weights}
    roles = {"label": recipe.label.column, "user": recipe.user, "weight": recipe.weight, "time": recipe.time}
    roles["split.column"] = recipe.split.column
    named |= {column: role for role, column in roles.items() if column}
    for column, role in named.items():
        if column not in kinds:
            raise InputError(f"{role}: there is no column {column}; the columns are {', '.join(kinds)}")
    if any(column.lower() == "rowid" for column in kinds):
        raise InputError("a column cannot be named rowid; rename it, for example by a query")


def _missing(recipe: Recipe, given: Mapping[str, tuple[str, RecipeField]], column: str) -> list[str]:
    own = given[column][1].missing if column in given else None
    return recipe.missing if own is None else own


def _add_field(
    layout: SampleLayout,
    store: Store,
    recipe: Recipe,
    column: Column,
    choice: Choice,
    name: str,
    given: RecipeField,
    value: str,
    missing: list[str],
) -> Choice:
    separator = infer.separator_of(column, given)
    kind = choice.kind or ""
    _require_kind(column, kind)
    ids = column.distinct
    min_count = given.min_count or (recipe.min_count if given.hash is not False else 1)
    if kind != "number" and min_count > 1:
        ids = _frequent(store, layout.table, column, value, separator, missing, min_count)
    field = infer.declared(column, kind, given, ids, min_count)
    layout.fields[name] = field
    layout.add(name, column.name, _typed(column, value, field, separator, missing))
    if kind == "number":
        return choice
    kept = f", {ids:,} of them in {min_count} rows or more" if min_count > 1 else ""
    rows = f"{field['num_embeddings']:,} rows" + (
        "" if given.num_embeddings else f", {infer.shared(ids, field['num_embeddings']):.0%} share one"
    )
    return Choice(choice.column, kind, f"{choice.reason}{kept}: {rows}")


def _require_kind(column: Column, kind: str) -> None:
    able = {
        "number": values.is_number(column.kind) or values.is_text(column.kind),
        "id": not values.is_list(column.kind) and not values.is_time(column.kind),
        "id_list": values.is_id_list(column.kind) or values.is_text(column.kind),
    }
    if not able[kind]:
        raise InputError(f"column {column.name}: is of type {column.kind}, which cannot be a field of type {kind}")


def _frequent(
    store: Store, table: str, column: Column, value: str, separator: str, missing: list[str], least: int
) -> int:
    """How many ids are in at least so many rows."""
    ids = f"{value} AS x"
    if values.is_list(column.kind) or column.separator:
        ids = f"unnest(list_distinct({values.tokens(value, column.kind, separator, missing)})) AS x"
    every = f"SELECT {ids} FROM {quoted(table)}"
    frequent = f"SELECT x FROM ({every}) WHERE x IS NOT NULL GROUP BY x HAVING count(*) >= {least}"
    return int(store.run(f"counting the ids of {column.name}", f"SELECT count(*) FROM ({frequent})")[0][0])


def _typed(column: Column, value: str, field: Mapping[str, Any], separator: str, missing: list[str]) -> Value:
    if field["type"] == "number":
        return values.number(value, column.kind)
    if listed := field["type"] == "id_list":
        ids = values.id_list(value, column.kind, separator, missing, field["values"])
    else:
        ids = values.integer(value, column.kind) if field["values"] == "int" else values.string(value)
    rows_already = field.get("hash") is False and field["values"] == "int"
    return values.within(ids, listed, field["num_embeddings"]) if rows_already else ids


def _add_roles(
    layout: SampleLayout,
    recipe: Recipe,
    roles: Mapping[str, str],
    columns: Mapping[str, Column],
    present: Mapping[str, str],
) -> None:
    """The columns beside the fields, and the section `data` that names them."""
    if "label" in layout.fields:
        raise InputError("a field cannot be named label; give it another name in the recipe, with column: label")
    for name, role in roles.items():
        value, kind = present[name], columns[name].kind
        if role == "label":
            layout.add("label", name, values.label(value, recipe.label.positive, recipe.label.at_least))
        elif role == "weight":
            layout.add(name, name, values.weight(value, kind))
        elif role == "time":
            layout.moment = values.moment(value, kind)
            if name not in layout.values:
                layout.add(name, name, layout.moment)
            else:
                field = layout.values[name]
                wrong = f"({field.wrong}) OR ({layout.moment.wrong})"
                layout.add(name, name, Value(field.sql, wrong, f"{field.allowed or 'a value'}, and a time"))
        elif role == "split":
            layout.split = f"lower({value}::VARCHAR)"
        elif name not in layout.fields:
            whole = columns[name].integers == columns[name].present
            layout.add(name, name, values.integer(value, kind) if whole else values.string(value))
        if role != "split":
            layout.data[role] = "label" if role == "label" else name
