"""The base that every room shares: configuration sections, errors, and one collective."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class Config(BaseModel):
    """A section of a YAML or JSON document: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InputError(Exception):
    """Wrong input from the user: the message says in one line where, what is wrong and what is allowed.

    A command that raises it exits with status 2, without a traceback.
    """


class OtherRankError(RuntimeError):
    """Another rank failed; raised on this rank so that it does not wait for it. That rank raises the error itself."""


def gather_all(value: T, group: Any = None) -> list[T]:
    """Return the values of all ranks, in rank order, on every rank; a collective call.

    `value` can be anything that pickles. `group` is a torch process group, the default one if None.
    """
    import torch.distributed as dist  # imported here, so that commands without workers do not load torch

    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values
