"""Another export in place of the one that is live: swapped in while requests are answered, or refused."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from starlette.testclient import TestClient

from asymdiffrec.serving import reloader as module
from asymdiffrec.serving.app import Limits, Service
from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.export import load_export
from asymdiffrec.serving.reloader import Reloader
from asymdiffrec.trainer.inference.export import export_run


@pytest.fixture(scope="module")
def rounded(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounded") / "int8"
    export_run(trained, folder, "int8", Console(quiet=True))
    return folder


@pytest.fixture
def link(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "EVERY", 0.02)
    path = tmp_path / "live"
    path.symlink_to(exported)
    return path


def point(link: Path, folder: Path) -> None:
    """At another folder, at once."""
    other = link.with_name("other")
    other.symlink_to(folder)
    other.rename(link)


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_versions_are_swapped_without_losing_a_request(link: Path, exported: Path, rounded: Path) -> None:
    versions = [load_export(folder).manifest.version for folder in (exported, rounded)]
    lines: list[str] = []
    live = Reloader(link, tell=lines.append)
    live.load()
    live.watch()
    answers: list[tuple[int, str]] = []
    end = threading.Event()
    with TestClient(Service(live, Limits(), None, threads=2).application()) as client:

        def ask() -> None:
            while not end.is_set():
                answer = client.post("/v1/score", json={"samples": [{"user_id": 5}, {}]})
                answers.append((answer.status_code, answer.json()["version"]))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number, folder in enumerate([rounded, exported] * 3, start=1):
            point(link, folder)
            wait(lambda number=number: live.swaps == number)
            wait(lambda number=number: answers[-1][1] == versions[number % 2])
        end.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in answers} == {200}
    assert {version for _, version in answers} == set(versions)
    assert lines[0] == f"Version {versions[1]} in place of {versions[0]}"


def test_what_is_not_fit_does_not_become_live(link: Path, exported: Path, rounded: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(rounded, damaged)
    whole = (damaged / "tables.bin").read_bytes()
    (damaged / "tables.bin").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    lines: list[str] = []
    live = Reloader(link, tell=lines.append)
    version = live.load().version
    live.watch()
    with TestClient(Service(live, Limits(), None, threads=1).application()) as client:
        point(link, damaged)
        wait(lambda: live.refused is not None)
        told = client.get("/ready").json()
        assert told["version"] == version
        assert "tables.bin: is not what was exported" in told["refused"]
        assert client.post("/v1/score", json={"samples": [{}]}).json()["version"] == version
        assert "asymdiffrec_refused 1.0" in client.get("/metrics").text
        (line,) = lines
        assert line.startswith(f"Still version {version}, for the new one cannot be served: ")

        (damaged / "tables.bin").write_bytes(whole)  # mended, it is looked at again
        wait(lambda: live.swaps == 1)
        assert "refused" not in client.get("/ready").json()
        link.unlink()
        time.sleep(0.1)
        assert client.get("/ready").json()["version"] == load_export(rounded).manifest.version, "nothing there"


def test_what_is_loaded_is_prepared_before_it_is_live(link: Path, exported: Path, rounded: Path) -> None:
    seen: list[tuple[str, str | None]] = []

    def prepare(engine: Engine) -> None:
        before = live._engine.version if live._engine else None
        seen.append((engine.version, before))

    live = Reloader(link, prepare=prepare)
    live.load()
    live.watch()
    point(link, rounded)
    wait(lambda: live.swaps == 1)
    live.close()
    first, second = (load_export(folder).manifest.version for folder in (exported, rounded))
    assert seen == [(first, None), (second, first)]
