"""Progress: the best validation, and how long ago it was."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.trainer.checkpoints.progress import Progress


@given(values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1), higher=st.booleans())
@settings(derandomize=True)
def test_the_first_best_validation_is_recorded(values: list[float], higher: bool) -> None:
    progress = Progress()
    for number, value in enumerate(values, start=1):
        progress = replace(progress, step=10 * number).validated(value, higher)
    best = (max if higher else min)(values)
    first = values.index(best) + 1
    assert progress == Progress(10 * len(values), 10 * first, best, len(values) - first)
