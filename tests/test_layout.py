"""The folders are the architecture: what can be imported, from where, and what ends up in a wheel."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {"base", "field_layout", "json_lines", "torch_compat"}
"""Modules that every room may import"""
MAY_IMPORT = {
    "trainer": {"serving", "cluster", "diffusion", "embeddings", "datasets"},
    "serving": {"diffusion", "embeddings", "datasets"},
    "cluster": set(),
    "diffusion": set(),
    "embeddings": {"datasets"},
    "datasets": set(),
}


def modules(room: str) -> list[str]:
    files = sorted((ROOT / room).rglob("*.py"))
    return [".".join(("asymdiffrec", *file.relative_to(ROOT).with_suffix("").parts)) for file in files]


def imports(file: Path) -> set[str]:
    """Every module of ours that a file names in an import, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("asymdiffrec.")}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_down(room: str) -> None:
    for file in (ROOT / room).rglob("*.py"):
        for name in imports(file):
            other = name.split(".")[1]
            assert other in {room} | BASE | MAY_IMPORT[room], f"{file.relative_to(ROOT)} imports {name}"


def test_embeddings_know_the_schema_alone() -> None:
    names = {name for file in (ROOT / "embeddings").rglob("*.py") for name in imports(file)}
    datasets = {name for name in names if name.startswith("asymdiffrec.datasets")}
    assert datasets
    defining = (
        "asymdiffrec.datasets.schema.",
        "asymdiffrec.datasets.statistics.lookups.",
        "asymdiffrec.datasets.statistics.statistics.",
    )  # what was learned of a field is there
    assert all(name.startswith(defining) for name in datasets)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_are_importable_by_the_project_name(room: str) -> None:
    assert modules(room)
    for name in modules(room):
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None
        assert Path(spec.origin).resolve().is_relative_to(ROOT / room)


def test_kernel_code_needs_no_torchrec() -> None:
    code = (
        "import sys; sys.modules['torchrec'] = sys.modules['fbgemm_gpu'] = None\n"
        "import asymdiffrec.diffusion.model, asymdiffrec.diffusion.forward"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["datasets", "trainer"])
def test_other_packages_of_a_room_name_win(name: str, tmp_path: Path) -> None:
    """From the repository's root, where Python finds our folders too, an installed package of that name is imported."""
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("mine = True\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import {name}; print({name}.mine)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "True", result.stderr


def test_wheel_holds_every_module_and_runs_elsewhere(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    for room in ("asymdiffrec", *MAY_IMPORT):  # a copy, so that no build folder of an older tree gets into the wheel
        shutil.copytree(ROOT / room, source / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")

    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # Dependencies come from this environment: a path file adds its packages, but not the editable install's own hooks.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    elsewhere.mkdir()
    names = [name for room in MAY_IMPORT for name in modules(room)]
    code = f"import importlib; [print(importlib.import_module(name).__file__) for name in {names}]"
    result = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, cwd=elsewhere)
    origins = [Path(line) for line in result.stdout.splitlines()]
    assert len(origins) == len(names)
    assert all(origin.is_relative_to(site) for origin in origins)
    command = subprocess.run([python.with_name("asymdiffrec"), "--help"], capture_output=True, text=True, cwd=elsewhere)
    assert command.returncode == 0
    assert "prepare" in command.stdout
