"""Optimizers of replicated tables follow FBGEMM's rules."""

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from asymdiffrec.embeddings.optimizers import (
    AdagradConfig,
    AdamConfig,
    ReplicatedOptimizer,
    RowwiseAdagradConfig,
    SgdConfig,
)

ROWS, DIM = 9, 8

FBGEMM = {
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
}


def steps():
    """Yield ten batches: ids, offsets, and the factor of each output in the loss. No bag uses the last two rows."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(10):
        ids = torch.randint(0, ROWS - 2, (6,), generator=draw)
        offsets = torch.tensor([0, 2, 3, 6])
        yield ids, offsets, torch.randn(3, DIM, generator=draw)


def replicated(config, start):
    weight = torch.nn.Parameter(start.clone())
    optimizer = ReplicatedOptimizer([weight], config)
    for ids, offsets, factor in steps():
        optimizer.zero_grad()
        (torch.nn.functional.embedding_bag(ids, weight, offsets[:-1], mode="sum") * factor).sum().backward()
        optimizer.step()
    return weight.detach(), optimizer.state[weight]


@pytest.mark.parametrize(
    "config",
    [
        SgdConfig(name="sgd", learning_rate=0.1),
        AdagradConfig(learning_rate=0.1, eps=1e-3),
        RowwiseAdagradConfig(name="rowwise_adagrad", learning_rate=0.1, eps=1e-3),
    ],
)
def test_replicated_tables_are_updated_like_fbgemms(config):
    start = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))
    settings = config.model_dump(exclude={"name"})
    fused = SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)], optimizer=FBGEMM[config.name], **settings
    )
    fused.split_embedding_weights()[0].copy_(start)
    for ids, offsets, factor in steps():
        (fused(ids, offsets) * factor).sum().backward()
    weight, state = replicated(config, start)
    torch.testing.assert_close(weight, fused.split_embedding_weights()[0])
    assert torch.equal(weight[-2:], start[-2:])
    if "sum" in state:
        torch.testing.assert_close(state["sum"], fused.get_optimizer_state()[0]["sum"])


def test_weight_decay_of_rowwise_adagrad():
    """FBGEMM's rule, on GPUs only: g' = g + decay * w; sum += mean(g'^2); w -= rate * g' / (sqrt(sum) + eps)."""
    weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    config = RowwiseAdagradConfig(name="rowwise_adagrad", learning_rate=0.1, eps=1e-3, weight_decay=0.5)
    optimizer = ReplicatedOptimizer([weight], config)
    weight.grad = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    optimizer.step()
    penalised = torch.tensor([1.5, -1.0])
    scale = penalised.square().mean().sqrt() + 1e-3
    torch.testing.assert_close(weight[0].detach(), torch.tensor([1.0, 2.0]) - 0.1 * penalised / scale)
    assert weight[1].tolist() == [3.0, 4.0]


def test_adam_updates_only_touched_rows():
    """FBGEMM's fused Adam needs a GPU; torch's Adam for sparse gradients has the same rule."""
    start = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))
    weight = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SparseAdam([weight], lr=0.1, eps=1e-12)
    for ids, offsets, factor in steps():
        optimizer.zero_grad()
        bags = torch.nn.functional.embedding_bag(ids, weight, offsets[:-1], mode="sum", sparse=True)
        (bags * factor).sum().backward()
        optimizer.step()
    updated, _ = replicated(AdamConfig(name="adam", learning_rate=0.1, eps=1e-12), start)
    torch.testing.assert_close(updated, weight.detach())


def test_adam_resumes_with_its_step_count():
    """Adam's bias correction counts steps: with the same count a new optimizer takes the same step as the old one."""
    config = AdamConfig(name="adam")
    weight = torch.nn.Parameter(torch.ones(2, 4))
    first = ReplicatedOptimizer([weight], config)
    for _ in range(3):
        weight.grad = torch.ones(2, 4)
        first.step()
    copy = torch.nn.Parameter(weight.detach().clone())
    second = ReplicatedOptimizer([copy], config)
    for name, tensor in second.state[copy].items():
        tensor.copy_(first.state[weight][name])
    second.set_optimizer_step(3)
    for optimizer, tensor in ((first, weight), (second, copy)):
        tensor.grad = torch.full((2, 4), 0.5)
        optimizer.step()
    assert torch.equal(weight, copy)
