"""The model: extractor, head and, by method, forward process, denoiser and objective; and `Recommender` around it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from asymdiffrec.base import InputError
from asymdiffrec.diffusion.config import METHODS, DiffusionConfig, ModelConfig
from asymdiffrec.diffusion.denoiser import Denoiser
from asymdiffrec.diffusion.extractors.build import build_extractor
from asymdiffrec.diffusion.forward import ForwardProcess, Patterns
from asymdiffrec.diffusion.gaussian import GaussianProcess
from asymdiffrec.diffusion.layers import Candidates, Vectors, mlp, whole
from asymdiffrec.diffusion.objective import distillation_loss, prediction_loss, reconstruction_loss
from asymdiffrec.diffusion.user_classes import load_class
from asymdiffrec.field_layout import FieldLayout

V = TypeVar("V", Tensor, Vectors)

TOLD = ("augment", "asymdiff")
"""Variants whose extractor gets s where the settings do not say"""


class AsymmetricDiffusion(nn.Module):
    """Every method, from field vectors to losses and logits.

    layout: the fields of x; seed: key of the forward process; drops, patterns: see `ForwardProcess`;
    precision: what autocast makes the products in while it learns, where it is not that of the weights. Initial weights
    are drawn from torch's generator. Raises InputError where the settings do not fit each other or the fields.

    A method of one's own is a subclass with `parts` and, where it scores otherwise than the extractor and the head do,
    `score`; what it adds to `__init__` it finds its settings for in `config.options`.
    """

    def __init__(
        self,
        layout: FieldLayout,
        model: ModelConfig,
        diffusion: DiffusionConfig,
        *,
        seed: int,
        drops: Sequence[float] | None = None,
        patterns: Patterns | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = diffusion
        self.precision = precision
        self.weights: dict[str, float] = diffusion.weights.model_dump()
        self.layout = layout
        num_fields, total_width = layout.num_fields, layout.total_width
        told = diffusion.mask_in_extractor
        self.mask_width = num_fields if (diffusion.method in TOLD if told is None else told) else 0
        self.extractor = build_extractor(model.extractor, list(layout.widths), self.mask_width)
        latent_dim = self.extractor.latent_dim
        self.head = mlp([latent_dim, *model.head, 1])
        if diffusion.method == "asymdiff":
            of_fields, sees = diffusion.space == "fields", diffusion.fields_in_denoiser and diffusion.noise == "fields"
            self.denoiser = Denoiser(
                num_fields,
                total_width if of_fields else latent_dim,
                diffusion.denoiser_hidden,
                columns=total_width if sees and not of_fields else 0,
                gate=diffusion.gate,
                told=diffusion.mask_in_denoiser,
            )
        if diffusion.fill == "mean":
            self.fill = Fill(layout)
        if diffusion.noise == "gaussian":
            if diffusion.method != "asymdiff" or diffusion.space != "latent":
                raise InputError("diffusion.noise: gaussian is for method asymdiff in the latent space")
            self.gaussian = GaussianProcess(diffusion.forward.time.quantiles(), seed)
        elif diffusion.method != "base":
            with torch.device("cpu"):  # its law is checked and worked out, also where the weights are on meta
                self.process = ForwardProcess(layout, diffusion.forward, seed=seed, drops=drops, patterns=patterns)

    def forward(
        self, clean: Tensor, missing: Tensor, label: Tensor, weight: Tensor, sample_index: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and it and its unweighted parts by name, detached, for the log.

        clean: [B, sum D_n], zero where a field is missing; missing: [B, N] bool; label: [B], 0 or 1; weight: [B];
        sample_index: [B] int64, the samples' places in the run.
        """
        rounds = self.precision is not None and not clean.is_meta  # which autocast does not know
        with torch.autocast(clean.device.type, self.precision) if rounds else nullcontext():
            parts = self.parts(clean, missing, label, weight, sample_index)
            if self.config.fill == "mean":
                parts["fill"] = self.fill.loss(clean, missing, weight)
        # Of these a weight of 0 multiplies, it does not skip: workers in step expect a gradient for every parameter.
        loss = sum((self.weights.get(name, 1.0) * part for name, part in parts.items()), start=clean.new_zeros(()))
        return loss, {"loss": loss.detach(), **{f"loss_{name}": part.detach() for name, part in parts.items()}}

    def score(self, x: Tensor, missing: Tensor) -> Tensor:
        """Logits [B] of samples with whatever they lack: f(g([m, h(x), x])); x [B, sum D_n], missing [B, N] bool."""
        return self._score(x, missing)

    def score_candidates(self, x: Candidates, missing: Tensor) -> Tensor:
        """As `score`, of samples that have fields in common; where the model allows it their part is computed once."""
        shares = type(self) is AsymmetricDiffusion and self.extractor.takes_candidates
        plain = self.config.fill == "zero" and self.config.space == "latent"
        return self._score(x, missing) if shares and plain else self.score(x.whole(), missing)

    def _score(self, x: Vectors, missing: Tensor) -> Tensor:
        if self.config.method != "asymdiff":
            return self.logit(self.latent(x, missing))
        filled, s = self._filled(x, missing), missing.to(x.dtype)
        noisy = self._extracted(filled, missing) if self.config.space == "latent" else whole(filled)
        return self._logit_of_denoised(self.denoiser(s, noisy, filled), missing)

    def parts(
        self, clean: Tensor, missing: Tensor, label: Tensor, weight: Tensor, sample_index: Tensor
    ) -> dict[str, Tensor]:
        """The parts of the loss by name; those of `LossWeights` are weighted by it, any others by 1."""
        method = self.config.method
        if method == "base":
            return {"main": prediction_loss(self.logit(self.latent(clean, missing)), label, weight)}
        if method == "dropout":
            noisy_latent = self.latent(*self.process(clean, missing, sample_index))
            return {"main": prediction_loss(self.logit(noisy_latent), label, weight)}
        if method == "augment":
            clean_latent, noisy_latent, *_ = self.both_latents(clean, missing, sample_index)
            return {
                "main": prediction_loss(self.logit(clean_latent), label, weight),
                "aux": prediction_loss(self.logit(noisy_latent), label, weight),
            }
        clean_latent, origin, noisy, s, x = self._noised(clean, missing, sample_index)
        clean_logit = self.logit(clean_latent)
        denoised = self.denoiser(s, noisy, x)
        denoised_logit = self._logit_of_denoised(denoised, s)
        found = {
            "main": prediction_loss(clean_logit, label, weight),
            "aux": prediction_loss(denoised_logit, label, weight),
            "distil": distillation_loss(clean_logit, denoised_logit, weight),
        }
        if not self.weights["recon"]:
            return found
        if self.config.detach_reconstruction:
            # L_aux and L_distil go on to the extractor, so the denoiser, small beside it, runs twice.
            denoised, origin = self.denoiser(s, noisy.detach(), x.detach()), origin.detach()
        return {**found, "recon": reconstruction_loss(denoised, origin, weight)}

    def _noised(
        self, clean: Tensor, missing: Tensor, sample_index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """z_0, what the denoiser is to restore, it with noise, s [B, N] in [0, 1], and x_t."""
        if self.config.noise == "gaussian":
            clean_latent = self.latent(clean, missing)
            noisy, t = self.gaussian(clean_latent, sample_index)
            return clean_latent, clean_latent, noisy, torch.maximum(missing.to(clean.dtype), t[:, None]), clean
        if self.config.space == "fields":
            noisy, step = self.process(clean, missing, sample_index)
            filled = self._filled(noisy, step)
            return self.latent(clean, missing), self._filled(clean, missing), filled, step.to(clean.dtype), filled
        clean_latent, noisy_latent, step, noisy = self.both_latents(clean, missing, sample_index)
        return clean_latent, clean_latent, noisy_latent, step.to(clean.dtype), noisy

    def both_latents(
        self, clean: Tensor, missing: Tensor, sample_index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z_0 and z_t [B, Z], s [B, N] bool, and x_t [B, sum D_n]."""
        if _goes_as_one_batch(clean):
            views, step = self.process(clean, missing, sample_index, both_as=_computed_in(clean))
            views = self._filled(views, both := torch.cat([missing, step]))
            clean_latent, noisy_latent = self._extracted(views, both).chunk(2)
            return clean_latent, noisy_latent, step, views.chunk(2)[1]
        noisy, step = self.process(clean, missing, sample_index)
        noisy = self._filled(noisy, step)
        return self.latent(clean, missing), self._extracted(noisy, step), step, noisy

    def latent(self, x: Vectors, step: Tensor) -> Tensor:
        """h [B, Z] of vectors of fields [B, sum D_n], zero where step [B, N] says that a field is missing."""
        return self._extracted(self._filled(x, step), step)

    def logit(self, latent: Tensor) -> Tensor:
        """f [B] of latents [B, Z]"""
        return self.head(latent).squeeze(1).float()

    def _extracted(self, x: Vectors, step: Tensor) -> Tensor:
        return self.extractor(x, step[:, : self.mask_width].to(x.dtype))

    def _filled(self, x: V, step: Tensor) -> V:
        return self.fill(whole(x), step) if self.config.fill == "mean" else x

    def _logit_of_denoised(self, denoised: Tensor, step: Tensor) -> Tensor:
        return self.logit(self._extracted(denoised, step) if self.config.space == "fields" else denoised)


def method_class(method: str) -> type[AsymmetricDiffusion]:
    """The class of a method, ours or a user's own. Raises InputError where there is none."""
    if method in METHODS:
        return AsymmetricDiffusion
    own: type[AsymmetricDiffusion] = load_class(method, AsymmetricDiffusion, "method")
    return own


class Fill(nn.Module):
    """The mean vector of each field over the samples that have it, as a parameter that follows it: so it is the same
    on all workers, and is kept with the others."""

    field_of_column: Tensor

    def __init__(self, layout: FieldLayout) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(layout.total_width))
        self.register_buffer("field_of_column", layout.field_of_column, persistent=False)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """x [B, sum D_n] with the means where step [B, N] bool says that a field is missing."""
        return torch.where(step[:, self.field_of_column], self.mean.detach().to(x.dtype), x)

    def loss(self, clean: Tensor, missing: Tensor, weight: Tensor) -> Tensor:
        """What the means are the minimum of."""
        there = ~missing[:, self.field_of_column]
        return (weight[:, None] * there * (self.mean - clean.detach()).square()).mean()


def _goes_as_one_batch(clean: Tensor) -> bool:
    """Whether the extractor gets both views at once.

    On CUDA they are written, cast, and their gradients added in one pass each, and its products are half as many and
    twice as large; on CPU the copy of the clean view would only cost.
    """
    return clean.is_cuda


def _computed_in(x: Tensor) -> torch.dtype:
    """What a linear layer would cast x to."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class Labelled(Protocol):
    """What `Recommender` reads of a batch; the rest is between the batch and the tables."""

    label: Tensor
    weight: Tensor
    sample_index: Tensor


class Recommender(nn.Module):
    """Look-up, then diffusion: the module that a train pipeline runs, and splits at the look-up.

    tables: a module that maps a batch to clean [B, sum D_n] and missing [B, N] bool.
    """

    def __init__(self, tables: nn.Module, diffusion: AsymmetricDiffusion, precision: torch.dtype | None = None) -> None:
        super().__init__()
        self.tables = tables
        self.diffusion = diffusion
        self.precision = precision

    def forward(self, batch: Labelled) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the batch, and the values for the log: see `AsymmetricDiffusion.forward`."""
        clean, missing = self.tables(batch)
        return self.diffusion(clean, missing, batch.label, batch.weight, batch.sample_index)

    def score(self, batch: Labelled) -> Tensor:
        """Logits [B]: see `AsymmetricDiffusion.score`."""
        return self.diffusion.score(*self.tables(batch))
