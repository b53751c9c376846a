"""The statistics and the profile of a folder of Parquet files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.base import InputError
from asymdiffrec.datasets.decoding.string_hash import string_ids
from asymdiffrec.datasets.schema import DataConfig, FieldsConfig
from asymdiffrec.datasets.statistics import missing_patterns
from asymdiffrec.datasets.statistics.compute import compute_statistics
from asymdiffrec.datasets.statistics.statistics import NumericStatistics

CONFIG = FieldsConfig.model_validate(
    {
        "fields": {
            "user": {"type": "id", "group": "user", "num_embeddings": 10},
            "city": {"type": "id", "group": "user", "num_embeddings": 10, "values": "string"},
            "items": {"type": "id_list", "num_embeddings": 10, "column": "clicked"},
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
@settings(max_examples=60, derandomize=True, deadline=None)
def test_statistics_agree_with_counting_by_hand(
    tmp_path_factory: pytest.TempPathFactory, samples: list[dict[str, Any]], group: int
) -> None:
    folder = tmp_path_factory.mktemp("data")
    half = (len(samples) + 1) // 2
    write(folder / "train/a.parquet", samples[:half], row_group_size=group)
    write(folder / "train/b.parquet", samples[half:], row_group_size=group)
    write(folder / "test/a.parquet", samples)
    statistics, profile = compute_statistics(folder, CONFIG)

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
    assert statistics.rows == profile["rows"] == {"train": len(samples), "test": len(samples)}
    rate = sum(sample["label"] for sample in samples) / len(samples)
    assert statistics.label_rate == pytest.approx(rate)
    assert profile["label_rate"] == pytest.approx({"train": rate, "test": rate})
    assert {frozenset(pattern.missing): pattern.rows for pattern in statistics.missing_patterns} == patterns
    assert statistics.cardinalities["items"] == len({item for clicked in lists for item in clicked})
    assert statistics.cardinalities["city"] == profile["fields"]["city"]["cardinality"] == len(cities)
    if any(lists):
        mean_length = np.mean([len(clicked) for clicked in lists if clicked])
        assert profile["fields"]["items"]["mean_length"] == pytest.approx(mean_length)
    for name in CONFIG.fields:
        absent = sum(rows for missing, rows in patterns.items() if name in missing)
        assert profile["fields"][name]["missing"] == pytest.approx(absent / len(samples))
    if len(set(prices)) > 1:
        assert statistics.numeric["price"].mean == pytest.approx(prices.mean(), abs=1e-9)
        assert statistics.numeric["price"].std == pytest.approx(prices.std())
        assert (profile["fields"]["price"]["min"], profile["fields"]["price"]["max"]) == (prices.min(), prices.max())
    else:
        assert statistics.numeric["price"].std == 1


def numbers_only(count: int) -> FieldsConfig:
    fields = {f"n{n}": {"type": "number"} for n in range(count)}
    return FieldsConfig.model_validate({"fields": {"id": {"type": "id", "num_embeddings": 5}, **fields}})


def write_numbers(folder: Path, numbers: np.ndarray) -> None:
    columns = {f"n{n}": pa.array(column, from_pandas=True) for n, column in enumerate(numbers.T)}
    (folder / "train").mkdir()
    ones = np.ones(len(numbers), dtype=np.int64)
    pq.write_table(pa.table({"label": ones, "id": ones, **columns}), folder / "train/a.parquet", row_group_size=100)


def test_mean_and_std_are_accurate_if_the_mean_is_much_larger_than_the_std(tmp_path: Path) -> None:
    stamps = 1.7e9 + np.random.default_rng(0).normal(0, 0.25, (1000, 1)).round(3)
    write_numbers(tmp_path, stamps)
    statistics, _ = compute_statistics(tmp_path, numbers_only(1))
    assert statistics.numeric["n0"].mean == pytest.approx(stamps.mean(), rel=1e-15)
    assert statistics.numeric["n0"].std == pytest.approx(stamps.std(), rel=1e-6)


@pytest.mark.parametrize("candidates", [1 << 17, 600])
def test_the_most_frequent_patterns_and_the_complete_one_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidates: int
) -> None:
    monkeypatch.setattr(missing_patterns, "MAX_CANDIDATES", candidates)
    rng = np.random.default_rng(0)
    rare = rng.permutation(np.arange(1, 1024))
    common = np.repeat(rare[:256], 5)  # 256 patterns in six rows each, the others in one row, and one complete row
    codes = np.concatenate([common, rare[:500], [0], rare[500:]])
    bits = codes[:, None] >> np.arange(10) & 1
    write_numbers(tmp_path, np.where(bits, np.nan, 1.0))
    statistics, _ = compute_statistics(tmp_path, numbers_only(10))
    saved = {
        sum(1 << int(name[1:]) for name in pattern.missing): pattern.rows for pattern in statistics.missing_patterns
    }
    assert len(saved) == 256
    assert saved[0] == 1
    assert {rows for code, rows in saved.items() if code} == {6}
    assert set(saved) - {0} < set(rare[:256].tolist())


GOOD = {"label": 1, "user": 1, "city": "a", "clicked": [1], "price": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "train/a.parquet, row group 0, column label, row 1: label 2; allowed is 0 or 1"),
        ({"label": None}, "label None; allowed is 0 or 1"),
        (
            {"price": float("inf")},
            "a.parquet, row group 0, column price, row 1: found inf; allowed are null, NaN and numbers from",
        ),
    ],
)
def test_a_wrong_value_is_an_error_with_its_location(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path / "train/a.parquet", [GOOD, GOOD | change])
    with pytest.raises(InputError) as error:
        compute_statistics(tmp_path, CONFIG)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_absent_files_and_columns_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train"):
        compute_statistics(tmp_path, CONFIG)
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"train: no \*.parquet file"):
        compute_statistics(tmp_path, CONFIG)
    write(tmp_path / "train/a.parquet", [GOOD])
    write(tmp_path / "train/b.parquet", [GOOD], TYPES.remove(TYPES.get_field_index("clicked")))
    with pytest.raises(InputError, match=r"b\.parquet: .*column clicked \(field items\)"):
        compute_statistics(tmp_path, CONFIG)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_standard_deviation_follows_the_scale(tmp_path: Path, scale: float) -> None:
    write_numbers(tmp_path, scale * np.array([[1.0, 5.0, np.nan], [2.0, 5.0, np.nan], [3.0, 5.0, np.nan]]))
    statistics, _ = compute_statistics(tmp_path, numbers_only(3))
    assert statistics.numeric["n0"].std == pytest.approx(scale * (2 / 3) ** 0.5)
    assert statistics.numeric["n1"].mean == pytest.approx(5 * scale)
    assert statistics.numeric["n1"].std == 1, "a constant number"
    assert statistics.numeric["n2"] == NumericStatistics(), "a number that is always missing"
    assert [statistics.numeric[name].knots for name in ("n0", "n1")] == [[scale, 2 * scale, 3 * scale], [5 * scale]]


@pytest.mark.parametrize("transform", ["log1p", "log_squared", "standardise"])
def test_mean_and_std_are_computed_after_the_transform(tmp_path: Path, transform: str) -> None:
    numbers = np.random.default_rng(0).exponential(100, (500, 1)) - 5
    write_numbers(tmp_path, numbers)
    fields = {"id": {"type": "id", "num_embeddings": 5}, "n0": {"type": "number", "transform": transform}}
    statistics, profile = compute_statistics(tmp_path, FieldsConfig.model_validate({"fields": fields}))
    expected = {
        "log1p": np.sign(numbers) * np.log1p(np.abs(numbers)),
        "log_squared": np.where(numbers > 2, np.log(np.clip(numbers, 2, None)) ** 2, numbers),
        "standardise": numbers,
    }[transform]
    assert statistics.numeric["n0"].mean == pytest.approx(expected.mean())
    assert statistics.numeric["n0"].std == pytest.approx(expected.std())
    assert (profile["fields"]["n0"]["min"], profile["fields"]["n0"]["max"]) == (numbers.min(), numbers.max())


def frequent_config(threads: int, min_count: int) -> FieldsConfig:
    fields = {
        "user": {"type": "id", "num_embeddings": 10, "min_count": min_count},
        "city": {"type": "id", "num_embeddings": 10, "values": "string", "min_count": min_count},
        "items": {"type": "id_list", "num_embeddings": 10, "column": "clicked", "min_count": min_count},
    }
    return FieldsConfig.model_validate({"data": {"threads": threads}, "fields": fields})


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.lists(SAMPLE, min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 3), st.integers(2, 4))
def test_a_vocabulary_has_the_ids_that_occur_in_enough_rows(
    tmp_path_factory: pytest.TempPathFactory, samples: list[dict[str, Any]], group: int, threads: int, min_count: int
) -> None:
    folder = tmp_path_factory.mktemp("data")
    write(folder / "train/a.parquet", samples, row_group_size=group)
    statistics, profile = compute_statistics(folder, frequent_config(threads, min_count))
    rows = {
        "user": Counter(s["user"] for s in samples if s["user"] is not None),
        "city": Counter(string_id(s["city"]) for s in samples if s["city"] is not None),
        "items": Counter(item for s in samples for item in set(s["clicked"] or []) - {None}),
    }
    for name, counted in rows.items():
        frequent = sorted(identity for identity, count in counted.items() if count >= min_count)
        assert statistics.vocabularies[name].sorted_ids.tolist() == frequent
        assert statistics.cardinalities[name] == len(counted)
        report = profile["fields"][name]
        assert (report["frequent"], report["rare"]) == (len(frequent), len(counted) - len(frequent))
        assert report["cardinality_exact"]


def string_id(text: str) -> int:
    return int(string_ids(pa.array([text]))[0])


def test_neither_threads_nor_row_groups_change_the_statistics(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [
        {
            "label": int(rng.integers(2)),
            "user": int(rng.integers(500)),
            "city": str(rng.integers(50)),
            "clicked": rng.integers(0, 90, rng.integers(4)).tolist(),
            "price": None if rng.random() < 0.1 else float(rng.normal()),
        }
        for _ in range(1500)
    ]
    write(tmp_path / "many/train/a.parquet", samples, row_group_size=70)
    write(tmp_path / "one/train/a.parquet", samples)
    rows_read: list[int] = []
    config = CONFIG.model_copy(update={"data": DataConfig(threads=4)})
    many, one = (
        compute_statistics(tmp_path / "many", config, rows_read.append),
        compute_statistics(tmp_path / "one", config),
    )
    assert rows_read == [70] * 21 + [30]
    assert many == compute_statistics(tmp_path / "many", CONFIG.model_copy(update={"data": DataConfig(threads=1)}))
    assert many[0].numeric["price"].std == pytest.approx(one[0].numeric["price"].std, rel=1e-12)
    for statistics in (many[0], one[0]):
        statistics.numeric.clear()
    assert many[0] == one[0]


WEIGHTED = FieldsConfig.model_validate(
    {"fields": {"items": {"type": "id_list", "num_embeddings": 10, "column": "clicked", "weights": "shares"}}}
)
WEIGHTED_TYPES = TYPES.append(pa.field("shares", pa.list_(pa.float32())))


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([1.0], "row group 0, column clicked, row 1: 2 ids but 1 weights"),
        (None, "row 1: 2 ids but 0 weights"),
        ([0.5, -1.0], "row 1: the weight of an id is -1"),
        ([0.5, float("nan")], "row 1: the weight of an id is null or NaN"),
        ([0.5, float("inf")], "row 1: the weight of an id is inf"),
        ([0.5, None], "row 1: the weight of an id is null or NaN"),
    ],
)
def test_wrong_weights_are_an_error(tmp_path: Path, shares: Any, message: str) -> None:
    good = GOOD | {"shares": [0.0]}
    write(tmp_path / "train/a.parquet", [good, good | {"clicked": [1, 2], "shares": shares}], WEIGHTED_TYPES)
    with pytest.raises(InputError) as error:
        compute_statistics(tmp_path, WEIGHTED)
    assert message in str(error.value)


def test_valid_weights_are_accepted(tmp_path: Path) -> None:
    rows = [GOOD | {"clicked": [1, None, 2], "shares": [0.5, 1.0, 2.0]}, GOOD | {"clicked": None, "shares": []}]
    write(tmp_path / "train/a.parquet", rows, WEIGHTED_TYPES)
    assert compute_statistics(tmp_path, WEIGHTED)[0].cardinalities == {"items": 2}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("city", "x", "row group 0, column city, row 1: 'x' is no 64-bit integer"),
        ("tags", ["1", None, "y"], "row group 0, column tags, row 1: 'y' is no 64-bit integer"),
        ("rows", 10, "row group 0, column rows, row 1: id 10 with hash: false"),
        ("lists", [9, 10], "row group 0, column lists, row 1: id 10 with hash: false"),
    ],
)
def test_a_wrong_id_is_an_error_with_its_row(tmp_path: Path, column: str, value: Any, message: str) -> None:
    fields = {
        "city": {"type": "id", "num_embeddings": 10},
        "tags": {"type": "id_list", "num_embeddings": 10},
        "rows": {"type": "id", "num_embeddings": 10, "hash": False},
        "lists": {"type": "id_list", "num_embeddings": 10, "hash": False},
    }
    good = {"label": 1, "city": "1", "tags": ["1"], "rows": 1, "lists": [1]}
    (tmp_path / "train").mkdir()
    pq.write_table(pa.Table.from_pylist([good, good | {column: value}]), tmp_path / "train/a.parquet")
    with pytest.raises(InputError) as error:
        compute_statistics(tmp_path, FieldsConfig.model_validate({"fields": fields}))
    assert message in str(error.value)
