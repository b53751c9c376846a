from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from asymdiffrec.datasets.statistics.field_auc import roc_auc


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2).filter(lambda x: len({a for a, _ in x}) == 2))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_roc_auc_equals_the_reference_with_ties(samples: list[tuple[bool, int]]) -> None:
    label, score = (np.array(column) for column in zip(*samples, strict=True))
    assert roc_auc(label.astype(np.int8), score) == pytest.approx(roc_auc_score(label, score))
