"""Run the examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("asymdiffrec", "trainer", "serving", "cluster", "diffusion", "embeddings", "datasets")


def modules_with_examples() -> list[str]:
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    paths = [file.relative_to(ROOT).with_suffix("").parts for file in files if ">>> " in file.read_text()]
    return sorted({".".join(parts if parts[0] == "asymdiffrec" else ("asymdiffrec", *parts)) for parts in paths})


@pytest.mark.parametrize("module", modules_with_examples())
def test_the_examples_of_a_module_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(module))
    assert results.failed == 0
