"""YAML documents to checked models and back: a wrong value is one clear line."""

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
from asymdiffrec.datasets.files.locations import filesystem_of, shown

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SafeDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""libyaml's where there are: a large vocabulary takes them a hundredth of the time"""


class Dumper(SafeDumper):  # type: ignore[misc, valid-type]
    """Writes texts of several lines as they are."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        node: yaml.ScalarNode = self.represent_scalar("tag:yaml.org,2002:str", data, "|" if "\n" in data else None)
        return node


Dumper.add_representer(str, Dumper.represent_str)

M = TypeVar("M", bound=BaseModel)


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file at a local path or a URI."""
    filesystem, inner = filesystem_of(path)
    try:
        with filesystem.open_input_stream(inner) as stream:
            document = yaml.load(stream.read().decode(), Loader)
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{shown(path)}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{shown(path)}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise InputError(f"{shown(path)}: found {type(document).__name__}; a mapping of sections is expected")
    return document


def write_yaml(path: Path, document: BaseModel | Mapping[str, Any], comment: str = "") -> None:
    """Write a document below a comment; a section that holds no other is one line, such as a field of a job."""
    path.write_text(comment + to_yaml(document), encoding="utf-8")


def to_yaml(document: BaseModel | Mapping[str, Any]) -> str:
    """The text of `write_yaml`."""
    content = document.model_dump(mode="json") if isinstance(document, BaseModel) else dict(document)
    text: str = yaml.dump(content, Dumper=Dumper, sort_keys=False, width=2**31 - 1, default_flow_style=None)
    return text


def validate(model: type[M], document: dict[str, Any], where: str) -> M:
    """The document as a model, or an InputError about the first thing that is wrong with it."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{where}: {_describe(model, error.errors()[0])}") from None


def override(document: dict[str, Any], setting: str) -> None:
    """Lay one `PATH=VALUE` setting over a document. Raises InputError where it is none."""
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise InputError(f"--set {setting}: expected PATH=VALUE, such as train.batch_size=8192")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {setting}: the value is not YAML") from None
    *parents, last = path.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
        if not isinstance(document, dict):
            raise InputError(f"--set {setting}: {parent} is a value, not a section")
    document[last] = value


def difference(before: Any, after: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two documents differ: its path below `path`, and what both have there, None for nothing."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return None if before == after else (path, before, after)
    for key in [*before, *(key for key in after if key not in before)]:
        if found := difference(before.get(key), after.get(key), f"{path}.{key}"):
            return found
    return None


def _describe(model: type[BaseModel], error: Any) -> str:
    """One line on a validation error: the path, what was found, what is allowed."""
    path, section = _walk(model, error["loc"])
    at = ".".join(path)
    if error["type"] == "extra_forbidden":
        keys = list(section.model_fields) if section else []
        close = difflib.get_close_matches(path[-1], keys, 1)
        hint = f"did you mean {close[0]}?" if close else f"allowed are {', '.join(keys)}"
        return f"{at}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{at}: is required"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{at}: {message}" if at else message
    return f"{at}: found {error['input']!r}; {message[0].lower()}{message[1:]}"


def _walk(model: type[BaseModel], loc: Sequence[str | int]) -> tuple[list[str], type[BaseModel] | None]:
    """The path of a location as it stands in the file, and the section that holds its last key.

    After a union of sections pydantic's locations name the section that was chosen, which is in no file.
    """
    path: list[str] = []
    section: type[BaseModel] | None = model
    at: Any = model
    for part in loc:
        sections = [member for member in _members(at) if isinstance(member, type) and issubclass(member, BaseModel)]
        if len(sections) > 1:
            at = next((member for member in sections if part in _tags(member)), sections[-1])
            continue
        path.append(str(part))
        section = sections[0] if sections else None
        if section is not None and part in section.model_fields:
            at = section.model_fields[str(part)].annotation
        else:
            at = (typing.get_args(at) or (None,))[-1]
    return path, section


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(part for member in typing.get_args(annotation) for part in _members(member))
    return (annotation,)


def _tags(section: type[BaseModel]) -> set[Any]:
    """The values of the literal fields that tell the sections of a union apart."""
    literals = [field.annotation for field in section.model_fields.values()]
    return {value for kind in literals if typing.get_origin(kind) is Literal for value in typing.get_args(kind)}
