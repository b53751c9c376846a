"""Decide how each column of a raw table is used: as a field, label, time, weight, user or split, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.table import conversions, infer_fields
from asymdiffrec.datasets.prepare.table.column_profiles import ColumnProfile, profile_columns
from asymdiffrec.datasets.prepare.table.conversions import Conversion
from asymdiffrec.datasets.prepare.table.database import Database
from asymdiffrec.datasets.prepare.table.duckdb_types import is_id_list, is_list, is_number, is_text, is_time
from asymdiffrec.datasets.prepare.table.infer_fields import ColumnChoice
from asymdiffrec.datasets.prepare.table.recipe import FieldType, Recipe, RecipeField
from asymdiffrec.datasets.prepare.table.sql import quote_name


@dataclass
class SampleLayout:
    """The columns of the samples, and the conversions that make them from the rows of a table."""

    table: str
    conversions: dict[str, Conversion] = field(default_factory=dict)
    """{column of the samples: its conversion}"""
    sources: dict[str, str] = field(default_factory=dict)
    """{column of the samples: the column of the table that it is converted from}"""
    data: dict[str, Any] = field(default_factory=dict)
    """The section `data` of the job file"""
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The section `fields` of the job file"""
    choices: list[ColumnChoice] = field(default_factory=list)
    """The decision on each column of the table, in the order of the table"""
    time: Conversion | None = None
    """The time of a row"""
    split: str | None = None
    """SQL for the split of a row, if a column contains the split"""

    def add(self, name: str, source: str, conversion: Conversion) -> None:
        """Add a column to the samples; it is converted from the column `source` of the table."""
        self.conversions[name], self.sources[name] = conversion, source


def plan_layout(database: Database, table: str, recipe: Recipe) -> SampleLayout:
    """Return the layout of the samples of a table. Undeclared types and roles are inferred from the columns.

    Raises InputError if the recipe names a column that does not exist, or no column is the label.
    """
    duckdb_types = database.column_types(table)
    declared = _declarations_by_column(recipe, duckdb_types)
    _require_columns(recipe, declared, duckdb_types)
    missing = {column: _missing_strings(recipe, declared, column) for column in duckdb_types}
    separators = {column: given.separator for column, (_, given) in declared.items() if given.type == "id_list"}
    single = {column for column, (_, given) in declared.items() if given.type in ("id", "number")}
    present = {
        column: conversions.present_value(column, duckdb_type, missing[column])
        for column, duckdb_type in duckdb_types.items()
    }
    columns = profile_columns(database, table, duckdb_types, present, missing, separators, single)
    if not any(column.rows for column in columns.values()):
        raise InputError("the input has no rows")

    layout = SampleLayout(table, data={"path": "."})
    roles = _roles(recipe, columns)
    weights = {given.weights: name for name, given in declared.values() if given.weights}
    for name, column in columns.items():
        choice = _choose(column, recipe, roles, weights, declared)
        if choice.type is None and name in declared:
            raise InputError(f"column {name}: {choice.reason}; declare its type, or remove it from the fields")
        if choice.type is not None:
            field_name, declaration = declared.get(name, (name, RecipeField()))
            choice = _add_field(
                layout, database, recipe, column, choice, field_name, declaration, present[name], missing[name]
            )
        layout.choices.append(choice)
    for name, field_name in weights.items():
        if not is_list(duckdb_types[name]):
            raise InputError(
                f"column {name}: found type {duckdb_types[name]}; the weights of {field_name} must be lists of "
                "numbers, which only Parquet files have"
            )
        layout.add(name, name, conversions.id_weights(present[name], layout.conversions[field_name]))
    _add_roles(layout, recipe, roles, columns, present)
    return layout


def _choose(
    column: ColumnProfile,
    recipe: Recipe,
    roles: Mapping[str, str],
    weights: Mapping[str, str],
    declared: Mapping[str, tuple[str, RecipeField]],
) -> ColumnChoice:
    """Return the decision on a column, given the roles, weight columns and declared fields."""
    name = column.name
    if name in roles and name not in declared and roles[name] != "user":
        return ColumnChoice(name, None, f"is the {roles[name]}")
    if name in weights:
        return ColumnChoice(name, None, f"holds the weights of the ids of {weights[name]}")
    if name in declared and declared[name][1].type:
        return ColumnChoice(name, declared[name][1].type, "declared")
    if name in recipe.ignore:
        return ColumnChoice(name, None, "is declared to be ignored")
    if name in declared or recipe.infers:
        return infer_fields.infer_field(column)
    return ColumnChoice(name, None, "is not declared as a field")


