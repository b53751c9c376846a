from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asymdiffrec.datasets import profile
from asymdiffrec.datasets.errors import InputError
from asymdiffrec.datasets.profile import learn, standard_deviation
from asymdiffrec.datasets.schema import FieldsConfig

CONFIG = FieldsConfig.model_validate(
    {
        "fields": {
            "user": {"type": "id", "group": "user", "rows": 10},
            "city": {"type": "id", "group": "user", "rows": 10, "values": "string"},
            "items": {"type": "id_list", "rows": 10, "column": "clicked"},
            "price": {"type": "number"},
        }
    }
)
TYPES = pa.schema(
    {
        "label": pa.int8(),
        "user": pa.int64(),
        "city": pa.string(),
        "clicked": pa.list_(pa.int32()),
        "price": pa.float32(),
    }
)
SAMPLE = st.fixed_dictionaries(
    {
        "label": st.integers(0, 1),
        "user": st.none() | st.integers(-3, 3),
        "city": st.none() | st.sampled_from(["", "a", "ä"]),
        "clicked": st.none() | st.lists(st.none() | st.integers(0, 4), max_size=4),
        "price": st.none() | st.just(float("nan")) | st.integers(-50, 50).map(lambda x: x / 4),
    }
)


def write(path: Path, samples: list[dict[str, Any]], schema: pa.Schema = TYPES, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(samples, schema=schema), path, **options)


@given(st.lists(SAMPLE, min_size=1, max_size=60), st.integers(1, 9))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_learn_agrees_with_counting_by_hand(
    tmp_path_factory: pytest.TempPathFactory, samples: list[dict[str, Any]], group: int
) -> None:
    folder = tmp_path_factory.mktemp("data")
    half = (len(samples) + 1) // 2
    write(folder / "train/a.parquet", samples[:half], row_group_size=group)
    write(folder / "train/b.parquet", samples[half:], row_group_size=group)
    write(folder / "test/a.parquet", samples)
    learned, found = learn(folder, CONFIG)

    lists = [[item for item in sample["clicked"] or [] if item is not None] for sample in samples]
    prices = np.array([s["price"] for s in samples if s["price"] is not None and not np.isnan(s["price"])])
    cities = {sample["city"] for sample in samples} - {None}
    patterns = Counter(
        frozenset(
            [name for name in ("user", "city") if sample[name] is None]
            + [name for name, items in [("items", clicked)] if not items]
            + [name for name in ["price"] if sample[name] is None or np.isnan(sample[name])]
        )
        for sample, clicked in zip(samples, lists, strict=True)
    )
    assert learned.rows == found["rows"] == {"train": len(samples), "test": len(samples)}
    rate = sum(sample["label"] for sample in samples) / len(samples)
    assert learned.label_rate == pytest.approx(rate)
    assert found["label_rate"] == pytest.approx({"train": rate, "test": rate})
    assert {frozenset(pattern.missing): pattern.rows for pattern in learned.patterns} == patterns
    assert learned.cardinalities["items"] == len({item for clicked in lists for item in clicked})
    assert learned.cardinalities["city"] == found["fields"]["city"]["cardinality"] == len(cities)
    if any(lists):
        mean_length = np.mean([len(clicked) for clicked in lists if clicked])
        assert found["fields"]["items"]["mean_length"] == pytest.approx(mean_length)
    for name in CONFIG.fields:
        absent = sum(rows for missing, rows in patterns.items() if name in missing)
        assert found["fields"][name]["missing"] == pytest.approx(absent / len(samples))
    if len(set(prices)) > 1:
        assert learned.numbers["price"].mean == pytest.approx(prices.mean(), abs=1e-9)
        assert learned.numbers["price"].std == pytest.approx(prices.std())
        assert (found["fields"]["price"]["min"], found["fields"]["price"]["max"]) == (prices.min(), prices.max())
    else:
        assert learned.numbers["price"].std == 1


def numbers_only(count: int) -> FieldsConfig:
    fields = {f"n{n}": {"type": "number"} for n in range(count)}
    return FieldsConfig.model_validate({"fields": {"id": {"type": "id", "rows": 5}, **fields}})


