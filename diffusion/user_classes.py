"""Classes of the user's own, named in the job file."""

from __future__ import annotations

import importlib
import re
from typing import Any

from asymdiffrec.base import InputError

PATH = re.compile(r"\w+(\.\w+)*:\w+")
"""package.module:Class"""


def load(path: str, what: str) -> Any:
    """What a path names, None where its module has no such thing; InputError, which says `what` it is, without one."""
    module_name, name = path.split(":")
    try:
        return getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise InputError(f"{what} {path}: cannot import {module_name}: {error}") from error


def load_class(path: str, base: type, what: str) -> Any:
    """The subclass of `base` that a path names; InputError, which says `what` it is, where there is none."""
    found = load(path, what)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(f"{what} {path}: found {found!r}, allowed is a subclass of {base.__module__}.{base.__name__}")
    lacking = getattr(found, "__abstractmethods__", ())
    if lacking:
        raise InputError(f"{what} {path}: has no {', '.join(sorted(lacking))}")
    return found
