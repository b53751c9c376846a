"""A new export replaces the current export while the server answers requests, unless it cannot be loaded."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from starlette.testclient import TestClient

from asymdiffrec.serving import reloader as reloader_module
from asymdiffrec.serving.app import Limits, Service
from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.export import load_export
from asymdiffrec.serving.reloader import Reloader
from asymdiffrec.trainer.inference.export import export_run

WAIT_SECONDS = 240
"""Limit for a condition that is true within a second on an idle machine"""


@pytest.fixture(scope="module")
def quantised(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another version of the same run, with int8 tables."""
    folder = tmp_path_factory.mktemp("quantised") / "int8"
    export_run(trained, folder, "int8", Console(quiet=True))
    return folder


@pytest.fixture
def link(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A link to the unquantised export; the reloader checks the link every 0.02 s."""
    monkeypatch.setattr(reloader_module, "POLL_SECONDS", 0.02)
    path = tmp_path / "current"
    path.symlink_to(exported)
    return path


def point_to(link: Path, folder: Path) -> None:
    """Let the link point to another folder, atomically."""
    new_link = link.with_name("new")
    new_link.symlink_to(folder)
    new_link.rename(link)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_all_requests_are_answered_while_versions_change(link: Path, exported: Path, quantised: Path) -> None:
    versions = [load_export(folder).manifest.version for folder in (exported, quantised)]
    lines: list[str] = []
    reloader = Reloader(link, report=lines.append)
    reloader.load()
    reloader.watch()
    responses: list[tuple[int, str]] = []
    end = threading.Event()
    with TestClient(Service(reloader, Limits(), None, threads=2).application()) as client:

        def send_requests() -> None:
            while not end.is_set():
                response = client.post("/v1/score", json={"samples": [{"user_id": 5}, {}]})
                responses.append((response.status_code, response.json()["version"]))

        threads = [threading.Thread(target=send_requests) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number, folder in enumerate([quantised, exported] * 3, start=1):
            point_to(link, folder)
            wait_until(lambda number=number: reloader.reloads == number)
            wait_until(lambda number=number: responses[-1][1] == versions[number % 2])
        end.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in responses} == {200}
    assert {version for _, version in responses} == set(versions)
    assert lines[0] == f"Version {versions[1]} replaced version {versions[0]}"


def test_damaged_export_does_not_replace_the_current_one(
    link: Path, exported: Path, quantised: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(quantised, damaged)
    tables = (damaged / "tables.bin").read_bytes()
    (damaged / "tables.bin").write_bytes(tables[:-1] + bytes([tables[-1] ^ 1]))
    lines: list[str] = []
    looks: list[object] = []
    reloader = Reloader(link, report=lines.append)
    version = reloader.load().version
    reloader.watch()
    with TestClient(Service(reloader, Limits(), None, threads=1).application()) as client:
        point_to(link, damaged)
        wait_until(lambda: reloader.reload_error is not None)
        document = client.get("/ready").json()
        assert document["version"] == version
        assert "tables.bin: differs from its checksum" in document["reload_error"]
        assert client.post("/v1/score", json={"samples": [{}]}).json()["version"] == version
        assert "asymdiffrec_reload_failed 1.0" in client.get("/metrics").text
        wait_until(lambda: len(lines) == 1)
        assert lines[0].startswith(f"warning: the new export cannot be loaded; the server keeps version {version}: ")

        # Once it is repaired, the same export is loaded.
        (damaged / "tables.bin").write_bytes(tables)
        wait_until(lambda: reloader.reloads == 1)
        assert "reload_error" not in client.get("/ready").json()

        # Without an export in the folder, the current export stays in use.
        folder_state = reloader._folder_state
        reloader._folder_state = lambda: looks.append(state := folder_state()) or state  # type: ignore[method-assign, func-returns-value]
        link.unlink()
        wait_until(lambda: looks[-2:] == [None, None])
        assert client.get("/ready").json()["version"] == load_export(quantised).manifest.version


def test_new_export_is_prepared_before_it_answers(link: Path, exported: Path, quantised: Path) -> None:
    prepared: list[tuple[str, str | None]] = []

    def prepare(engine: Engine) -> None:
        current = reloader._engine.version if reloader._engine else None
        prepared.append((engine.version, current))

    reloader = Reloader(link, prepare=prepare)
    reloader.load()
    reloader.watch()
    point_to(link, quantised)
    wait_until(lambda: reloader.reloads == 1)
    reloader.close()
    first, second = (load_export(folder).manifest.version for folder in (exported, quantised))
    assert prepared == [(first, None), (second, first)]
