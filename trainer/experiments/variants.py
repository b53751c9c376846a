"""What `compare` compares: variants of the method and parts of it, by name, and what a user adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asymdiffrec.base import InputError
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.diffusion.model import AsymmetricDiffusion
from asymdiffrec.diffusion.user_classes import CLASS_PATH, load_object
from asymdiffrec.trainer.evaluation.scenarios import Scenario
from asymdiffrec.trainer.job import Job

Rival = Callable[[Job, Statistics, Sequence[Scenario], int], np.ndarray]
"""Learns from the training split of a job by other means, with a seed; what it gives are its scores as logits for the
rows of the test split in order, [scenarios, rows]"""

_PUBLISHED = "diffusion.fields_in_denoiser=false"

NAMED: dict[str, tuple[str, str]] = {
    "base": ("diffusion.method=base", "the base model"),
    "indicators": ("diffusion.method=base diffusion.mask_in_extractor=true", "base, told which fields are missing"),
    "mean": ("diffusion.method=base diffusion.fill=mean", "base, with a field's mean vector where it is missing"),
    "dropout": ("diffusion.method=dropout", "base, trained on samples with fields dropped"),
    "augment": ("diffusion.method=augment", "on those and on samples as they are, told which fields are there"),
    "asymdiff": ("diffusion.method=asymdiff", "augment with a denoiser (AsymDiffRec, improved)"),
    "with_recon": ("diffusion.weights.recon=1", "asymdiff with a reconstruction loss, too"),
    "no_aux": ("diffusion.weights.aux=0", "asymdiff without its loss of predicting from what was denoised"),
    "no_distil": ("diffusion.weights.distil=0", "asymdiff without distillation"),
    "no_step": (
        "diffusion.mask_in_extractor=false diffusion.mask_in_denoiser=false",
        "asymdiff told of no field",
    ),
    "no_gate": ("diffusion.gate=false", "asymdiff whose denoiser changes complete samples, too"),
    "published": (
        f"{_PUBLISHED} diffusion.weights.recon=1",
        "AsymDiffRec as published: its denoiser sees the latent alone, and has a reconstruction loss",
    ),
    "no_recon": (_PUBLISHED, "published without its reconstruction loss"),
    "let_through": (
        f"{_PUBLISHED} diffusion.weights.recon=1 diffusion.detach_reconstruction=false",
        "published, and the reconstruction loss trains the extractor, too",
    ),
    "symmetric": (
        "diffusion.space=fields diffusion.weights.recon=1",
        "published, but restores the vectors of fields in place of the latent",
    ),
    "gaussian": (
        "diffusion.noise=gaussian diffusion.weights.recon=1",
        "published, but with normal noise on the latent (DiffRec)",
    ),
}
"""Settings, and what they make"""


@dataclass(frozen=True)
class Contender:
    name: str
    settings: tuple[str, ...] = ()
    rival: str | None = None
    """package.module:function of a `Rival`"""


def contenders(names: Sequence[str], defined: Sequence[str]) -> list[Contender]:
    """Those of some names: of NAMED, of `defined` (NAME:PATH=VALUE, of one name as often as it has settings), or paths,
    package.module:Class of a variant and package.module:function of a `Rival`.

    Raises InputError where a name is unknown or there twice, or where nothing is under a path.
    """
    own = _defined(defined)
    found = [_contender(name, own) for name in names]
    twice = [one.name for place, one in enumerate(found) if one.name in {other.name for other in found[:place]}]
    if twice:
        raise InputError(f"--variants: {twice[0]} is there twice")
    return found


def _defined(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    own: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, colon, setting = text.partition(":")
        if not colon or not name or "=" not in setting:
            raise InputError(f"--define {text}: expected NAME:PATH=VALUE, such as light:diffusion.weights.aux=0.3")
        own[name] = (*own.get(name, ()), setting)
    return own


def _contender(name: str, own: Mapping[str, tuple[str, ...]]) -> Contender:
    if name in own:
        return Contender(name, own[name])
    if name in NAMED:
        settings = NAMED[name][0].split()
        if not settings[0].startswith("diffusion.method="):
            settings = ["diffusion.method=asymdiff", *settings]
        return Contender(name, tuple(settings))
    if not CLASS_PATH.fullmatch(name):
        known = ", ".join([*own, *NAMED])
        raise InputError(f"--variants: {name} is unknown; there are {known}, and package.module:Class or :function")
    short = name.split(":")[1].lower()
    if isinstance(_load(name), type):
        return Contender(short, (f"diffusion.method={name}",))
    return Contender(short, rival=name)


def load_rival(path: str) -> Rival:
    found: Rival = _load(path)
    return found


def _load(path: str) -> Any:
    """Raises InputError where there is neither a variant nor a function."""
    found = load_object(path, "--variants:")
    if isinstance(found, type) and issubclass(found, AsymmetricDiffusion):
        return found
    if isinstance(found, type) or not callable(found):
        raise InputError(f"--variants: {path}: is neither a subclass of AsymmetricDiffusion nor a function")
    return found