def _roles(recipe: Recipe, columns: Mapping[str, ColumnProfile]) -> dict[str, str]:
    """Return {column: role}; the roles are label, weight, time, user and split."""
    label_names = infer_fields.LABEL_NAMES
    label = recipe.label.column or infer_fields.first_named(label_names, columns)
    if label is None:
        raise InputError(
            f"--label: no column is named {', '.join(label_names[:-1])} or {label_names[-1]}; set --label to the label "
            f"column; the columns are {', '.join(columns)}"
        )
    taken = (*recipe.ignore, label, recipe.weight, recipe.split.column, recipe.user, recipe.time)
    free = {name: column for name, column in columns.items() if name not in taken}
    time = recipe.time or infer_fields.first_named(infer_fields.TIME_NAMES, free)
    if time and not recipe.time and not _is_time_in_every_row(columns[time]):
        time = None
    if time is None and recipe.split.by == "time":
        raise InputError("--split time: no time column was found; set it with --time")
    user = recipe.user or infer_fields.first_named(infer_fields.USER_NAMES, free)
    columns_by_role = {
        "user": user,
        "time": time,
        "weight": recipe.weight,
        "split": recipe.split.column,
        "label": label,
    }
    roles: dict[str, str] = {}
    for role, name in columns_by_role.items():
        if name is None:
            continue
        if name in roles:
            raise InputError(
                f"column {name} cannot be both the {roles[name]} and the {role}; use a query that copies the column to "
                "another name"
            )
        roles[name] = role
    return roles


def _is_time_in_every_row(column: ColumnProfile) -> bool:
    return column.present == column.rows and (is_time(column.duckdb_type) or column.numbers == column.rows)


def _declarations_by_column(recipe: Recipe, columns: Mapping[str, str]) -> dict[str, tuple[str, RecipeField]]:
    """Return the declared fields as {column: (field name, declaration)}."""
    declared: dict[str, tuple[str, RecipeField]] = {}
    for name, declaration in recipe.fields.items():
        column = declaration.column or name
        if column in declared:
            raise InputError(
                f"fields: {declared[column][0]} and {name} have the same column {column}; use a query that copies the "
                "column to another name"
            )
        if name != column and name in columns:
            raise InputError(
                f"fields: the field {name} has the column {column}, but another column is named {name}; rename the "
                "field"
            )
        declared[column] = name, declaration
    return declared


def _require_columns(recipe: Recipe, declared: Iterable[str], columns: Mapping[str, str]) -> None:
    """Raise InputError if the recipe names a column that does not exist."""
    named = {column: f"fields: {column}" for column in declared}
    named |= {column: f"ignore: {column}" for column in recipe.ignore}
    named |= {given.weights: "weights" for given in recipe.fields.values() if given.weights}
    roles = {"label": recipe.label.column, "user": recipe.user, "weight": recipe.weight, "time": recipe.time}
    roles["split.column"] = recipe.split.column
    named |= {column: role for role, column in roles.items() if column}
    for column, where in named.items():
        if column not in columns:
            raise InputError(f"{where}: there is no column {column}; the columns are {', '.join(columns)}")
    if any(column.lower() == "rowid" for column in columns):
        raise InputError("column rowid: this name is reserved by DuckDB; rename the column, for example with a query")


def _missing_strings(recipe: Recipe, declared: Mapping[str, tuple[str, RecipeField]], column: str) -> list[str]:
    """Return the strings that mean missing in a column."""
    field_missing = declared[column][1].missing if column in declared else None
    return recipe.missing if field_missing is None else field_missing


