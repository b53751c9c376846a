"""The `model:` and `diffusion:` sections of the job file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt

from asymdiffrec.base import Config
from asymdiffrec.diffusion.extractors.base import Sizes
from asymdiffrec.diffusion.extractors.build import AnyExtractorConfig
from asymdiffrec.diffusion.extractors.mlp import MLPConfig
from asymdiffrec.diffusion.forward import ForwardConfig
from asymdiffrec.diffusion.user_classes import CLASS_PATH

METHODS = ("base", "dropout", "augment", "asymdiff")


def _method(name: str) -> str:
    if name not in METHODS and not CLASS_PATH.fullmatch(name):
        raise ValueError(f"found {name!r}, allowed are {', '.join(METHODS)} and package.module:Class")
    return name


class ModelConfig(Config):
    """The base model, which every method shares."""

    extractor: AnyExtractorConfig = Field(
        default=MLPConfig(), description="from the fields to the latent representation"
    )
    head: Sizes = Field(default=(32,), description="widths of the hidden layers from the latent to the logit")


class LossWeights(Config):
    """Weights of the parts of the objective; a method uses those of the parts that it has."""

    main: NonNegativeFloat = Field(default=1.0, description="prediction from the sample as it is")
    recon: NonNegativeFloat = Field(
        default=0.0,
        description="squared error of what was denoised; published with 1, but it costs AUC: docs/evidence.md",
    )
    aux: NonNegativeFloat = Field(default=1.0, description="prediction from the sample with fields dropped")
    distil: NonNegativeFloat = Field(
        default=1.0, description="divergence of that prediction from the one on the sample as it is"
    )


class DiffusionConfig(Config):
    """How the model is made robust to missing fields."""

    method: Annotated[str, AfterValidator(_method)] = Field(
        default="asymdiff",
        description="base: it is not; dropout: trained on samples with fields dropped; augment: on those and on "
        "the samples as they are, told which fields are there; asymdiff: augment with a denoiser (AsymDiffRec); "
        "package.module:Class: a subclass of AsymmetricDiffusion that Python can import",
    )
    options: dict[str, Any] = Field(default={}, description="for a method of one's own")
    forward: ForwardConfig = Field(default=ForwardConfig(), description="how fields are dropped in training")
    weights: LossWeights = Field(default=LossWeights(), description="weights of the parts of the objective")
    fill: Literal["zero", "mean"] = Field(
        default="zero", description="what stands for the vector of a missing field: zeros, or the mean of those there"
    )
    mask_in_extractor: bool | None = Field(
        default=None,
        description="tell the extractor which fields are missing or dropped; null: in augment and asymdiff",
    )
    noise: Literal["fields", "gaussian"] = Field(
        default="fields",
        description="of asymdiff: fields are dropped; or the latent of the sample as it is gets normal noise (DiffRec)",
    )
    space: Literal["latent", "fields"] = Field(
        default="latent", description="of asymdiff: what is denoised, the latent or the vectors of the fields"
    )
    denoiser_hidden: PositiveInt = Field(default=64, description="width of the denoiser's hidden layer")
    mask_in_denoiser: bool = Field(default=True, description="tell the denoiser which fields are missing or dropped")
    fields_in_denoiser: bool = Field(
        default=True,
        description="show the denoiser of a latent the vectors of the fields that are there, too; false: as published",
    )
    gate: bool = Field(default=True, description="the denoiser passes on a complete sample as it is")
    detach_reconstruction: bool = Field(
        default=True,
        description="a reconstruction loss trains the denoiser alone; false: the extractor, too (may diverge)",
    )
