"""The cluster of the running processes."""

import pytest

from asymdiffrec.embeddings.planner.devices import local_cluster


def test_the_ranks_of_a_host_share_its_memory(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    two = local_cluster("cpu", None, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    four = local_cluster("cpu", None, 4)
    assert (two.nodes, two.local_world_size) == (2, 2)
    assert two.device.memory == pytest.approx(2 * four.device.memory)
