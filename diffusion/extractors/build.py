"""Build the extractor that a config names: a built-in or a user-defined class."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator

from asymdiffrec.base import Config, InputError
from asymdiffrec.diffusion.extractors.base import Extractor
from asymdiffrec.diffusion.extractors.dcn import DCN, DCNConfig
from asymdiffrec.diffusion.extractors.deepfm import DeepFM, DeepFMConfig
from asymdiffrec.diffusion.extractors.dlrm import DLRM, DLRMConfig
from asymdiffrec.diffusion.extractors.mlp import MLP, MLPConfig
from asymdiffrec.diffusion.user_classes import CLASS_PATH, load_class

EXTRACTORS: dict[str, type[Extractor]] = {"mlp": MLP, "dcn": DCN, "deepfm": DeepFM, "dlrm": DLRM}


class UserExtractorConfig(Config):
    """A user-defined extractor class."""

    name: str = Field(description="package.module:Class, a subclass of Extractor that Python can import")
    options: dict[str, Any] = Field(default={}, description="settings of the class, passed by keyword")

    @field_validator("name")
    @classmethod
    def _check_class_path(cls, name: str) -> str:
        if not CLASS_PATH.fullmatch(name):
            raise ValueError(f"found {name!r}, allowed are {', '.join(EXTRACTORS)} and package.module:Class")
        return name


def _tag(value: Any) -> str:
    name = value.get("name", "mlp") if isinstance(value, dict) else getattr(value, "name", None)
    return name if name in EXTRACTORS else "user"


AnyExtractorConfig = Annotated[
    Annotated[MLPConfig, Tag("mlp")]
    | Annotated[DCNConfig, Tag("dcn")]
    | Annotated[DeepFMConfig, Tag("deepfm")]
    | Annotated[DLRMConfig, Tag("dlrm")]
    | Annotated[UserExtractorConfig, Tag("user")],
    Discriminator(_tag),
]


def build_extractor(config: AnyExtractorConfig, widths: Sequence[int], mask_width: int) -> Extractor:
    """Return a new extractor for fields with the widths D_n and a mask with the width `mask_width`.

    Raises InputError if the class cannot be imported or built, or does not accept the widths.
    """
    if not isinstance(config, UserExtractorConfig):
        return EXTRACTORS[config.name](widths, mask_width, **config.model_dump(exclude={"name"}))
    user_class: type[Extractor] = load_class(config.name, Extractor, "extractor")
    try:
        inspect.signature(user_class).bind(widths, mask_width, **config.options)
    except TypeError as error:
        raise InputError(f"extractor {config.name}: does not take (widths, mask_width, **options): {error}") from error
    extractor = user_class(widths, mask_width, **config.options)
    if not isinstance(getattr(extractor, "latent_dim", None), int):
        raise InputError(f"extractor {config.name}: __init__ must set latent_dim, the width of its latent")
    return extractor
