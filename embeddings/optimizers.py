"""Optimizers of tables: fused into FBGEMM's backward pass; replicated tables follow the same update rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import torch
import torchrec.optim as fused
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from pydantic import Discriminator, Field, Tag
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

from asymdiffrec.base import Config, InputError
from asymdiffrec.embeddings.torchrec_compat import fuse_optimizer, is_replicated_table, parameters_updated_by_step


class SgdConfig(Config):
    """Stochastic gradient descent: `tables.optimizer: {name: sgd}`."""

    name: Literal["sgd"]
    learning_rate: float = Field(0.1, gt=0, description="factor on the gradient")


class AdagradConfig(Config):
    """Adagrad with one sum of squares for each weight."""

    name: Literal["adagrad"] = "adagrad"
    learning_rate: float = Field(0.02, gt=0, description="factor on the scaled gradient")
    eps: float = Field(1e-8, gt=0, description="added to the root of the summed squares")


class RowwiseAdagradConfig(Config):
    """Adagrad with one sum for each row. Each step adds the mean of the row's squared gradients."""

    name: Literal["rowwise_adagrad"]
    learning_rate: float = Field(0.02, gt=0, description="factor on the scaled gradient")
    eps: float = Field(1e-8, gt=0, description="added to the root of the summed mean squares")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty on the rows that a batch uses")


class AdamConfig(Config):
    """Adam whose moments decay only for rows that a batch uses."""

    name: Literal["adam"]
    learning_rate: float = Field(1e-3, gt=0, description="factor on the scaled gradient")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the mean gradient")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the mean squared gradient")
    eps: float = Field(1e-8, gt=0, description="added to the root of the mean square")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of the rows that a batch uses")


def _name(value: Any) -> str:
    """Return the optimizer's name, or adagrad if an override of a single value leaves out the name."""
    return value.get("name", "adagrad") if isinstance(value, dict) else getattr(value, "name", "")


OptimizerConfig = Annotated[
    Annotated[SgdConfig, Tag("sgd")]
    | Annotated[AdagradConfig, Tag("adagrad")]
    | Annotated[RowwiseAdagradConfig, Tag("rowwise_adagrad")]
    | Annotated[AdamConfig, Tag("adam")],
    Discriminator(_name),
]

FUSED: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": fused.SGD,
    "adagrad": fused.Adagrad,
    "rowwise_adagrad": fused.RowWiseAdagrad,
    "adam": fused.Adam,
}

STATES: dict[str, tuple[str, ...]] = {
    "sgd": (),
    "adagrad": ("sum",),
    "rowwise_adagrad": ("sum",),
    "adam": ("exp_avg", "exp_avg_sq"),
}
"""Names of the state tensors that each optimizer keeps for a table, in FBGEMM's order of moments."""


def check_device(config: OptimizerConfig, device: str) -> None:
    """Raise InputError if FBGEMM cannot update tables with this optimizer on the device type."""
    if config.name == "adam" and device == "cpu":
        raise InputError("tables.optimizer.name: adam has no fused kernel on cpu; use sgd, adagrad or rowwise_adagrad")
    if config.name == "rowwise_adagrad" and config.weight_decay and device == "cpu":
        raise InputError(
            f"tables.optimizer.weight_decay: {config.weight_decay}, but FBGEMM ignores it on cpu; set it to 0"
        )


def update_in_backward(config: OptimizerConfig, weights: Iterable[torch.nn.Parameter]) -> None:
    """Mark unsharded table weights, so that sharding fuses the optimizer and the planner counts its memory."""
    settings: dict[str, Any] = config.model_dump(exclude={"name"})
    if isinstance(config, RowwiseAdagradConfig):
        settings["weight_decay_mode"] = WeightDecayMode.L2
    fuse_optimizer(FUSED[config.name], weights, settings)


