"""Convert the options of `asymdiffrec prepare` to a recipe. Options override the values of a recipe file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asymdiffrec.base import InputError

if TYPE_CHECKING:
    from asymdiffrec.datasets.prepare.table.recipe import Recipe


def set_values(document: dict[str, Any], section: str | None = None, **values: Any) -> None:
    """Set all values that are not None in a recipe document, or in one of its sections if `section` is given."""
    given = {key: value for key, value in values.items() if value is not None}
    if given:
        (document if section is None else _section(document, section)).update(given)


def _section(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a section of a document; add the section if it is absent. Raises InputError if the key has a value."""
    if document.get(name) is None:
        document[name] = {}
    if not isinstance(document[name], dict):
        raise InputError(f"{name}: found {document[name]!r}; expected a section, a mapping of keys to values")
    section: dict[str, Any] = document[name]
    return section


def set_common_options(
    document: dict[str, Any],
    input: list[str] | None,
    valid: list[str] | None,
    test: list[str] | None,
    split: str | None,
    min_count: int | None,
    seed: int | None,
    bad_rows: str | None,
) -> None:
    """Set the options that `prepare table` and `prepare criteo` share in a recipe document."""
    set_values(document, "input", files=input)
    set_values(document, "split", by=split, valid=_share_or_files(valid), test=_share_or_files(test))
    set_values(document, min_count=min_count, seed=seed, bad_rows=bad_rows)


def _share_or_files(values: list[str] | None) -> float | list[str] | None:
    """Return the value of --valid or --test: a share of the rows if the option is one number, else files."""
    if values and len(values) == 1:
        try:
            return float(values[0])
        except ValueError:
            return values
    return values or None


def set_field_types(
    document: dict[str, Any],
    ids: list[str] | None,
    numbers: list[str] | None,
    lists: list[str] | None,
    ignored: Sequence[str],
) -> None:
    """Add the columns of --id, --number and --list, with their types, to the section `fields` of a recipe document.

    The types of all other columns are inferred, unless the recipe declares fields. Raises InputError if two options
    name the same column.
    """
    types = _types_by_column({"id": ids, "number": numbers, "id_list": lists}, ignored)
    if types:
        document.setdefault("infer", not document.get("fields"))
        fields = _section(document, "fields")
        for column, field_type in types.items():
            set_values(fields, column, type=field_type)


def _types_by_column(columns_by_type: Mapping[str, list[str] | None], ignored: Sequence[str]) -> dict[str, str]:
    """Return {column: field type} for the columns in the options."""
    options = {"id": "--id", "number": "--number", "id_list": "--list"}
    types: dict[str, str] = {}
    for field_type, columns in columns_by_type.items():
        for column in split_names(columns):
            if column in ignored or types.get(column, field_type) != field_type:
                other = "--ignore" if column in ignored else options[types[column]]
                raise InputError(
                    f"{options[field_type]} {column}: {other} names this column too; use only one of the options"
                )
            types[column] = field_type
    return types


def split_names(values: Sequence[str] | None) -> list[str]:
    """Return the names in a repeatable option; each value contains names separated by commas.

    >>> split_names(["city,device", "hour"])
    ['city', 'device', 'hour']
    """
    return [name for value in values or [] for name in value.split(",")]


def parse_recipe(document: dict[str, Any], overrides: Sequence[str] | None, where: str) -> Recipe:
    """Return the recipe of a document after applying `PATH=VALUE` overrides.

    Raises InputError for a wrong value; the message starts with `where`.
    """
    from asymdiffrec.datasets.files.documents import apply_override, validate
    from asymdiffrec.datasets.prepare.table.recipe import Recipe
    from asymdiffrec.trainer.job import TrainConfig

    for path_and_value in overrides or []:
        apply_override(document, path_and_value)
    recipe = validate(Recipe, document, where)
    validate(TrainConfig, recipe.train, f"{where}: train")
    return recipe
