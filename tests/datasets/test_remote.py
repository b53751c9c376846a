"""Data in an object store; the tests start an S3 server on the loopback interface."""

from __future__ import annotations

import itertools
import logging
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
    """An S3 server that can stop and start again at the same address with the same content."""

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
    """Start a server with the dataset `clicks` at bucket/clicks."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # do not search the network for credentials
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
    """The training split, opened with an S3 client that does not retry, so that the tests see our retries."""
    once = pafs.AwsStandardS3RetryStrategy(max_attempts=1)
    return replace(open_shards(server.uri("bucket/clicks/train")), filesystem=server.filesystem(retry_strategy=once))


def samples(schema: Schema, location: str) -> Iterator[Any]:
    """Yield some batches of the training reader, then the batches of the evaluation reader on the test split."""
    training = TrainingReader(schema, open_shards(join_location(location, "train")), seed=3, batch_size=256)
    yield from itertools.islice(training.batches(Position(0, 15)), 6)
    yield from EvaluationReader(schema, open_shards(join_location(location, "test")), 200).batches()


def test_samples_are_the_same_from_a_path_and_a_uri(server: Server, clicks: Path, schema: Schema) -> None:
    local = list(samples(schema, str(clicks)))
    assert len(local) > 6
    for location in (f"file://{clicks}", server.uri("bucket/clicks")):
        for batch, expected in zip(samples(schema, location), local, strict=True):
            assert batch.ids.values().tolist() == expected.ids.values().tolist()
            assert batch.ids.lengths().tolist() == expected.ids.lengths().tolist()
            for part in ("numeric", "missing", "label", "weight", "user", "sample_index"):
                np.testing.assert_array_equal(getattr(batch, part), getattr(expected, part))


def test_statistics_are_the_same_from_a_path_and_a_uri(server: Server, clicks: Path, config: FieldsConfig) -> None:
    assert compute_statistics(server.uri("bucket/clicks"), config) == compute_statistics(clicks, config)


def test_a_record_made_from_a_path_opens_a_uri(server: Server, clicks: Path) -> None:
    local, remote = open_shards(str(clicks / "train")), server.uri("bucket/clicks/train")
    assert open_shards(remote, local.record).record == local.record
    assert added_files(remote, {}) == list(local.record)


def test_the_error_for_a_missing_location_has_no_secret(server: Server) -> None:
    for path in ("bucket/none", "nowhere/none"):
        with pytest.raises(InputError, match=f"s3://{path}: no such file or folder"):
            open_shards(server.uri(path))


def test_a_server_that_comes_back_during_the_retries_does_no_harm(
    server: Server, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays = []

    def sleep(seconds: float) -> None:
        delays.append(seconds)
        if len(delays) == 2:
            server.start()

    monkeypatch.setattr(retry.time, "sleep", sleep)
    server.stop()
    assert shards.read(0, ["label"]).num_rows == shards.sizes[0]
    assert delays == list(retry.RETRY_DELAYS[:2])


def test_a_server_that_stays_down_is_an_error_with_the_location(
    server: Server, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", delays.append)
    server.stop()
    try:
        with pytest.raises(InputError) as caught:
            shards.read(0, ["label"])
    finally:
        server.start()
    assert delays == list(retry.RETRY_DELAYS)
    message = str(caught.value)
    assert message.startswith("bucket/clicks/train/part-00000.parquet, row group 0: cannot be read (tried 4 times: ")
    assert "connect" in message
    assert "\n" not in message


def test_the_error_names_a_file_that_was_deleted(server: Server, shards: Shards) -> None:
    store, name = server.filesystem(), shards.files[0]
    store.copy_file(name, "bucket/copy")
    store.delete_file(name)
    try:
        with pytest.raises(InputError, match=f"{name}, row group 0: cannot be read, the file no longer exists"):
            shards.read(0, ["label"])
    finally:
        store.copy_file("bucket/copy", name)


@pytest.mark.parametrize("kind", ["csv", "parquet", "glob", "gzip"])
def test_a_raw_table_is_prepared_from_a_bucket(server: Server, tmp_path: Path, kind: str) -> None:
    number = np.arange(300)
    table = pa.table({"row": number, "word": [f"w{k % 5}" for k in number.tolist()], "label": number % 2})
    store, name = server.filesystem(), {"csv": "a.csv", "gzip": "a.csv.gz"}.get(kind, "a.parquet")
    folder = f"bucket/raw-{kind}"
    store.create_dir(folder)
    with store.open_output_stream(f"{folder}/{name}") as stream:  # it compresses a file whose name ends in .gz
        pq.write_table(table, stream) if name.endswith("parquet") else pacsv.write_csv(table, stream)
    location = server.uri(f"{folder}/{'*.parquet' if kind == 'glob' else name}")
    recipe = Recipe.model_validate({"input": {"files": location}, "fields": {"row": {"type": "id"}, "word": {}}})
    prepare_table(tmp_path / "out", recipe)
    rows = [row for split in ("train", "valid", "test") for row in pq.read_table(tmp_path / "out" / split)["row"]]
    assert sorted(row.as_py() for row in rows) == number.tolist()
    missing = Recipe.model_validate({"input": {"files": server.uri(f"{folder}/none.csv")}})
    with pytest.raises(InputError, match=r"^s3://bucket/.*none\.csv: no such file") as caught:
        prepare_table(tmp_path / "other", missing)
    assert "key" not in str(caught.value)
