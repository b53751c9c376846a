"""What requests ask for, read from the bytes of their bodies, and the bytes of the answers: JSON or Arrow."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from asymdiffrec.serving.engine import Answer, Engine
from asymdiffrec.serving.request_schema import Query, RequestSchema, SampleError

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"


class RequestError(Exception):
    """A request that is not answered: the HTTP status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ScoreRequest(ABC):
    """Samples of a request that are to be scored, and the answer to it."""

    samples: Sequence[Any] | Mapping[str, Any] | pa.Table
    before = False
    """Whether scores without the denoiser are asked for, too"""

    @abstractmethod
    def answer(self, engine: Engine, answer: Answer) -> bytes: ...

    def __len__(self) -> int:
        return length(self.samples)

    def table(self, request_schema: RequestSchema) -> pa.Table:
        return (
            request_schema.checked(self.samples)
            if isinstance(self.samples, pa.Table)
            else request_schema.table(self.samples)
        )


class JsonScoreRequest(ScoreRequest):
    """{"samples": ..., "before": false, "missing": true}"""

    def __init__(self, body: bytes) -> None:
        document = _object(body, {"samples", "before", "missing"}, '{"samples": [{"COLUMN": VALUE}]}')
        self.samples = _samples(document, "samples", '{"samples": [{"COLUMN": VALUE}]}')
        self.before, self.missing = _flag(document, "before", False), _flag(document, "missing", True)

    def answer(self, engine: Engine, answer: Answer) -> bytes:
        told: dict[str, Any] = {"version": engine.version, "scores": answer.scores}
        if self.missing:
            names = np.array(engine.schema.names, dtype=object)
            told["missing"] = [names[row].tolist() for row in answer.missing]
        if answer.before is not None and self.before:
            told["before"] = answer.before
        return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)


class ArrowScoreRequest(ScoreRequest):
    """A table with the columns of samples; the answer is one with `score`."""

    def __init__(self, body: bytes) -> None:
        self.samples = _read(body)

    def answer(self, engine: Engine, answer: Answer) -> bytes:
        return _written({"score": answer.scores}, engine)


class RankRequest(ABC):
    """Candidates of a request that are to be ranked, and the answer to it."""

    @abstractmethod
    def __len__(self) -> int:
        """Candidates of all queries, each counting as one at least"""

    @abstractmethod
    def queries(self, request_schema: RequestSchema) -> list[Query]: ...

    @abstractmethod
    def answer(self, engine: Engine, answers: Sequence[Answer]) -> bytes: ...


class JsonRankRequest(RankRequest):
    """{"shared": {...}, "candidates": ..., "top": 10}, or a list of such: then the answer is a list, too."""

    EXPECTED = '{"shared": {"COLUMN": VALUE}, "candidates": [{"COLUMN": VALUE}], "top": 10}'

    def __init__(self, body: bytes) -> None:
        found = _loaded(body)
        self.is_batch = isinstance(found, list)
        documents = found if isinstance(found, list) else [found]
        self.documents = [_known(one, {"shared", "candidates", "top"}, self.EXPECTED) for one in documents]
        self.candidates = [_samples(one, "candidates", self.EXPECTED) for one in self.documents]
        self.tops = [_top(document.get("top")) for document in self.documents]

    def __len__(self) -> int:
        return sum(max(1, length(own)) for own in self.candidates)

    def queries(self, request_schema: RequestSchema) -> list[Query]:
        found = []
        for place, (document, candidates) in enumerate(zip(self.documents, self.candidates, strict=True)):
            try:
                found.append(request_schema.query(document.get("shared", {}), candidates))
            except SampleError as error:
                raise SampleError(f"[{place}].{error}" if self.is_batch else str(error)) from error
        return found

    def answer(self, engine: Engine, answers: Sequence[Answer]) -> bytes:
        told = []
        for top, answer in zip(self.tops, answers, strict=True):
            best = ranked(answer.scores, top)
            told.append({"version": engine.version, "candidates": best, "scores": answer.scores[best]})
        return orjson.dumps(told if self.is_batch else told[0], option=orjson.OPT_SERIALIZE_NUMPY)


