"""When parameters change, and by how much: learning rates, accumulated gradients, clipping."""

from __future__ import annotations

import math

import torch
from torchrec.optim.keyed import CombinedOptimizer

from asymdiffrec.trainer.job import ScheduleConfig, TrainConfig


def rate(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The factor on every learning rate in the step that follows `step` ones, of `steps` in all; 1 at the most."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    left = 1 - (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    match schedule.decay:
        case "none":
            return 1.0
        case "linear":
            shape = left
        case "cosine":
            shape = (1 - math.cos(math.pi * left)) / 2
    return schedule.end + (1 - schedule.end) * shape


class Update:
    """What a train pipeline drives as its optimizer: that of the tables in every step, the dense one in every
    `accumulate`-th.

    Tables change during every backward pass, by its gradient alone, so accumulation and clipping concern the dense
    parameters. Their gradients are averaged over the steps since the last change, then clipped by their norm over all
    of them; every worker has the same ones. Both are functions of the step, so that a resumed run goes on exactly.
    """

    def __init__(self, tables: CombinedOptimizer, dense: torch.optim.Optimizer, settings: TrainConfig) -> None:
        self._tables, self._dense, self._settings = tables, dense, settings
        self._rates = [(group, group["lr"]) for one in (tables, dense) for group in one.param_groups]
        self._parameters = [parameter for group in dense.param_groups for parameter in group["params"]]
        if settings.accumulate > 1:
            for parameter in self._parameters:
                # From the start: a checkpoint, which holds them, is loaded into live tensors.
                parameter.grad = torch.zeros_like(parameter)
        self._step = 0

    def begin(self, step: int, steps: int) -> None:
        """The step after `step` ones begins, of `steps` in all."""
        self._step = step
        factor = rate(self._settings.schedule, step, steps)
        for group, own in self._rates:
            group["lr"] = own * factor

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Before a backward pass; tables take their learning rates here."""
        self._tables.zero_grad()
        if self._settings.accumulate == 1:
            self._dense.zero_grad(set_to_none=True)
        elif self._step % self._settings.accumulate == 0:
            self._dense.zero_grad(set_to_none=False)

    @torch.no_grad()
    def step(self) -> None:
        """After a backward pass, or after none where the loss was lost: then it changes nothing."""
        self._tables.step()
        together = self._settings.accumulate
        if (self._step + 1) % together:
            return
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if together > 1:
            torch._foreach_div_(gradients, together)
        if together > 1 or self._settings.clip_norm is not None:
            limit = math.inf if self._settings.clip_norm is None else self._settings.clip_norm
            if not torch.nn.utils.clip_grad_norm_(self._parameters, limit):
                return  # every loss since the last change was lost
        self._dense.step()
