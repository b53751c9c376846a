"""Read YAML files, validate documents with pydantic models, and write YAML; an error is one line."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.locations import filesystem_of, without_secrets

# The classes of libyaml, if it is installed, are about 100 times as fast, which matters for large vocabularies.
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SafeDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class Dumper(SafeDumper):  # type: ignore[misc, valid-type]
    """YAML writer that keeps the line breaks of texts with several lines."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Return the YAML node of a text; a text with several lines becomes a literal block."""
        node: yaml.ScalarNode = self.represent_scalar("tag:yaml.org,2002:str", data, "|" if "\n" in data else None)
        return node


Dumper.add_representer(str, Dumper.represent_str)

M = TypeVar("M", bound=BaseModel)


def read_yaml(location: str) -> dict[str, Any]:
    """Return the mapping in a YAML file at a local path or a URI.

    Raises InputError if the file is missing, cannot be read, is not YAML, or does not hold a mapping.
    """
    filesystem, path = filesystem_of(location)
    name = without_secrets(location)
    try:
        with filesystem.open_input_stream(path) as stream:
            document = yaml.load(stream.read().decode(), Loader)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise InputError(f"{name}: found {type(document).__name__}; the file must contain a mapping of sections")
    return document


def write_yaml(path: Path, document: BaseModel | Mapping[str, Any], comment: str = "") -> None:
    """Write a comment and then the text of `to_yaml` to a file."""
    path.write_text(comment + to_yaml(document), encoding="utf-8")


def to_yaml(document: BaseModel | Mapping[str, Any]) -> str:
    """Return a document as YAML. A section without subsections, such as a field of a job, gets one line."""
    content = document.model_dump(mode="json") if isinstance(document, BaseModel) else dict(document)
    text: str = yaml.dump(content, Dumper=Dumper, sort_keys=False, width=2**31 - 1, default_flow_style=None)
    return text


def validate(model: type[M], document: dict[str, Any], source: str) -> M:
    """Return the document as a model.

    Raises InputError with `source`, the path in the document and the first problem if the document is not valid.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{source}: {_describe(model, error.errors()[0])}") from None


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set one value of a document in place; `override` is `PATH=VALUE`, with a YAML value.

    Sections of PATH that do not exist are added. Raises InputError if `override` is malformed.

    >>> document = {"train": {"batch_size": 4096}}
    >>> apply_override(document, "train.batch_size=8192")
    >>> document
    {'train': {'batch_size': 8192}}
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"--set {override}: expected PATH=VALUE, such as train.batch_size=8192")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not YAML") from None
    *parents, last = path.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
        if not isinstance(document, dict):
            raise InputError(f"--set {override}: {parent} is a value, not a section")
    document[last] = value


def first_difference(before: Any, after: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return the first difference of two documents as (path, value before, value after), or None if they are equal.

    `path` is a prefix for the path of the difference.
    """
    if not isinstance(before, dict) or not isinstance(after, dict):
        return None if before == after else (path, before, after)
    for key in [*before, *(key for key in after if key not in before)]:
        if difference := first_difference(before.get(key), after.get(key), f"{path}.{key}"):
            return difference
    return None


def _describe(model: type[BaseModel], error: Any) -> str:
    """Return one line for a validation error: the path, the value, and the allowed values."""
    keys, section = _document_path(model, error["loc"])
    path = ".".join(keys)
    if error["type"] == "extra_forbidden":
        allowed = list(section.model_fields) if section else []
        similar = difflib.get_close_matches(keys[-1], allowed, 1)
        hint = f"did you mean {similar[0]}?" if similar else f"allowed are {', '.join(allowed)}"
        return f"{path}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{path}: is required"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: found {error['input']!r}; {message[0].lower()}{message[1:]}"


def _document_path(model: type[BaseModel], loc: Sequence[str | int]) -> tuple[list[str], type[BaseModel] | None]:
    """Return the keys of a pydantic error location as they are in the document, and the section with the last key.

    At a union of sections, pydantic's location contains the tag of the chosen section. The tag is no key of the
    document and is left out.
    """
    path: list[str] = []
    section: type[BaseModel] | None = model
    annotation: Any = model
    for part in loc:
        members = _union_members(annotation)
        sections = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
        if len(sections) > 1:
            annotation = next((member for member in sections if part in _tags(member)), sections[-1])
            continue
        path.append(str(part))
        section = sections[0] if sections else None
        if section is not None and part in section.model_fields:
            annotation = section.model_fields[str(part)].annotation
        else:
            annotation = (typing.get_args(annotation) or (None,))[-1]
    return path, section


def _union_members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _union_members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(part for member in typing.get_args(annotation) for part in _union_members(member))
    return (annotation,)


def _tags(section: type[BaseModel]) -> set[Any]:
    """Return the values of a section's literal fields, which identify the section in a union."""
    literals = [field.annotation for field in section.model_fields.values()]
    return {value for kind in literals if typing.get_origin(kind) is Literal for value in typing.get_args(kind)}