class ArrowRankRequest(RankRequest):
    """A table of candidates, with what they share and `top` as JSON in the schema's metadata; the answer is one with
    `candidate` and `score`."""

    def __init__(self, body: bytes) -> None:
        self.table = _read(body)
        metadata = self.table.schema.metadata or {}
        self.shared = _loaded(metadata.get(b"shared", b"{}"))
        self.top = _top(_loaded(metadata.get(b"top", b"null")))

    def __len__(self) -> int:
        return len(self.table)

    def queries(self, request_schema: RequestSchema) -> list[Query]:
        return [request_schema.checked_query(self.shared, self.table)]

    def answer(self, engine: Engine, answers: Sequence[Answer]) -> bytes:
        (answer,) = answers
        best = ranked(answer.scores, self.top)
        return _written({"candidate": best, "score": answer.scores[best]}, engine)


def ranked(scores: np.ndarray, top: int | None) -> np.ndarray:
    """The places of the `top` highest scores, or of all, highest first; of equal ones the first candidate is first."""
    return np.argsort(-scores, kind="stable")[:top]


def length(samples: Sequence[Any] | Mapping[str, Any] | pa.Table) -> int:
    if not isinstance(samples, Mapping):
        return len(samples)
    first: Any = next(iter(samples.values()), [])
    return len(first) if isinstance(first, list) else 0


def _top(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise RequestError(400, f"top: found {value!r}; a number of candidates is expected")
    return value


def _flag(document: Mapping[str, Any], key: str, default: bool) -> bool:
    value = document.get(key, default)
    if type(value) is not bool:
        raise RequestError(400, f"{key}: found {value!r}; true or false is expected")
    return value


def _object(body: bytes, keys: set[str], expected: str) -> dict[str, Any]:
    return _known(_loaded(body), keys, expected)


def _loaded(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"not JSON: {error}") from error


def _known(document: Any, keys: set[str], expected: str) -> dict[str, Any]:
    if type(document) is not dict:
        raise RequestError(400, f"found no object; {expected} is expected")
    if unknown := document.keys() - keys:
        raise RequestError(400, f"{min(unknown)}: no such key; there are {', '.join(sorted(keys))}")
    return document


def _samples(document: Mapping[str, Any], key: str, expected: str) -> list[Any] | dict[str, Any]:
    """A list of objects, or an object of lists"""
    found = document.get(key)
    if not isinstance(found, list | dict):
        raise RequestError(400, f"found no {key}; {expected} is expected")
    return found


def _read(body: bytes) -> pa.Table:
    try:
        compressed = any(map(_is_compressed, pa.ipc.MessageReader.open_stream(body)))
        table = None if compressed else pa.ipc.open_stream(body).read_all()
        if table is not None:
            table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, LookupError, struct.error) as error:
        raise RequestError(400, f"not an Arrow stream: {' '.join(str(error).split())[:200]}") from error
    if table is None:
        raise RequestError(415, "a compressed Arrow stream; send it as it is")
    return table


RECORDS, DICTIONARY = 3, 2
"""Kinds of messages that hold values"""


def _is_compressed(message: pa.ipc.Message) -> bool:
    """Whether a message's values are: then nobody knows how large they are before they are read.

    Of the format's flatbuffers (Message.fbs): fields are at offsets that a table's own table of them tells.
    """
    data = memoryview(message.metadata)

    def place(table: int, field: int) -> int:
        fields = table - struct.unpack_from("<i", data, table)[0]
        size = struct.unpack_from("<H", data, fields)[0]
        offset = struct.unpack_from("<H", data, fields + 4 + 2 * field)[0] if 4 + 2 * field < size else 0
        return table + int(offset) if offset else 0

    def follow(at: int) -> int:
        return at + int(struct.unpack_from("<I", data, at)[0])

    root = follow(0)
    kind = data[place(root, 1)] if place(root, 1) else 0
    if kind not in (RECORDS, DICTIONARY):
        return False
    batch = follow(place(root, 2))
    if kind == DICTIONARY:
        batch = follow(place(batch, 1))
    return bool(place(batch, 3))


def _written(columns: Mapping[str, np.ndarray], engine: Engine) -> bytes:
    return stream_of(pa.table(dict(columns)).replace_schema_metadata({"version": engine.version}))


def stream_of(table: pa.Table) -> bytes:
    """The table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
