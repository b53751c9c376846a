"""The optimizers of training: AdamW for the dense part, learning rates, accumulated gradients and clipping.

The optimizers of the tables are in `embeddings.optimizers`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torchrec.optim.keyed import CombinedOptimizer

from asymdiffrec.trainer.job import ScheduleConfig, TrainConfig

ADAMW_MOMENTS = 2
"""Number of values that AdamW keeps for each element of a dense parameter"""


def build_dense_optimizer(parameters: Iterable[torch.nn.Parameter], settings: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW for the dense parameters, with its state at step 0.

    AdamW itself would create its state in its first step. A checkpoint is loaded into existing tensors, so this
    function creates the state.
    """
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    for parameter in parameters:
        moments = (torch.zeros_like(parameter), torch.zeros_like(parameter))
        optimizer.state[parameter] = {"step": torch.tensor(0.0), "exp_avg": moments[0], "exp_avg_sq": moments[1]}
    return optimizer


def learning_rate_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Return the factor on every learning rate in step number `step` (0-based) of `total_steps`; at most 1.

    >>> [learning_rate_factor(ScheduleConfig(warmup_steps=2, decay="linear"), step, 6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    left = 1 - (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps)
    match schedule.decay:
        case "none":
            return 1.0
        case "linear":
            shape = left
        case "cosine":
            shape = (1 - math.cos(math.pi * left)) / 2
    return schedule.end + (1 - schedule.end) * shape


class TrainOptimizer:
    """The optimizer that a train pipeline calls. It updates tables in every step, the dense part in every n-th step.

    Tables are updated in every backward pass, by the gradient of that pass. So accumulation (`train.accumulate`, n
    steps) and clipping (`train.clip_norm`) affect the dense parameters only. Dense gradients are averaged over the
    steps since the last update, then clipped by their common norm; all workers have the same dense gradients. Learning
    rates and updates are functions of the step, so a resumed run continues exactly.

    Learning rates are set by hand because torch's `LambdaLR` counts steps itself, wraps `step` and warns if a step is
    skipped.
    """

    def __init__(self, tables: CombinedOptimizer, dense: torch.optim.Optimizer, settings: TrainConfig) -> None:
        self._tables, self._dense, self._settings = tables, dense, settings
        self._base_rates = [(group, group["lr"]) for optimizer in (tables, dense) for group in optimizer.param_groups]
        self._parameters = [parameter for group in dense.param_groups for parameter in group["params"]]
        if settings.accumulate > 1:
            for parameter in self._parameters:
                # A checkpoint contains the gradients and is loaded into existing tensors, so create them here.
                parameter.grad = torch.zeros_like(parameter)
        self._step = 0

    def begin(self, step: int, total_steps: int) -> None:
        """Call before training step number `step` (0-based) of `total_steps`."""
        self._step = step
        factor = learning_rate_factor(self._settings.schedule, step, total_steps)
        for group, base_rate in self._base_rates:
            group["lr"] = base_rate * factor

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Prepare a backward pass. TorchRec's table optimizer reads its learning rates in this call."""
        self._tables.zero_grad()
        if self._settings.accumulate == 1:
            self._dense.zero_grad(set_to_none=True)
        elif self._step % self._settings.accumulate == 0:
            self._dense.zero_grad(set_to_none=False)

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters after a backward pass. A bad step has no backward pass and contributes no gradient."""
        self._tables.step()
        accumulate = self._settings.accumulate
        if (self._step + 1) % accumulate:
            return
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if accumulate > 1:
            torch._foreach_div_(gradients, accumulate)
        if accumulate > 1 or self._settings.clip_norm is not None:
            max_norm = math.inf if self._settings.clip_norm is None else self._settings.clip_norm
            if not torch.nn.utils.clip_grad_norm_(self._parameters, max_norm):
                return  # every step since the last update was bad
        self._dense.step()
