"""Data in an object store: an S3-speaking server on loopback."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import yaml
from moto.server import ThreadedMotoServer

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files import retry
from asymdiffrec.datasets.files.locations import join_location
from asymdiffrec.datasets.prepare.table.dataset import prepare_table
from asymdiffrec.datasets.prepare.table.recipe import Recipe
from asymdiffrec.datasets.reader import EvaluationReader, Position, TrainingReader
from asymdiffrec.datasets.schema import FieldsConfig, Schema
from asymdiffrec.datasets.shards import Shards, added_files, open_shards
from asymdiffrec.datasets.statistics.compute import compute_statistics
from asymdiffrec.datasets.statistics.statistics import Statistics


class Server:
    """An S3 server that can go down and come back with what it holds, at the same address."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def stop(self) -> None:
        self._server.stop()

    def filesystem(self, **options: Any) -> pafs.S3FileSystem:
        return pafs.S3FileSystem(
            access_key="name",
            secret_key="key",
            region="us-east-1",
            scheme="http",
            endpoint_override=f"127.0.0.1:{self.port}",
            **options,
        )

    def uri(self, path: str) -> str:
        return f"s3://name:key@{path}?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def server(clicks: Path) -> Iterator[Server]:
    """Holds the data set `clicks` as bucket/clicks."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # no credentials are looked for in the network
        server = Server()
        store = server.filesystem(allow_bucket_creation=True)
        store.create_dir("bucket")
        pafs.copy_files(str(clicks), "bucket/clicks", pafs.LocalFileSystem(), store)
        yield server
        server.stop()


@pytest.fixture(scope="module")
def config(clicks: Path) -> FieldsConfig:
    job = yaml.safe_load((clicks / "job.yaml").read_text())
    return FieldsConfig.model_validate({section: job[section] for section in ("data", "fields")})


@pytest.fixture(scope="module")
def schema(clicks: Path, config: FieldsConfig) -> Schema:
    return config.to_schema(Statistics.model_validate(yaml.safe_load((clicks / "statistics.yaml").read_text())))


@pytest.fixture
def shards(server: Server) -> Shards:
    """The training split, read through a client that leaves trying again to us."""
    once = pafs.AwsStandardS3RetryStrategy(max_attempts=1)
    return replace(open_shards(server.uri("bucket/clicks/train")), filesystem=server.filesystem(retry_strategy=once))


def samples(schema: Schema, location: str) -> Iterator[Any]:
    """Batches of the training split in the order of training, and of the test split as evaluation reads it."""
    training = TrainingReader(schema, open_shards(join_location(location, "train")), seed=3, batch_size=256)
    yield from itertools.islice(training.batches(Position(0, 15)), 6)
    yield from EvaluationReader(schema, open_shards(join_location(location, "test")), 200).batches()


def test_samples_are_the_same_wherever_they_are(server: Server, clicks: Path, schema: Schema) -> None:
    local = list(samples(schema, str(clicks)))
    assert len(local) > 6
    for location in (f"file://{clicks}", server.uri("bucket/clicks")):
        for batch, expected in zip(samples(schema, location), local, strict=True):
            assert batch.ids.values().tolist() == expected.ids.values().tolist()
            assert batch.ids.lengths().tolist() == expected.ids.lengths().tolist()
            for part in ("numeric", "missing", "label", "weight", "user", "sample_index"):
                np.testing.assert_array_equal(getattr(batch, part), getattr(expected, part))


def test_the_same_is_learned_wherever_the_data_are(server: Server, clicks: Path, config: FieldsConfig) -> None:
    assert compute_statistics(server.uri("bucket/clicks"), config) == compute_statistics(clicks, config)


def test_the_same_files_are_known_wherever_they_are(server: Server, clicks: Path) -> None:
    local, remote = open_shards(str(clicks / "train")), server.uri("bucket/clicks/train")
    assert open_shards(remote, local.record).record == local.record
    assert added_files(remote, {}) == list(local.record)


def test_what_is_not_there_is_named_without_its_keys(server: Server) -> None:
    for path in ("bucket/none", "nowhere/none"):
        with pytest.raises(InputError, match=f"s3://{path}: no such file or folder"):
            open_shards(server.uri(path))


def test_a_server_that_is_back_in_time_does_no_harm(
    server: Server, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            server.start()

    monkeypatch.setattr(retry.time, "sleep", sleep)
    server.stop()
    assert shards.read(0, ["label"]).num_rows == shards.sizes[0]
    assert pauses == list(retry.RETRY_DELAYS[:2])


def test_a_server_that_stays_down_is_an_error_with_the_place(
    server: Server, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "RETRY_DELAYS", (0.01, 0.01))
    server.stop()
    try:
        start = time.monotonic()
        with pytest.raises(InputError) as caught:
            shards.read(0, ["label"])
        assert time.monotonic() - start < 10
    finally:
        server.start()
    message = str(caught.value)
    assert message.startswith("bucket/clicks/train/part-00000.parquet, row group 0: cannot be read (tried 3 times: ")
    assert "connect" in message
    assert "\n" not in message


def test_a_file_that_goes_away_is_named(server: Server, shards: Shards) -> None:
    store, name = server.filesystem(), shards.files[0]
    store.copy_file(name, "bucket/kept")
    store.delete_file(name)
    try:
        with pytest.raises(InputError, match=f"{name}, row group 0: cannot be read, the file is gone"):
            shards.read(0, ["label"])
    finally:
        store.copy_file("bucket/kept", name)


@pytest.mark.parametrize("form", ["csv", "parquet", "glob", "gzip"])
def test_a_raw_table_is_prepared_from_a_bucket(server: Server, tmp_path: Path, form: str) -> None:
    number = np.arange(300)
    table = pa.table({"row": number, "word": [f"w{k % 5}" for k in number.tolist()], "label": number % 2})
    store, name = server.filesystem(), {"csv": "a.csv", "gzip": "a.csv.gz"}.get(form, "a.parquet")
    folder = f"bucket/raw-{form}"
    store.create_dir(folder)
    with store.open_output_stream(f"{folder}/{name}") as stream:  # compresses what ends in .gz
        pq.write_table(table, stream) if name.endswith("parquet") else pacsv.write_csv(table, stream)
    place = server.uri(f"{folder}/{'*.parquet' if form == 'glob' else name}")
    recipe = Recipe.model_validate({"input": {"files": place}, "fields": {"row": {"type": "id"}, "word": {}}})
    prepare_table(tmp_path / "out", recipe)
    rows = [row for split in ("train", "valid", "test") for row in pq.read_table(tmp_path / "out" / split)["row"]]
    assert sorted(row.as_py() for row in rows) == number.tolist()
    lacking = Recipe.model_validate({"input": {"files": server.uri(f"{folder}/none.csv")}})
    with pytest.raises(InputError, match=r"^s3://bucket/.*none\.csv: no such file") as caught:
        prepare_table(tmp_path / "other", lacking)
    assert "key" not in str(caught.value)
