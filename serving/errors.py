"""Errors of requests. The server returns them to the client."""

from __future__ import annotations


class RequestError(Exception):
    """Error of a refused request, with the HTTP status and the reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class SampleError(ValueError):
    """A wrong sample in a request. The message says where the error is, what was found and what is allowed."""
