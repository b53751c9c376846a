"""The model: extractor, head and, by variant, forward process, denoiser and objective; and `Recommender` around it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal, Protocol

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from asymdiffrec.diffusion.config import Config
from asymdiffrec.diffusion.denoiser import Denoiser
from asymdiffrec.diffusion.extractors.base import Sizes
from asymdiffrec.diffusion.extractors.build import AnyExtractorConfig, build_extractor
from asymdiffrec.diffusion.extractors.mlp import MLPConfig
from asymdiffrec.diffusion.forward import ForwardConfig, ForwardProcess, Patterns
from asymdiffrec.diffusion.layers import perceptron
from asymdiffrec.diffusion.objective import distillation_loss, prediction_loss, reconstruction_loss


class ModelConfig(Config):
    """The base model, which every variant shares."""

    extractor: AnyExtractorConfig = Field(
        default=MLPConfig(), description="from the fields to the latent representation"
    )
    head: Sizes = Field(default=(32,), description="widths of the hidden layers from the latent to the logit")


class LossWeights(Config):
    """Weights of the parts of the objective; a variant uses those of the parts that it has."""

    main: NonNegativeFloat = Field(default=1.0, description="prediction from the sample as it is")
    recon: NonNegativeFloat = Field(default=1.0, description="squared error of the denoised latent")
    aux: NonNegativeFloat = Field(default=1.0, description="prediction from the sample with fields dropped")
    distil: NonNegativeFloat = Field(
        default=1.0, description="divergence of that prediction from the one on the sample as it is"
    )


class DiffusionConfig(Config):
    """How the model is made robust to missing fields."""

    variant: Literal["base", "dropout", "augment", "asymdiff"] = Field(
        default="asymdiff",
        description="base: it is not; dropout: trained on samples with fields dropped; augment: on those and on "
        "the samples as they are, told which fields are there; asymdiff: augment with a denoiser (AsymDiffRec)",
    )
    forward: ForwardConfig = Field(default=ForwardConfig(), description="how fields are dropped in training")
    weights: LossWeights = Field(default=LossWeights(), description="weights of the parts of the objective")
    denoiser_hidden: PositiveInt = Field(default=64, description="width of the denoiser's hidden layer")
    step_in_extractor: bool = Field(
        default=True, description="tell the extractor, too, which fields are missing or dropped (augment and asymdiff)"
    )
    detach_reconstruction: bool = Field(
        default=True,
        description="the reconstruction loss trains the denoiser alone; false: the extractor, too (may diverge)",
    )


class AsymmetricDiffusion(nn.Module):
    """Every variant, from field vectors to losses and logits.

    widths: D_n of each field; seed: key of the forward process; drops, groups, patterns: see `ForwardProcess`;
    precision: what autocast makes the products in while it learns, where it is not that of the weights. Initial weights
    are drawn from torch's generator. Raises ValueError when an argument does not fit the others.
    """

    def __init__(
        self,
        widths: Sequence[int],
        model: ModelConfig,
        diffusion: DiffusionConfig,
        *,
        seed: int,
        drops: Sequence[float] | None = None,
        groups: Sequence[str] | None = None,
        patterns: Patterns | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = diffusion
        self.precision = precision
        self.weights: dict[str, float] = diffusion.weights.model_dump()
        self.widths = list(widths)
        knows_step = diffusion.variant in ("augment", "asymdiff") and diffusion.step_in_extractor
        self.step_width = len(widths) if knows_step else 0
        self.extractor = build_extractor(model.extractor, widths, self.step_width)
        latent_dim = self.extractor.latent_dim
        self.head = perceptron([latent_dim, *model.head, 1])
        if diffusion.variant == "asymdiff":
            self.denoiser = Denoiser(len(widths), latent_dim, diffusion.denoiser_hidden)
        if diffusion.variant != "base":
            with torch.device("cpu"):  # its law is checked and worked out, also where the weights are on meta
                self.process = ForwardProcess(
                    widths, diffusion.forward, seed=seed, drops=drops, groups=groups, patterns=patterns
                )

    def forward(
        self, clean: Tensor, missing: Tensor, label: Tensor, weight: Tensor, sample_index: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and it and its unweighted parts by name, detached, for the log.

        clean: [B, sum D_n], zero where a field is missing; missing: [B, N] bool; label: [B], 0 or 1; weight: [B];
        sample_index: [B] int64, the samples' places in the run.
        """
        rounds = self.precision is not None and not clean.is_meta  # which autocast does not know
        with torch.autocast(clean.device.type, self.precision) if rounds else nullcontext():
            parts = self._parts(clean, missing, label, weight, sample_index)
        # A weight of 0 multiplies, it does not skip: workers in step expect a gradient for every parameter.
        loss = sum((self.weights[name] * part for name, part in parts.items()), start=clean.new_zeros(()))
        return loss, {"loss": loss.detach(), **{f"loss_{name}": part.detach() for name, part in parts.items()}}

    def score(self, x: Tensor, missing: Tensor) -> Tensor:
        """Logits [B] of samples with whatever they lack: f(g([m, h(x)])); x [B, sum D_n], missing [B, N] bool."""
        latent = self._latent(x, missing)
        return self._logit(self.denoiser(missing.to(x.dtype), latent) if self.config.variant == "asymdiff" else latent)

    def _parts(
        self, clean: Tensor, missing: Tensor, label: Tensor, weight: Tensor, sample_index: Tensor
    ) -> dict[str, Tensor]:
        variant = self.config.variant
        if variant == "base":
            return {"main": prediction_loss(self._logit(self._latent(clean, missing)), label, weight)}
        if variant == "dropout":
            noisy_latent = self._latent(*self.process(clean, missing, sample_index))
            return {"main": prediction_loss(self._logit(noisy_latent), label, weight)}
        clean_latent, noisy_latent, step = self._both_latents(clean, missing, sample_index)
        clean_logit = self._logit(clean_latent)
        main = prediction_loss(clean_logit, label, weight)
        if variant == "augment":
            return {"main": main, "aux": prediction_loss(self._logit(noisy_latent), label, weight)}
        s = step.to(clean.dtype)
        denoised = self.denoiser(s, noisy_latent)
        denoised_logit = self._logit(denoised)
        if self.config.detach_reconstruction:
            # L_aux and L_distil go on to the extractor, so the denoiser, small beside it, runs twice.
            denoised, clean_latent = self.denoiser(s, noisy_latent.detach()), clean_latent.detach()
        return {
            "main": main,
            "recon": reconstruction_loss(denoised, clean_latent, weight),
            "aux": prediction_loss(denoised_logit, label, weight),
            "distil": distillation_loss(clean_logit, denoised_logit, weight),
        }

    def _both_latents(self, clean: Tensor, missing: Tensor, sample_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z_0 and z_t [B, Z], and s [B, N] bool."""
        if _goes_as_one_batch(clean):
            views, step = self.process(clean, missing, sample_index, both_as=_computed_in(clean))
            clean_latent, noisy_latent = self._latent(views, torch.cat([missing, step])).chunk(2)
        else:
            noisy, step = self.process(clean, missing, sample_index)
            noisy_latent, clean_latent = self._latent(noisy, step), self._latent(clean, missing)
        return clean_latent, noisy_latent, step

    def _latent(self, x: Tensor, step: Tensor) -> Tensor:
        return self.extractor(x, step[:, : self.step_width].to(x.dtype))

    def _logit(self, latent: Tensor) -> Tensor:
        return self.head(latent).squeeze(1).float()


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

    def score(self, batch: Labelled, process: ForwardProcess | None = None) -> Tensor:
        """Logits [B]; after `process` has dropped fields, where one is given (`ForwardProcess.at_rate`)."""
        x, missing = self.tables(batch)
        if process is not None:
            x, missing = process(x, missing, batch.sample_index)
        return self.diffusion.score(x, missing)
