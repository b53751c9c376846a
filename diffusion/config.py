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
"""Names of the built-in methods"""


def _check_method(name: str) -> str:
    if name not in METHODS and not CLASS_PATH.fullmatch(name):
        raise ValueError(f"found {name!r}, allowed are {', '.join(METHODS)} and package.module:Class")
    return name


class ModelConfig(Config):
    """The base model, which is the same for every method."""

    extractor: AnyExtractorConfig = Field(
        default=MLPConfig(), description="layers from the field vectors to the latent representation"
    )
    head: Sizes = Field(default=(32,), description="widths of the hidden layers between the latent and the logit")


class LossWeights(Config):
    """Weights of the terms of the loss; a method uses only the weights of its terms."""

    main: NonNegativeFloat = Field(default=1.0, description="prediction from the original sample")
    recon: NonNegativeFloat = Field(
        default=0.0,
        description="squared error of the denoised latent; 1 as published, which lowers AUC: see docs/evidence.md",
    )
    aux: NonNegativeFloat = Field(default=1.0, description="prediction from the masked sample")
    distil: NonNegativeFloat = Field(
        default=1.0,
        description="KL(prediction from the original sample || prediction from the masked sample)",
    )


class DiffusionConfig(Config):
    """The settings that make the model robust to missing fields."""

    method: Annotated[str, AfterValidator(_check_method)] = Field(
        default="asymdiff",
        description="base: no robustness method; dropout: train on masked samples only; augment: train on the original "
        "and a masked view, and give the mask to the model; asymdiff: augment with a denoiser (AsymDiffRec); "
        "package.module:Class: a subclass of AsymmetricDiffusion that Python can import",
    )
    options: dict[str, Any] = Field(default={}, description="settings of a user-defined method")
    forward: ForwardConfig = Field(default=ForwardConfig(), description="which fields are dropped in training")
    weights: LossWeights = Field(default=LossWeights(), description="weights of the terms of the loss")
    fill: Literal["zero", "mean"] = Field(
        default="zero", description="vector of a missing field: zeros, or the field's mean vector"
    )
    mask_in_extractor: bool | None = Field(
        default=None, description="give the mask to the extractor; null: only for augment and asymdiff"
    )
    noise: Literal["fields", "gaussian"] = Field(
        default="fields",
        description="for asymdiff: fields: drop fields; gaussian: add normal noise to the latent of the original "
        "sample (DiffRec)",
    )
    space: Literal["latent", "fields"] = Field(
        default="latent", description="for asymdiff: denoise the latent, or the field vectors"
    )
    denoiser_hidden: PositiveInt = Field(default=64, description="width of the denoiser's hidden layer")
    mask_in_denoiser: bool = Field(default=True, description="give the mask to the denoiser")
    fields_in_denoiser: bool = Field(
        default=True,
        description="if the denoiser works on the latent, also give it the field vectors; false: as published",
    )
    gate: bool = Field(default=True, description="the denoiser does not change samples without missing fields")
    detach_reconstruction: bool = Field(
        default=True,
        description="the reconstruction loss trains only the denoiser; false: it also trains the extractor, which may "
        "diverge",
    )
