"""Definitions that all packages share: the base class of configuration sections, errors, and a collective."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class Config(BaseModel):
    """A section of a YAML or JSON document. It is frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InputError(Exception):
    """Wrong input from the user. The message says in one line where the error is, what is wrong and what is allowed.

    A command that raises this error exits with status 2, without a traceback.
    """


class OtherRankError(RuntimeError):
    """Error that a rank raises when another rank failed, instead of waiting for the failed rank.

    The failed rank raises the cause.
    """


def gather_all(value: T, group: Any = None) -> list[T]:
    """Return the values of all ranks, in rank order, on every rank; a collective call.

    `value` must be picklable. `group` is a torch process group; None: the default process group.
    """
    import torch.distributed as dist  # imported here, so that commands without workers do not load torch

    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values
