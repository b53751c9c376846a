"""The cluster that this machine is of."""

import pytest

from asymdiffrec.embeddings.planner.devices import local_cluster


def test_memory_of_this_machine_is_shared_by_its_ranks(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    two = local_cluster("cpu", None, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    four = local_cluster("cpu", None, 4)
    assert (two.nodes, two.per_node) == (2, 2)
    assert two.device.memory == pytest.approx(2 * four.device.memory)
