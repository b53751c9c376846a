"""Load user-defined classes, which a job file names as package.module:Class."""

from __future__ import annotations

import importlib
import re
from typing import Any

from asymdiffrec.base import InputError

CLASS_PATH = re.compile(r"\w+(\.\w+)*:\w+")
"""Pattern of package.module:Class"""


def load_object(path: str, kind: str) -> Any:
    """Return the object that a path names, or None if its module does not define it.

    `kind` names the object in messages, for example method. Raises InputError if the module cannot be imported.
    """
    module_name, name = path.split(":")
    try:
        return getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise InputError(f"{kind} {path}: cannot import {module_name}: {error}") from error


def load_class(path: str, base: type, kind: str) -> Any:
    """Return the subclass of `base` that a path names; `kind` names the class in messages, for example method.

    Raises InputError if the path names no subclass of `base`, or if the class lacks a method that `base` requires.
    """
    loaded = load_object(path, kind)
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise InputError(f"{kind} {path}: found {loaded!r}, allowed is a subclass of {base.__module__}.{base.__name__}")
    missing_methods = getattr(loaded, "__abstractmethods__", ())
    if missing_methods:
        raise InputError(f"{kind} {path}: does not define {', '.join(sorted(missing_methods))}")
    return loaded
