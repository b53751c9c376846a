"""Tests of the rivals: every rival learns, and no rival is better than the oracle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from asymdiffrec.diffusion.config import DiffusionConfig, ModelConfig
from asymdiffrec.field_layout import FieldLayout
from asymdiffrec.trainer.evaluation.scenarios import drop_at_random
from asymdiffrec.trainer.job import read_job, read_statistics
from benchmarks.rivals._samples import missing_under, read
from benchmarks.rivals.autoencoder import Autoencoder
from benchmarks.rivals.boosting import Features, boosting, boosting_dropped
from benchmarks.rivals.contrastive import Contrastive
from benchmarks.rivals.oracle import oracle

LAYOUT = FieldLayout.from_widths([4] * 5)


def test_trees_learn_and_the_oracle_is_above_them(clicks: Path) -> None:
    job = read_job(clicks / "job.yaml")
    statistics = read_statistics(job)
    schema = job.to_schema(statistics)
    scenarios = [drop_at_random(share, schema) for share in (0.0, 0.5)]
    label = read(job, schema, "test").label
    aucs = {
        rival.__name__: [roc_auc_score(label, logits) for logits in rival(job, statistics, scenarios, 0)]
        for rival in (boosting, boosting_dropped, oracle)
    }
    for name in ("boosting", "boosting_dropped"):
        assert aucs[name][0] > 0.7
        assert aucs["oracle"][0] > aucs[name][0]
        assert aucs["oracle"][1] > aucs[name][1]
    ceiling = json.loads((clicks / "profile.json").read_text())["optimal_auc"]["observed"]
    assert aucs["oracle"][0] == pytest.approx(ceiling, abs=2e-3)


def test_rivals_get_the_rows_of_the_networks_and_statistics_are_out_of_fold(clicks: Path) -> None:
    job = read_job(clicks / "job.yaml")
    schema = job.to_schema(read_statistics(job))
    train = read(job, schema, "train")
    field = schema.names.index("item_id")
    assert len(train.bags["item_id"].values) == (~train.missing[:, field]).sum()
    features = Features(schema, train, np.random.default_rng(0))
    x, field_of_column, _ = features.columns(train, out_of_fold=True)
    rates = x[:, np.flatnonzero(field_of_column == field)[0]]
    assert np.array_equal(np.isnan(rates), train.missing[:, field])
    row = train.bags["item_id"].rows[0]
    others = (train.bags["item_id"].values == train.bags["item_id"].values[0]) & (
        features.fold[train.bags["item_id"].rows] != features.fold[row]
    )
    positive = train.label[train.bags["item_id"].rows[others]].sum()
    assert rates[row] == pytest.approx((positive + 10 * features.rate) / (others.sum() + 10))
    half = missing_under(drop_at_random(0.5, schema), schema, train.missing)
    assert (half & ~train.missing).mean() == pytest.approx(0.5 * (~train.missing).mean(), abs=0.01)


@pytest.mark.parametrize("method", [Autoencoder, Contrastive])
def test_every_parameter_of_a_network_rival_gets_a_gradient(method: type) -> None:
    torch.manual_seed(0)
    name = f"{method.__module__}:{method.__name__}"
    model = method(LAYOUT, ModelConfig(), DiffusionConfig(method=name), seed=1)
    missing = torch.rand(64, 5) < 0.2
    clean = torch.randn(64, 20).masked_fill(missing.repeat_interleave(4, 1), 0)
    label, weight, index = (torch.rand(64) < 0.5).float(), torch.ones(64), torch.arange(64)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, _ = model(clean, missing, label, weight, index)
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_autoencoder_changes_only_missing_fields() -> None:
    model = Autoencoder(LAYOUT, ModelConfig(), DiffusionConfig(method="m:Autoencoder"), seed=1)
    x, nothing_missing = torch.randn(8, 20), torch.zeros(8, 5, dtype=torch.bool)
    assert torch.equal(model.score(x, nothing_missing), model.logit(model.latent(x, nothing_missing)))
    missing = nothing_missing.clone()
    missing[:, 2] = True
    restored = model.encoder(x, missing.float())
    filled = x.clone()
    filled[:, 8:12] = restored[:, 8:12]
    torch.testing.assert_close(model.score(x, missing), model.logit(model.latent(filled, missing)))
