"""MovieLens as a data set: features of earlier ratings, splits without leakage, and reading of the original files."""

from __future__ import annotations

import hashlib
import urllib.error
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.movielens import files
from asymdiffrec.datasets.prepare.movielens.dataset import _random_split, _time_split, make_samples, prepare_movielens
from asymdiffrec.datasets.prepare.movielens.files import Ratings, read_ratings

USERS, ITEMS = 4, 6


def make_ratings(events: list[tuple[int, int, int, int]]) -> Ratings:
    """Return ratings from (user, item, rating, time), with invented attributes of films and users."""
    user, item, rating, time = np.array(sorted(events, key=lambda event: event[3])).T
    users = pa.table(
        {
            "user_id": np.arange(USERS),
            "age": [7, 18, 49, 73],
            "gender": list("MFMF"),
            "occupation": ["none"] * USERS,
            "zip": ["55105", "V3N4P", "06405-1", "12"],
        }
    )
    genres = pa.array([["Drama"]] * (ITEMS - 1) + [[]], pa.list_(pa.string()))
    items = pa.table({"item_id": np.arange(ITEMS), "year": np.full(ITEMS, 1995.0), "genres": genres})
    return Ratings(user, item, rating, time, users, items)


EVENTS = st.lists(
    st.tuples(st.integers(0, USERS - 1), st.integers(0, ITEMS - 1), st.integers(1, 5), st.integers(0, 12)),
    min_size=1,
    max_size=60,
)


