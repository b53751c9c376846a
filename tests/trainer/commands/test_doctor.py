"""`doctor` in a sound environment, and in a broken one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from asymdiffrec.trainer.commands import doctor


def test_this_environment_is_sound(command: Callable[..., Any]) -> None:
    outcome = command("doctor", "--json")
    assert outcome.status == 0, outcome.out
    assert outcome.document["sound"]
    assert len(outcome.document["checks"]) == 6


def test_failed_checks_say_how_to_repair_them(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "RAY_VERSION", "0.1")

    def broken() -> doctor.Check:
        raise ImportError("libcudart.so: cannot open")

    broken.__name__ = "check_devices"
    monkeypatch.setattr(doctor, "check_devices", broken)
    outcome = command("doctor")
    assert outcome.status == 1
    assert 'repair: pip install "ray[train]==0.1"' in outcome.out
    assert "FAIL devices: ImportError: libcudart.so: cannot open" in outcome.out
    assert "ok   python" in outcome.out
