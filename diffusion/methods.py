"""The robustness methods. Each method has an extractor and a head; some have a forward process and a denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from asymdiffrec.base import InputError
from asymdiffrec.diffusion.config import METHODS, DiffusionConfig, ModelConfig
from asymdiffrec.diffusion.denoiser import Denoiser
from asymdiffrec.diffusion.extractors.build import build_extractor
from asymdiffrec.diffusion.forward import ForwardProcess, MissingPatterns
from asymdiffrec.diffusion.gaussian import GaussianProcess
from asymdiffrec.diffusion.layers import Candidates, Vectors, expanded, mlp
from asymdiffrec.diffusion.losses import distillation_loss, prediction_loss, reconstruction_loss
from asymdiffrec.diffusion.user_classes import load_class
from asymdiffrec.field_layout import FieldLayout

V = TypeVar("V", Tensor, Vectors)

MASK_IN_EXTRACTOR = ("augment", "asymdiff")
"""Methods whose extractor gets the mask if `diffusion.mask_in_extractor` is null"""


class AsymmetricDiffusion(nn.Module):
    """The dense part of the model, for every method: it maps field vectors to losses and logits.

    layout: the fields of x.
    model, diffusion: the sections of the job file.
    seed, drop_factors, patterns: see `ForwardProcess`.
    precision: autocast dtype for training, or None for the dtype of the weights.

    Initial weights are drawn from torch's generator. Raises InputError if the settings contradict each other or do not
    match the fields.

    A user-defined method is a subclass that defines `parts`. It also overrides `score` if its scores need more than the
    extractor and the head. Its settings are in `self.config.options`.

    >>> model = AsymmetricDiffusion(FieldLayout.from_widths([4, 4]), ModelConfig(), DiffusionConfig(), seed=1)
    >>> model.score(torch.ones(3, 8), torch.zeros(3, 2, dtype=torch.bool)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        layout: FieldLayout,
        model: ModelConfig,
        diffusion: DiffusionConfig,
        *,
        seed: int,
        drop_factors: Sequence[float] | None = None,
        patterns: MissingPatterns | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = diffusion
        self.precision = precision
        self.weights: dict[str, float] = diffusion.weights.model_dump()
        self.layout = layout
        num_fields, total_width = layout.num_fields, layout.total_width
        sees_mask = diffusion.mask_in_extractor
        if sees_mask is None:
            sees_mask = diffusion.method in MASK_IN_EXTRACTOR
        self.mask_width = num_fields if sees_mask else 0
        self.extractor = build_extractor(model.extractor, list(layout.widths), self.mask_width)
        latent_dim = self.extractor.latent_dim
        self.head = mlp([latent_dim, *model.head, 1])
        if diffusion.method == "asymdiff":
            in_fields = diffusion.space == "fields"
            sees_fields = diffusion.fields_in_denoiser and diffusion.noise == "fields" and not in_fields
            self.denoiser = Denoiser(
                num_fields,
                total_width if in_fields else latent_dim,
                diffusion.denoiser_hidden,
                field_width=total_width if sees_fields else 0,
                gate=diffusion.gate,
                sees_mask=diffusion.mask_in_denoiser,
            )
        if diffusion.fill == "mean":
            self.fill = MeanFill(layout)
        if diffusion.noise == "gaussian":
            if diffusion.method != "asymdiff" or diffusion.space != "latent":
                raise InputError("diffusion.noise: gaussian is allowed only for method asymdiff with space latent")
            self.gaussian = GaussianProcess(diffusion.forward.time.quantiles(), seed)
        elif diffusion.method != "base":
            with torch.device("cpu"):  # even if the weights are on meta: the process checks the values of its tensors
                self.process = ForwardProcess(
                    layout, diffusion.forward, seed=seed, drop_factors=drop_factors, patterns=patterns
                )

    def forward(
        self, clean: Tensor, missing: Tensor, label: Tensor, weight: Tensor, sample_index: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise, and a dict for the log with the loss and its unweighted terms, all detached.

        clean: [B, sum D_n], zero where a field is missing; missing: [B, N] bool; label: [B], 0 or 1; weight: [B];
        sample_index: [B] int64, index of each sample in the run.
        """
        uses_autocast = self.precision is not None and not clean.is_meta  # autocast does not support the meta device
        with torch.autocast(clean.device.type, self.precision) if uses_autocast else nullcontext():
            parts = self.parts(clean, missing, label, weight, sample_index)
            if self.config.fill == "mean":
                parts["fill"] = self.fill.loss(clean, missing, weight)
        # A term with weight 0 is still computed: DDP needs a gradient for every parameter on every rank.
        loss = sum((self.weights.get(name, 1.0) * part for name, part in parts.items()), start=clean.new_zeros(()))
        return loss, {"loss": loss.detach(), **{f"loss_{name}": part.detach() for name, part in parts.items()}}

    def score(self, x: Tensor, missing: Tensor) -> Tensor:
        """Return logits [B]: f(g([m, h(x), x])) for x [B, sum D_n] and the mask m = missing [B, N] bool."""
        return self._score(x, missing)

    def score_candidates(self, x: Candidates, missing: Tensor) -> Tensor:
        """Return the logits of `score`; if the model allows it, the shared part of x is computed once per query."""
        uses_shared = type(self) is AsymmetricDiffusion and self.extractor.takes_candidates
        reads_x_linearly = self.config.fill == "zero" and self.config.space == "latent"
        return self._score(x, missing) if uses_shared and reads_x_linearly else self.score(x.expand(), missing)

    def _score(self, x: Vectors, missing: Tensor) -> Tensor:
        if self.config.method != "asymdiff":
            return self.logit(self.latent(x, missing))
        filled = self._fill_missing(x, missing)
        noisy = self._extract(filled, missing) if self.config.space == "latent" else expanded(filled)
        return self._logit_of_denoised(self.denoiser(missing.to(x.dtype), noisy, filled), missing)

    def parts(
        self, clean: Tensor, missing: Tensor, label: Tensor, weight: Tensor, sample_index: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms of the loss by name. A term whose name is not in `LossWeights` has the weight 1."""
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
        clean_latent, target, noisy, mask, x = self._noised(clean, missing, sample_index)
        clean_logit = self.logit(clean_latent)
        denoised = self.denoiser(mask, noisy, x)
        denoised_logit = self._logit_of_denoised(denoised, mask)
        parts = {
            "main": prediction_loss(clean_logit, label, weight),
            "aux": prediction_loss(denoised_logit, label, weight),
            "distil": distillation_loss(clean_logit, denoised_logit, weight),
        }
        if not self.weights["recon"]:
            return parts
        if self.config.detach_reconstruction:
            # L_aux and L_distil must still train the extractor, so the denoiser runs again with detached inputs. This
            # costs little, because the denoiser is much smaller than the extractor.
            denoised, target = self.denoiser(mask, noisy.detach(), x.detach()), target.detach()
        return {**parts, "recon": reconstruction_loss(denoised, target, weight)}

    def _noised(
        self, clean: Tensor, missing: Tensor, sample_index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return z_0 and the training values of the denoiser: target, noisy, mask [B, N] in [0, 1], and x.

        The denoiser estimates `target`, given `noisy`, the mask and the field vectors x.
        """
        if self.config.noise == "gaussian":
            clean_latent = self.latent(clean, missing)
            noisy, t = self.gaussian(clean_latent, sample_index)
            return clean_latent, clean_latent, noisy, torch.maximum(missing.to(clean.dtype), t[:, None]), clean
        if self.config.space == "fields":
            noisy, mask = self.process(clean, missing, sample_index)
            filled = self._fill_missing(noisy, mask)
            target = self._fill_missing(clean, missing)
            return self.latent(clean, missing), target, filled, mask.to(clean.dtype), filled
        clean_latent, noisy_latent, mask, noisy = self.both_latents(clean, missing, sample_index)
        return clean_latent, clean_latent, noisy_latent, mask.to(clean.dtype), noisy

    def both_latents(
        self, clean: Tensor, missing: Tensor, sample_index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the latents z_0 and z_t [B, Z], the mask [B, N] bool, and the noisy field vectors x_t [B, sum D_n]."""
        if _views_in_one_batch(clean):
            views, mask = self.process(clean, missing, sample_index, both_as=_linear_dtype(clean))
            both_masks = torch.cat([missing, mask])
            views = self._fill_missing(views, both_masks)
            clean_latent, noisy_latent = self._extract(views, both_masks).chunk(2)
            return clean_latent, noisy_latent, mask, views.chunk(2)[1]
        noisy, mask = self.process(clean, missing, sample_index)
        noisy = self._fill_missing(noisy, mask)
        return self.latent(clean, missing), self._extract(noisy, mask), mask, noisy

    def latent(self, x: Vectors, mask: Tensor) -> Tensor:
        """Return h(x) [B, Z] for field vectors [B, sum D_n] that are zero where the mask [B, N] is true."""
        return self._extract(self._fill_missing(x, mask), mask)

    def logit(self, latent: Tensor) -> Tensor:
        """Return the logits f(z) [B] for latents z [B, Z]."""
        return self.head(latent).squeeze(1).float()

    def _extract(self, x: Vectors, mask: Tensor) -> Tensor:
        return self.extractor(x, mask[:, : self.mask_width].to(x.dtype))

    def _fill_missing(self, x: V, mask: Tensor) -> V:
        return self.fill(expanded(x), mask) if self.config.fill == "mean" else x

    def _logit_of_denoised(self, denoised: Tensor, mask: Tensor) -> Tensor:
        return self.logit(self._extract(denoised, mask) if self.config.space == "fields" else denoised)


def method_class(method: str) -> type[AsymmetricDiffusion]:
    """Return the class of a built-in or user-defined method. Raises InputError if the class does not exist."""
    if method in METHODS:
        return AsymmetricDiffusion
    user_class: type[AsymmetricDiffusion] = load_class(method, AsymmetricDiffusion, "method")
    return user_class


class MeanFill(nn.Module):
    """A layer that replaces the vector of a missing field by the field's mean vector.

    The mean is taken over the samples that have the field. The means are a parameter with a separate loss. Thus the
    means are equal on all workers and stored in checkpoints.
    """

    field_of_column: Tensor

    def __init__(self, layout: FieldLayout) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(layout.total_width))
        self.register_buffer("field_of_column", layout.field_of_column, persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return x [B, sum D_n]: the vectors of the fields in mask [B, N] bool are replaced by the means."""
        return torch.where(mask[:, self.field_of_column], self.mean.detach().to(x.dtype), x)

    def loss(self, clean: Tensor, missing: Tensor, weight: Tensor) -> Tensor:
        """Return a squared error that is smallest if the parameter has the weighted means of the field vectors."""
        present = ~missing[:, self.field_of_column]
        return (weight[:, None] * present * (self.mean - clean.detach()).square()).mean()


def _views_in_one_batch(clean: Tensor) -> bool:
    """Return whether the extractor gets both views as one batch.

    On CUDA both views are then written and cast in one pass, their gradients are added in one pass, and the extractor
    runs half as many matrix products of twice the size. On CPU the copy of the clean view costs more time than
    a single batch saves.
    """
    return clean.is_cuda


def _linear_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype to which a linear layer would cast x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
