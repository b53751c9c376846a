"""The `model:` and `diffusion:` sections of the job file, and the imports of diffusion/."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from asymdiffrec.diffusion.config import DiffusionConfig, ModelConfig


@pytest.mark.parametrize(
    "config",
    [{"method": "diffrec"}, {"weights": {"recon": -1}}, {"weights": {"rec": 1}}, {"denoiser_hidden": 0}, {"steps": 3}],
)
def test_wrong_values_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DiffusionConfig.model_validate(config)


def test_every_key_is_described() -> None:
    def undescribed(schema: dict[str, Any]) -> list[str]:
        names = [
            f"{schema.get('title')}.{name}"
            for name, key in schema.get("properties", {}).items()
            if "description" not in key and "const" not in key
        ]
        return names + [name for inner in schema.get("$defs", {}).values() for name in undescribed(inner)]

    for config in (ModelConfig, DiffusionConfig):
        assert undescribed(config.model_json_schema()) == []


def test_import_needs_neither_torchrec_nor_scipy() -> None:
    program = (
        "import sys; sys.modules.update(torchrec=None, fbgemm_gpu=None, scipy=None); "
        "import asymdiffrec.diffusion.methods, asymdiffrec.diffusion.extractors.build"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
