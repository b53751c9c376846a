"""Tests of the fp64 reference table, and of its comparison with FBGEMM on the CPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.table_reference import BETAS, EPS, OPTIMIZERS, RATE, ReferenceTable
from benchmarks.gpu.tables import Case, cases, compare


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
def test_the_reference_equals_torch_if_every_row_is_looked_up(optimizer: str) -> None:
    rows, dim = 3, 4
    table = ReferenceTable(torch.randn(rows, dim), optimizer)
    weight = torch.nn.Parameter(table.weight.clone())
    theirs: torch.optim.Optimizer = {
        "adagrad": lambda: torch.optim.Adagrad([weight], lr=RATE, eps=EPS),
        "sgd": lambda: torch.optim.SGD([weight], lr=RATE),
        "adam": lambda: torch.optim.Adam([weight], lr=RATE, betas=BETAS, eps=EPS),
    }[optimizer]()
    ids, bags, weights = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 1, 2]), torch.tensor([1.0, 0.5, 2.0, 1.0])
    for _ in range(3):
        pooled = torch.stack([weight[0] + 0.5 * weight[1], 2 * weight[2], weight[0]])
        torch.testing.assert_close(table.look_up(ids, bags, weights.double(), 3), pooled.detach())
        upstream = torch.randn(3, dim, dtype=torch.float64)
        theirs.zero_grad()
        pooled.backward(upstream)
        theirs.step()
        table.update(ids, bags, weights.double(), upstream)
        torch.testing.assert_close(table.weight, weight.detach())


def test_fbgemm_equals_the_reference_on_the_cpu() -> None:
    for case in cases("device", "cpu", quick=True):
        differences = compare(case, "cpu")
        assert max(differences.values()) < 2e-5, case


def test_a_wrong_learning_rate_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("sgd", "fp32", "HOST", 16, weighted=True)
    monkeypatch.setattr("benchmarks.gpu.table_reference.RATE", 2 * RATE)
    assert compare(case, "cpu")["weights"] > 1e-3


def test_a_gpu_has_cases_of_every_optimizer_and_location() -> None:
    on_gpu = cases("uvm", "cuda", quick=False)
    assert {case.optimizer for case in on_gpu} == set(OPTIMIZERS)
    assert {case.location for case in on_gpu} == {"MANAGED", "MANAGED_CACHING"}
    assert {case.dtype for case in on_gpu} == {"fp32", "fp16"}
