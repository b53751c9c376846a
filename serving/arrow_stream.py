"""Read and write Arrow IPC streams, a format of request and response bodies."""

from __future__ import annotations

import struct

import pyarrow as pa

from asymdiffrec.serving.errors import RequestError

# Field numbers in the flatbuffer tables of Arrow's Message.fbs.
_MESSAGE_HEADER = 2
_DICTIONARY_BATCH_DATA = 1
_RECORD_BATCH_COMPRESSION = 3


def read_stream(body: bytes) -> pa.Table:
    """Return the table of an Arrow stream.

    Raises RequestError if the stream is malformed (400) or compressed (415). The function refuses a
    compressed stream without decompressing it, because a few compressed bytes can decompress to gigabytes.
    """
    try:
        is_compressed = any(map(_is_compressed, pa.ipc.MessageReader.open_stream(body)))
        table = None if is_compressed else pa.ipc.open_stream(body).read_all()
        if table is not None:
            table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, LookupError, struct.error) as error:
        raise RequestError(400, f"the body is not an Arrow stream: {' '.join(str(error).split())[:200]}") from error
    if table is None:
        raise RequestError(415, "the Arrow stream is compressed; send it uncompressed")
    return table


def write_stream(table: pa.Table) -> bytes:
    """Return a table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _is_compressed(message: pa.ipc.Message) -> bool:
    """Return whether the buffers of a message are compressed.

    This function decodes the flatbuffer itself: pyarrow has no API for the field, and the flatbuffers package would add
    a dependency and generated code for one field. Raises struct.error or LookupError if the message is malformed.
    """
    if message.type not in ("record batch", "dictionary"):
        return False
    data = memoryview(message.metadata)

    def follow(offset: int) -> int:
        """Read the reference at position `offset`, and return the position to which the reference points."""
        return offset + int(struct.unpack_from("<I", data, offset)[0])

    def field(table: int, number: int) -> int:
        """Return the position of a field of a flatbuffer table, or 0 if the table does not have the field.

        table: position of the table. Its vtable holds the offset of each field from this position.
        number: number of the field.
        """
        vtable = table - struct.unpack_from("<i", data, table)[0]
        size = struct.unpack_from("<H", data, vtable)[0]
        entry = 4 + 2 * number
        offset = struct.unpack_from("<H", data, vtable + entry)[0] if entry < size else 0
        return table + int(offset) if offset else 0

    batch = follow(field(follow(0), _MESSAGE_HEADER))
    if message.type == "dictionary":
        batch = follow(field(batch, _DICTIONARY_BATCH_DATA))
    return bool(field(batch, _RECORD_BATCH_COMPRESSION))
