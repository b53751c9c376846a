"""Errors of requests, which the client gets as a response."""

from __future__ import annotations


class RequestError(Exception):
    """The server refuses a request: the HTTP status and the reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class SampleError(ValueError):
    """A sample in a request is wrong; the message says where, what was found and what is allowed."""