class ReplicatedOptimizer(torch.optim.Optimizer):
    """FBGEMM's update rules for replicated tables, so that the result of training does not depend on the plan.

    As in FBGEMM, a row without a gradient keeps its weights and its moments; torch's dense optimizers would decay
    both. The state exists from the start, so a checkpoint can be loaded before the first step.
    """

    def __init__(self, weights: Iterable[torch.Tensor], config: OptimizerConfig) -> None:
        super().__init__(weights, {"lr": config.learning_rate})
        self.config = config
        self.steps = 0
        for weight in self.param_groups[0]["params"]:
            shape = weight.shape[:1] if isinstance(config, RowwiseAdagradConfig) else weight.shape
            zeros = {name: weight.new_zeros(shape, dtype=torch.float32) for name in STATES[config.name]}
            self.state[weight] = zeros

    def set_optimizer_step(self, step: int) -> None:
        """Set the number of steps taken so far. The method has the same name in FBGEMM's modules."""
        self.steps = step

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the rows that have a gradient, and their state."""
        self.steps += 1
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    rows = weight.grad.any(dim=1).nonzero().squeeze(1)
                    before = weight[rows].float()
                    change = self._change(self.state[weight], rows, before, weight.grad[rows].float())
                    weight[rows] = (before - group["lr"] * change).to(weight.dtype)

    def _change(
        self, state: dict[str, torch.Tensor], rows: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor
    ) -> torch.Tensor:
        """Update the state of `rows` [R] and return the change [R, D] of their weights.

        weight and grad: the weights and the gradients of the rows, [R, D]. The caller multiplies the change by the
        learning rate and subtracts it from the weights.
        """
        config = self.config
        if isinstance(config, SgdConfig):
            return grad
        if isinstance(config, AdagradConfig):
            total = state["sum"][rows] + grad.square()
            state["sum"][rows] = total
            return grad / (total.sqrt() + config.eps)
        if isinstance(config, RowwiseAdagradConfig):
            grad = grad + config.weight_decay * weight
            total = state["sum"][rows] + grad.square().mean(dim=1)
            state["sum"][rows] = total
            return grad / (total.sqrt() + config.eps).unsqueeze(1)
        mean = config.beta1 * state["exp_avg"][rows] + (1 - config.beta1) * grad
        square = config.beta2 * state["exp_avg_sq"][rows] + (1 - config.beta2) * grad.square()
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        scale = (square / (1 - config.beta2**self.steps)).sqrt() + config.eps
        return mean / (1 - config.beta1**self.steps) / scale + config.weight_decay * weight


def replicated_parameters(model: DistributedModelParallel) -> dict[str, torch.nn.Parameter]:
    """Return the tables that the plan made data-parallel, by name."""
    parameters = parameters_updated_by_step(model)
    return {name: weight for name, weight in parameters.items() if is_replicated_table(weight)}


def dense_parameters(model: DistributedModelParallel) -> dict[str, torch.nn.Parameter]:
    """Return every parameter that is not a table, by name: the parameters of the dense optimizer."""
    parameters = parameters_updated_by_step(model)
    return {name: weight for name, weight in parameters.items() if not is_replicated_table(weight)}


def tables_optimizer(model: DistributedModelParallel, config: OptimizerConfig) -> CombinedOptimizer:
    """Return the optimizer of all tables, sharded and replicated.

    Sharded tables change during `backward`. `step` updates the replicated tables. It also sets the learning rate of the
    sharded tables from `param_groups`, for the next backward pass. `zero_grad` clears the gradients of the replicated
    tables. A job that resumes at step k calls `set_optimizer_step(k)` before its first batch: Adam's bias correction
    counts the steps.
    """
    optimizers = [model.fused_optimizer]
    if replicated := replicated_parameters(model):
        optimizers.append(KeyedOptimizerWrapper(replicated, lambda weights: ReplicatedOptimizer(weights, config)))
    return CombinedOptimizer(optimizers)
