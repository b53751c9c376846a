"""The variants that `compare` trains: built-in variants, and overrides, classes and functions of the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from asymdiffrec.base import InputError
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.diffusion.methods import AsymmetricDiffusion
from asymdiffrec.diffusion.user_classes import CLASS_PATH, load_object
from asymdiffrec.trainer.evaluation.scenarios import Scenario
from asymdiffrec.trainer.job import Job

Rival = Callable[[Job, Statistics, Sequence[Scenario], int], np.ndarray]
"""A model that is not trained by `asymdiffrec train`: a function of job, statistics, scenarios and seed. It learns from
the training split. It returns logits [K, R]: under K scenarios, for the R rows of the test split in file order."""


class BuiltIn(NamedTuple):
    """A built-in variant."""

    overrides: str
    """Overrides PATH=VALUE, separated by spaces; diffusion.method is asymdiff if they do not set it"""
    description: str


_PUBLISHED = "diffusion.fields_in_denoiser=false"

BUILT_IN: dict[str, BuiltIn] = {
    "base": BuiltIn("diffusion.method=base", "no robustness method"),
    "indicators": BuiltIn(
        "diffusion.method=base diffusion.mask_in_extractor=true", "base, with the mask as input of the extractor"
    ),
    "mean": BuiltIn("diffusion.method=base diffusion.fill=mean", "base, with the mean vector of a missing field"),
    "dropout": BuiltIn("diffusion.method=dropout", "base, trained on masked samples"),
    "augment": BuiltIn("diffusion.method=augment", "trained on complete and on masked samples, with the mask as input"),
    "asymdiff": BuiltIn("diffusion.method=asymdiff", "augment with a denoiser (AsymDiffRec, improved)"),
    "with_recon": BuiltIn("diffusion.weights.recon=1", "asymdiff with a reconstruction loss"),
    "no_aux": BuiltIn("diffusion.weights.aux=0", "asymdiff without the loss of predictions from the denoised latent"),
    "no_distil": BuiltIn("diffusion.weights.distil=0", "asymdiff without distillation"),
    "no_mask": BuiltIn(
        "diffusion.mask_in_extractor=false diffusion.mask_in_denoiser=false", "asymdiff without the mask as input"
    ),
    "no_gate": BuiltIn("diffusion.gate=false", "asymdiff with a denoiser that also changes complete samples"),
    "published": BuiltIn(
        f"{_PUBLISHED} diffusion.weights.recon=1",
        "AsymDiffRec as published: the denoiser reads only the latent, with a reconstruction loss",
    ),
    "no_recon": BuiltIn(_PUBLISHED, "published without the reconstruction loss"),
    "let_through": BuiltIn(
        f"{_PUBLISHED} diffusion.weights.recon=1 diffusion.detach_reconstruction=false",
        "published, with a reconstruction loss that also trains the extractor",
    ),
    "symmetric": BuiltIn(
        "diffusion.space=fields diffusion.weights.recon=1",
        "published, but the denoiser restores field vectors instead of the latent",
    ),
    "gaussian": BuiltIn(
        "diffusion.noise=gaussian diffusion.weights.recon=1",
        "published, but with Gaussian noise on the latent (DiffRec)",
    ),
}


@dataclass(frozen=True)
class Variant:
    """One entry of a comparison: a job with overrides, or a rival."""

    name: str
    overrides: tuple[str, ...] = ()
    """Overrides PATH=VALUE of the job file"""
    rival: str | None = None
    """package.module:function of a `Rival`"""


def parse_variants(names: Sequence[str], definitions: Sequence[str]) -> list[Variant]:
    """Return the variants of the given names, in their order.

    A name is one of `BUILT_IN`, one of `definitions` (NAME:PATH=VALUE, repeated for more values), or a path:
    package.module:Class of a method or package.module:function of a `Rival`.

    Raises InputError for an unknown name, a repeated name, or a path that cannot be imported.

    >>> parse_variants(["base", "light"], ["light:tables.embedding_dim=8"])[1]
    Variant(name='light', overrides=('tables.embedding_dim=8',), rival=None)
    """
    overrides_by_name = _parse_definitions(definitions)
    variants = [_parse_variant(name, overrides_by_name) for name in names]
    all_names = [variant.name for variant in variants]
    repeated = [name for name in dict.fromkeys(all_names) if all_names.count(name) > 1]
    if repeated:
        raise InputError(f"--variants: {repeated[0]} appears twice; every variant needs a different name")
    return variants


def _parse_definitions(definitions: Sequence[str]) -> dict[str, tuple[str, ...]]:
    overrides: dict[str, tuple[str, ...]] = {}
    for text in definitions:
        name, _, override = text.partition(":")
        if not name or "=" not in override:
            raise InputError(f"--define {text}: expected NAME:PATH=VALUE, such as light:diffusion.weights.aux=0.3")
        overrides[name] = (*overrides.get(name, ()), override)
    return overrides


def _parse_variant(name: str, overrides_by_name: Mapping[str, tuple[str, ...]]) -> Variant:
    if name in overrides_by_name:
        return Variant(name, overrides_by_name[name])
    if name in BUILT_IN:
        overrides = BUILT_IN[name].overrides.split()
        if not overrides[0].startswith("diffusion.method="):
            overrides = ["diffusion.method=asymdiff", *overrides]
        return Variant(name, tuple(overrides))
    if not CLASS_PATH.fullmatch(name):
        names = ", ".join([*overrides_by_name, *BUILT_IN])
        raise InputError(
            f"--variants: {name} is unknown; expected one of {names}, or package.module:Class of a method, or "
            "package.module:function of a rival"
        )
    short = name.split(":")[1].lower()
    if isinstance(_load(name), type):
        return Variant(short, (f"diffusion.method={name}",))
    return Variant(short, rival=name)


def load_rival(path: str) -> Rival:
    """Import the rival at package.module:function. Raises InputError if it cannot be imported."""
    rival: Rival = _load(path)
    return rival


def _load(path: str) -> Any:
    """Import a method or a rival."""
    target = load_object(path, "--variants:")
    if isinstance(target, type) and issubclass(target, AsymmetricDiffusion):
        return target
    if isinstance(target, type) or not callable(target):
        raise InputError(f"--variants: {path}: expected a subclass of AsymmetricDiffusion or a function")
    return target