def write_numbers(folder: Path, numbers: np.ndarray) -> None:
    columns = {f"n{n}": pa.array(column, from_pandas=True) for n, column in enumerate(numbers.T)}
    (folder / "train").mkdir()
    ones = np.ones(len(numbers), dtype=np.int64)
    pq.write_table(pa.table({"label": ones, "id": ones, **columns}), folder / "train/a.parquet", row_group_size=100)


def test_moments_of_numbers_whose_mean_dwarfs_their_spread(tmp_path: Path) -> None:
    stamps = 1.7e9 + np.random.default_rng(0).normal(0, 0.25, (1000, 1)).round(3)
    write_numbers(tmp_path, stamps)
    learned, _ = learn(tmp_path, numbers_only(1))
    assert learned.numbers["n0"].mean == pytest.approx(stamps.mean(), rel=1e-15)
    assert learned.numbers["n0"].std == pytest.approx(stamps.std(), rel=1e-6)


@pytest.mark.parametrize("candidates", [1 << 17, 600])
def test_the_256_most_frequent_patterns_are_kept_and_the_complete_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidates: int
) -> None:
    monkeypatch.setattr(profile, "CANDIDATES", candidates)
    rng = np.random.default_rng(0)
    rare = rng.permutation(np.arange(1, 1024))
    common = np.repeat(rare[:256], 5)  # these 256 six times in all, the others once, and one row complete
    codes = np.concatenate([common, rare[:500], [0], rare[500:]])
    bits = codes[:, None] >> np.arange(10) & 1
    write_numbers(tmp_path, np.where(bits, np.nan, 1.0))
    learned, _ = learn(tmp_path, numbers_only(10))
    kept = {sum(1 << int(name[1:]) for name in pattern.missing): pattern.rows for pattern in learned.patterns}
    assert len(kept) == 256
    assert kept[0] == 1
    assert {rows for code, rows in kept.items() if code} == {6}
    assert set(kept) - {0} < set(rare[:256].tolist())


def test_ids_too_many_to_wait_are_counted_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "MERGE_AT", 10)
    users = np.random.default_rng(0).integers(0, 400, 3000)
    samples = [{"label": 1, "user": int(user)} for user in users]
    write(tmp_path / "train/a.parquet", samples, row_group_size=50)
    learned, _ = learn(tmp_path, CONFIG)
    assert learned.cardinalities == {"user": len(set(users)), "city": 0, "items": 0}


GOOD = {"label": 1, "user": 1, "city": "a", "clicked": [1], "price": 1.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": 2}, "train/a.parquet, row group 0, column label, row 1: label 2; allowed is 0 or 1"),
        ({"label": None}, "label None; allowed is 0 or 1"),
        ({"price": float("inf")}, "train/a.parquet, row group 0, column price: found a number beyond 3.4e+38"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    write(tmp_path / "train/a.parquet", [GOOD, GOOD | change])
    with pytest.raises(InputError) as error:
        learn(tmp_path, CONFIG)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train"):
        learn(tmp_path, CONFIG)
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"train: no \*.parquet file"):
        learn(tmp_path, CONFIG)
    write(tmp_path / "train/a.parquet", [GOOD])
    write(tmp_path / "train/b.parquet", [GOOD], TYPES.remove(TYPES.get_field_index("clicked")))
    with pytest.raises(InputError, match=r"b\.parquet: .*column clicked \(field items\)"):
        learn(tmp_path, CONFIG)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.floats(-1e6, 1e6), st.integers(1, 1000))
def test_a_constant_column_has_standard_deviation_1(value, count):
    assert standard_deviation(count * value, count * value**2, count) == 1


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_standard_deviation_follows_the_scale(scale):
    assert standard_deviation(6 * scale, 14 * scale**2, 3) == pytest.approx(scale * (2 / 3) ** 0.5)
    assert standard_deviation(0, 2 * scale**2, 2) == pytest.approx(scale)


def test_standard_deviation_of_nothing_is_1():
    assert standard_deviation(0, 0, 0) == 1