@given(EVENTS, st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_features_of_earlier_ratings_follow_their_definition(
    events: list[tuple[int, int, int, int]], bits: int
) -> None:
    ratings = make_ratings(events)
    in_past = np.random.default_rng(bits).random(len(events)) < 0.7
    for row, sample in enumerate(make_samples(ratings, in_past).to_pylist()):
        before = in_past & (ratings.time < ratings.time[row])
        liked = ratings.rating >= 4
        for name, ids in (("user", ratings.user), ("item", ratings.item)):
            same = before & (ids == ids[row])
            assert sample[f"{name}_count"] == pytest.approx(np.log1p(same.sum()))
            rate = (same & liked).sum() + 2
            assert sample[f"{name}_like_rate"] == (pytest.approx(rate / (same.sum() + 4)) if same.any() else None)
        history = ratings.item[before & liked & (ratings.user == ratings.user[row])]
        assert sample["history"] == history[-20:].tolist()
        assert sample["label"] == int(ratings.rating[row] >= 4)


def flip_likes(ratings: Ratings, chosen: np.ndarray) -> Ratings:
    """Return the ratings with the opposite label where `chosen` [R] bool is True."""
    flipped = np.where(chosen, 6 - ratings.rating + (ratings.rating == 3), ratings.rating)
    return Ratings(ratings.user, ratings.item, flipped, ratings.time, ratings.users, ratings.items)


@given(EVENTS, st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_with_a_random_split_no_feature_depends_on_a_validation_or_test_rating(
    events: list[tuple[int, int, int, int]], seed: int
) -> None:
    ratings = make_ratings(events * 2)
    training = _random_split(len(ratings.time), seed) == 0
    flipped = flip_likes(ratings, ~training)
    before, after = (make_samples(each, training).drop(["label"]) for each in (ratings, flipped))
    assert before == after


@given(EVENTS, st.integers(0, 12))
@settings(deadline=None)
def test_no_feature_depends_on_ratings_at_the_same_time_or_later(
    events: list[tuple[int, int, int, int]], now: int
) -> None:
    ratings = make_ratings(events)
    in_past = np.full(len(events), True)
    until = pa.array(ratings.time <= now)
    changed = flip_likes(ratings, ratings.time >= now)
    before, after = (make_samples(each, in_past).drop(["label"]).filter(until) for each in (ratings, changed))
    assert before == after


@given(st.lists(st.integers(0, 30), min_size=10, max_size=100))
def test_a_split_by_time_keeps_ratings_of_the_same_second_together(times: list[int]) -> None:
    time = np.sort(times)
    split_index = _time_split(time)
    assert (np.diff(split_index) >= 0).all()
    assert len(set(zip(time.tolist(), split_index.tolist(), strict=True))) == len(set(times))


def test_attributes_come_from_the_user_the_film_and_the_time() -> None:
    monday = 345_600  # 1970-01-05 00:00 UTC
    events = [(user, 5 - user, 4, monday + 86_400 * user + 3600 * 5) for user in range(USERS)]
    table = make_samples(make_ratings(events), np.full(USERS, True))
    assert table["age"].to_pylist() == [1, 18, 45, 56]
    assert table["zip_prefix"].to_pylist() == ["551", "V3N", "064", "12"]
    assert table["gender"].to_pylist() == list("MFMF")
    assert table["genres"].to_pylist() == [[], ["Drama"], ["Drama"], ["Drama"]]
    assert table["weekday"].to_pylist() == [0, 1, 2, 3]
    assert table["hour"].to_pylist() == [5] * USERS


@pytest.fixture
def folder_1m(tmp_path: Path) -> Path:
    """Write a small folder in the format of MovieLens 1M."""
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    rng = np.random.default_rng(0)
    users = [f"{user}::{'MF'[user % 2]}::25::{user % 21}::{48067 + user}" for user in range(1, 21)]
    films = [
        "1::Toy Story (1995)::Animation|Children's|Comedy",
        '2::"Café" (1972) (II)::Drama',
        "3952::Nameless::Drama",
    ]
    ratings = [
        f"{rng.integers(1, 21)}::{rng.choice([1, 2, 3952])}::{rng.integers(1, 6)}::{978300000 + rng.integers(10**6)}"
        for _ in range(300)
    ]
    for name, lines in (("users.dat", users), ("movies.dat", films), ("ratings.dat", ratings)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="latin1")
    return folder


def zip_folder(folder: Path) -> Path:
    """Write a zip file with the files of a folder."""
    path = folder.parent / "archive.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"ml/{file.name}")
    return path


@pytest.mark.parametrize("split", ["random", "time"])
def test_a_folder_and_a_zip_file_give_the_same_data_set(folder_1m: Path, tmp_path: Path, split: Any) -> None:
    profiles = [
        prepare_movielens(tmp_path / name, size="1m", input=source, split=split)
        for name, source in (("a", folder_1m), ("b", zip_folder(folder_1m)))
    ]
    assert profiles[0] == profiles[1]
    assert profiles[0]["rows"]["train"] == pytest.approx(240, abs=1)
    table = pq.read_table(tmp_path / "a" / "train")
    assert table == pq.read_table(tmp_path / "b" / "train")
    films = {row["item_id"]: (row["release_year"], row["genres"]) for row in table.to_pylist()}
    assert films[1] == (1995, ["Animation", "Children's", "Comedy"])
    assert films[2] == (1972, ["Drama"])
    assert films[3952] == (None, ["Drama"])


def test_training_rows_do_not_depend_on_validation_and_test_labels(folder_1m: Path, tmp_path: Path) -> None:
    """Flipping validation and test ratings changes no training row; with a random split it changes only labels."""
    for split in ("random", "time"):
        prepare_movielens(tmp_path / split, size="1m", input=folder_1m, split=split)
        held_out = {
            (row["user_id"], row["item_id"], row["timestamp"])
            for name in ("valid", "test")
            for row in pq.read_table(tmp_path / split / name).to_pylist()
        }
        path = folder_1m / "ratings.dat"
        original = path.read_text()
        rows = [[int(value) for value in line.split("::")] for line in original.splitlines()]
        flipped = [[u, i, (1 if r >= 4 else 5) if (u, i, t) in held_out else r, t] for u, i, r, t in rows]
        path.write_text("".join("::".join(map(str, row)) + "\n" for row in flipped))
        prepare_movielens(tmp_path / f"{split}-flipped", size="1m", input=folder_1m, split=split)
        path.write_text(original)
        for name in ("train", "valid", "test"):
            before, after = (pq.read_table(tmp_path / out / name) for out in (split, f"{split}-flipped"))
            assert (before["label"] == after["label"]) == (name == "train")
            same = before.drop(["label"]) == after.drop(["label"])
            assert same == (split == "random" or name == "train"), (split, name)


def test_the_download_is_verified_by_its_checksum(
    folder_1m: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zip_folder(folder_1m)
    checksum = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(files.ARCHIVES, "1m", (archive.as_uri(), checksum))
    assert prepare_movielens(tmp_path / "good", size="1m")["rows"]["test"] == 30
    monkeypatch.setitem(files.ARCHIVES, "1m", (archive.as_uri(), checksum[::-1]))
    with pytest.raises(InputError, match="MD5 checksum"):
        prepare_movielens(tmp_path / "bad", size="1m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive.zip", "good", "ml-1m"]


def test_the_error_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(InputError, match=r"ml-100k\.zip: cannot be downloaded .* use --input"):
        prepare_movielens(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("users.dat", None, "no readable file users.dat"),
        ("users.dat", b"1::M::25\n", "users.dat: does not have the format of MovieLens"),
        ("users.dat", b"1::M::25::3::48067\n", "the ratings contain user"),
        ("ratings.dat", b"1::1::many::978300019\n", "ratings.dat: does not have the format of MovieLens"),
    ],
)
def test_a_folder_that_is_not_movielens_is_an_error(
    folder_1m: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    (folder_1m / name).unlink()
    if content is not None:
        (folder_1m / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        prepare_movielens(tmp_path / "out", size="1m", input=folder_1m)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"no zip file"])
def test_an_input_that_is_neither_folder_nor_zip_file_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "input"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="specify the folder or the zip file of MovieLens 100k"):
        prepare_movielens(tmp_path / "out", input=path)


def test_100k_from_the_original_files(data_folder: Path, tmp_path: Path) -> None:
    source = data_folder / "movielens-100k"
    profile = prepare_movielens(tmp_path / "out", input=source)
    assert profile["rows"] == {"train": 80_000, "valid": 10_000, "test": 10_000}
    assert profile["label_rate"]["train"] == pytest.approx(0.554, abs=0.005)
    assert profile["fields"]["user_id"]["cardinality"] == 943
    assert profile["fields"]["occupation"]["cardinality"] == 21
    assert profile["fields"]["genres"]["cardinality"] == 18
    ratings = read_ratings("100k", source)
    assert ratings.items["year"].null_count == 1
    assert sum(not genres for genres in ratings.items["genres"].to_pylist()) == 2
    assert ratings.items["genres"][0].as_py() == ["Animation", "Children's", "Comedy"]