def _add_field(
    layout: SampleLayout,
    database: Database,
    recipe: Recipe,
    column: ColumnProfile,
    choice: ColumnChoice,
    name: str,
    declaration: RecipeField,
    value: str,
    missing: list[str],
) -> ColumnChoice:
    """Add a field to the layout and return its choice, with the size of the embedding table added to the reason."""
    field_type = choice.type
    assert field_type is not None
    separator = infer_fields.separator_of(column, declaration)
    _require_type(column, field_type)
    ids = column.distinct
    min_count = declaration.min_count or (recipe.min_count if declaration.hash is not False else 1)
    if field_type != "number" and min_count > 1:
        ids = _count_frequent_ids(database, layout.table, column, value, separator, missing, min_count)
    config = infer_fields.job_field(column, field_type, declaration, ids, min_count)
    layout.fields[name] = config
    layout.add(name, column.name, _conversion(column, value, config, separator, missing))
    if field_type == "number":
        return choice
    num_embeddings = config["num_embeddings"]
    reason = choice.reason
    if min_count > 1:
        reason += f", {ids:,} of them in at least {min_count} rows"
    reason += f"; table with {num_embeddings:,} rows"
    if not declaration.num_embeddings:
        share = infer_fields.collision_share(ids, num_embeddings)
        reason += f", {share:.0%} of the ids share a row with another id"
    return ColumnChoice(choice.column, field_type, reason)


def _require_type(column: ColumnProfile, field_type: FieldType) -> None:
    """Raise InputError if a column cannot be a field of type `field_type` because of its DuckDB type."""
    duckdb_type = column.duckdb_type
    possible = {
        "number": is_number(duckdb_type) or is_text(duckdb_type),
        "id": not is_list(duckdb_type) and not is_time(duckdb_type),
        "id_list": is_id_list(duckdb_type) or is_text(duckdb_type),
    }
    if not possible[field_type]:
        raise InputError(
            f"column {column.name}: has the type {duckdb_type}, which cannot be a field of type {field_type}"
        )


def _count_frequent_ids(
    database: Database, table: str, column: ColumnProfile, value: str, separator: str, missing: list[str], min_rows: int
) -> int:
    """Return the number of ids that occur in at least `min_rows` rows."""
    ids = f"{value} AS x"
    if is_list(column.duckdb_type) or column.separator:
        elements = conversions.list_elements(value, column.duckdb_type, separator, missing)
        ids = f"unnest(list_distinct({elements})) AS x"
    all_ids = f"SELECT {ids} FROM {quote_name(table)}"
    frequent = f"SELECT x FROM ({all_ids}) WHERE x IS NOT NULL GROUP BY x HAVING count(*) >= {min_rows}"
    return int(database.run(f"counting the ids of {column.name}", f"SELECT count(*) FROM ({frequent})")[0][0])


def _conversion(
    column: ColumnProfile, value: str, config: Mapping[str, Any], separator: str, missing: list[str]
) -> Conversion:
    """Return the conversion of a column to the values of its field."""
    if config["type"] == "number":
        return conversions.number(value, column.duckdb_type)
    is_list_field = config["type"] == "id_list"
    if is_list_field:
        ids = conversions.id_list(value, column.duckdb_type, separator, missing, config["values"])
    elif config["values"] == "int":
        ids = conversions.integer(value, column.duckdb_type)
    else:
        ids = conversions.string(value)
    ids_are_rows = config.get("hash") is False and config["values"] == "int"
    return conversions.require_table_row(ids, is_list_field, config["num_embeddings"]) if ids_are_rows else ids


def _add_roles(
    layout: SampleLayout,
    recipe: Recipe,
    roles: Mapping[str, str],
    columns: Mapping[str, ColumnProfile],
    present: Mapping[str, str],
) -> None:
    """Add the columns with a role to the layout, and add their names to the section `data`."""
    if "label" in layout.fields:
        raise InputError("fields: the name label is reserved; give the field another name, with column: label")
    for name, role in roles.items():
        value, duckdb_type = present[name], columns[name].duckdb_type
        if role == "label":
            layout.add("label", name, conversions.label(value, recipe.label.positive, recipe.label.at_least))
        elif role == "weight":
            layout.add(name, name, conversions.sample_weight(value, duckdb_type))
        elif role == "time":
            layout.time = conversions.sample_time(value, duckdb_type)
            if name not in layout.conversions:
                layout.add(name, name, layout.time)
            else:  # the column is a field too
                as_field = layout.conversions[name]
                invalid = f"({as_field.invalid}) OR ({layout.time.invalid})"
                allowed = f"{as_field.allowed or 'a value'}, and a time"
                layout.add(name, name, Conversion(as_field.sql, invalid, allowed))
        elif role == "split":
            layout.split = f"lower({value}::VARCHAR)"
        elif name not in layout.fields:
            is_integer = columns[name].integers == columns[name].present
            layout.add(name, name, conversions.integer(value, duckdb_type) if is_integer else conversions.string(value))
        if role != "split":
            layout.data[role] = "label" if role == "label" else name
