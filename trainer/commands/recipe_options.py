"""What the options of `asymdiffrec prepare` say, laid over a recipe as a YAML file has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asymdiffrec.base import InputError

if TYPE_CHECKING:
    from asymdiffrec.datasets.prepare.table.recipe import Recipe


def lay(document: dict[str, Any], section: str | None = None, **values: Any) -> None:
    """Lay the values that are given over a recipe, or over a section of it."""
    given = {key: value for key, value in values.items() if value is not None}
    if given:
        (document if section is None else _section(document, section)).update(given)


def _section(document: dict[str, Any], name: str) -> dict[str, Any]:
    """A section to lay options over. Raises InputError where the recipe has a value in its place."""
    if document.get(name) is None:
        document[name] = {}
    if not isinstance(document[name], dict):
        raise InputError(f"{name}: found {document[name]!r}; a section with keys is expected")
    section: dict[str, Any] = document[name]
    return section


def lay_common(
    document: dict[str, Any],
    input: list[str] | None,
    valid: list[str] | None,
    test: list[str] | None,
    split: str | None,
    min_count: int | None,
    seed: int | None,
    bad_rows: str | None,
) -> None:
    """Lay the options that every table has over a recipe."""
    lay(document, "input", files=input)
    lay(document, "split", by=split, valid=_part(valid), test=_part(test))
    lay(document, min_count=min_count, seed=seed, bad_rows=bad_rows)


def _part(given: list[str] | None) -> float | list[str] | None:
    """A share of the rows, or files."""
    if given and len(given) == 1:
        try:
            return float(given[0])
        except ValueError:
            return given
    return given or None


def lay_fields(
    document: dict[str, Any],
    ids: list[str] | None,
    numbers: list[str] | None,
    lists: list[str] | None,
    ignored: Sequence[str],
) -> None:
    """Lay the columns that options name over the fields of a recipe; one without fields infers those of all others.

    Raises InputError where two options name the same column.
    """
    declared = _declared({"id": ids, "number": numbers, "id_list": lists}, ignored)
    if declared:
        document.setdefault("infer", not document.get("fields"))
        fields = _section(document, "fields")
        for name, kind in declared.items():
            lay(fields, name, type=kind)


def _declared(given: Mapping[str, list[str] | None], ignored: Sequence[str]) -> dict[str, str]:
    """The kind of each column that an option names."""
    options = {"id": "--id", "number": "--number", "id_list": "--list"}
    pairs = [(name, kind) for kind, columns in given.items() for name in names(columns)]
    kinds: dict[str, str] = {}
    for name, kind in pairs:
        if name in ignored or kinds.get(name, kind) != kind:
            other = "--ignore" if name in ignored else options[kinds[name]]
            raise InputError(f"{options[kind]} {name}: {other} names that column too; a column is one thing")
        kinds[name] = kind
    return kinds


def names(given: Sequence[str] | None) -> list[str]:
    """The columns of an option that takes several, and may be repeated."""
    return [name for part in given or [] for name in part.split(",")]


def recipe_of(document: dict[str, Any], settings: Sequence[str] | None, where: str) -> Recipe:
    """The recipe with `PATH=VALUE` settings laid over it. Raises InputError, which tells `where`, for a wrong value."""
    from asymdiffrec.datasets.files.documents import apply_override, validate
    from asymdiffrec.datasets.prepare.table.recipe import Recipe
    from asymdiffrec.trainer.job import TrainConfig

    for setting in settings or []:
        apply_override(document, setting)
    recipe = validate(Recipe, document, where)
    validate(TrainConfig, recipe.train, f"{where}: train")
    return recipe
