"""The import graph of the project. `python -m tests.imports` prints it by folder, with cycles and the longest files."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("trainer", "serving", "cluster", "diffusion", "embeddings", "datasets")
"""Top-level folders that are installed. `benchmarks/` and `tests/` may import all of them"""


def files(*folders: str) -> dict[str, Path]:
    """Return {module name such as `trainer.fit.loop`: file} for some top-level folders; without arguments for all."""
    paths = [path for folder in folders or FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    if not folders:
        paths += sorted(path for path in (ROOT / "asymdiffrec").glob("*.py") if not path.name.startswith("__"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("asymdiffrec."): path for path in paths}


def imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """Return the modules of the project that a file imports, also inside functions.

    Raises AssertionError for a relative import.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    ours = {name.removeprefix("asymdiffrec.") for name in names if name.startswith("asymdiffrec.")}
    return ours & modules.keys()


@cache
def graph() -> dict[str, set[str]]:
    """Return {module: modules that it imports} for all modules of the project."""
    modules = files()
    return {name: imports(path, modules) for name, path in modules.items()}


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the cycles of a graph: strongly connected components with two or more nodes (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            start = stack.index(node)
            component = stack[start:]
            del stack[start:]
            if len(component) > 1:
                components.append(sorted(component))

    for node in edges:
        if node not in order:
            visit(node)
    return components


def main() -> None:
    """Print the number of imports from each folder to each other folder, the cycles and the longest files."""
    edges, between = graph(), defaultdict[str, Counter[str]](Counter)
    for name, others in edges.items():
        folder = name.rpartition(".")[0] or name
        for other in others:
            target = other.rpartition(".")[0] or other
            if target != folder:
                between[folder][target] += 1
    for folder, targets in sorted(between.items()):
        print(f"{folder:28}", ", ".join(f"{target} {number}" for target, number in targets.most_common()))
    count = sum(map(len, edges.values()))
    print(f"{len(edges)} files, {count} imports between them, cycles: {cycles(edges) or 'none'}")
    paths = [path for path in ROOT.rglob("*.py") if ".venv" not in path.parts]
    lines = {path: len(path.read_text().splitlines()) for path in paths}
    for path in sorted(lines, key=lines.__getitem__, reverse=True)[:5]:
        print(f"{lines[path]:5} lines  {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
