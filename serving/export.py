"""A folder that serves by itself: what `export` leaves and serving hosts are handed.

JSON, safetensors and one file of table bytes; a manifest names them with their checksums, and nothing else is read.
Nothing in it is unpickled or executed: the model is rebuilt by this package. Checksums detect damage, not malice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from asymdiffrec.base import Config, InputError
from asymdiffrec.datasets.files.atomic import rename_folder, replace_file, require_absent, temporary_folder_for
from asymdiffrec.datasets.files.documents import validate
from asymdiffrec.datasets.schema import FieldsConfig, Schema
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.diffusion.config import DiffusionConfig, ModelConfig
from asymdiffrec.diffusion.forward import ForwardConfig
from asymdiffrec.diffusion.model import AsymmetricDiffusion, method_class
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.managed.ids import with_id_ranges
from asymdiffrec.embeddings.serving_tables import Precision, ServedTables, write_tables
from asymdiffrec.field_layout import FieldLayout
from asymdiffrec.serving.self_test import make_self_test

FORMAT = 2
MANIFEST = "manifest.json"
CONFIG, LEARNED, CARD, DENSE, IDS, TABLES = (
    "config.json",
    "schema.json",
    "card.json",
    "dense.safetensors",
    "ids.safetensors",
    "tables.bin",
)


class FileEntry(Config):
    sha256: str
    bytes: int = Field(ge=0)


class Manifest(Config):
    """`manifest.json`: what the folder holds, and which version of a model that is."""

    format: int
    package: str = Field(description="version of this package that wrote it")
    version: str = Field(description="of the model: the first digits of the checksum of all checksums")
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _names_files_of_its_own(self) -> Self:
        wrong = [name for name in self.files if name not in (CONFIG, LEARNED, CARD, DENSE, IDS, TABLES)]
        if wrong:
            raise ValueError(f"files.{wrong[0]}: no file of an export")
        return self


class ExportConfig(FieldsConfig):
    """`config.json`: all that the model is made of beside its weights."""

    name: str
    tables: TablesConfig
    model: ModelConfig
    diffusion: DiffusionConfig
    precision: Precision

    def to_schema(self, statistics: Statistics | None = None) -> Schema:
        """As `FieldsConfig.to_schema`; ids of managed tables keep apart."""
        return with_id_ranges(super().to_schema(statistics), self.tables.managed_tables)


LARGEST = 128
"""Samples that machine code is used for: while it runs no other thread of Python does, and beyond it gains little"""


@dataclass(frozen=True)
class Compiled:
    """Machine code for parts of a `Scorer`."""

    join: Callable[..., torch.Tensor]
    """`ServedTables.join`, of rankings too"""
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """`AsymmetricDiffusion.score`"""


class Scorer(nn.Module):
    """A model that scores, on CPU, by tables that are mapped from a file."""

    def __init__(self, tables: ServedTables, diffusion: AsymmetricDiffusion) -> None:
        super().__init__()
        self.tables, self.diffusion = tables, diffusion
        self.compiled: Compiled | None = None

    def vectors(self, batch: Any) -> torch.Tensor:
        """x [B, sum D_n] of a `Batch`"""
        code = self.compiled if len(batch) <= LARGEST else None
        join = code.join if code else self.tables.join
        return join(*self.tables.look_up(batch))

    def logits(self, x: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        """[B] of x [B, sum D_n] and missing [B, N]: f(g([m, h(x), x]))"""
        code = self.compiled if len(x) <= LARGEST else None
        return (code or self.diffusion).score(x, missing)

    def score(self, batch: Any) -> torch.Tensor:
        """Logits [B] of a `Batch`"""
        return self.logits(self.vectors(batch), batch.missing)


@dataclass(frozen=True)
class Export:
    """A loaded export."""

    folder: Path
    manifest: Manifest
    config: ExportConfig
    schema: Schema
    card: dict[str, Any]
    model: Scorer


def write_export(
    out: Path,
    config: ExportConfig,
    statistics: Statistics,
    dense: Mapping[str, torch.Tensor],
    tables: Mapping[str, torch.Tensor],
    ids: Mapping[str, torch.Tensor],
    card_of: Callable[[Scorer], Mapping[str, Any]],
    package: str,
) -> tuple[Manifest, Mapping[str, Any]]:
    """Write the new folder `out`: whole, or not at all; its manifest and card.

    `dense` are the weights beside the tables, by their names in `Scorer`; `tables` the weights [rows, D] of each table
    and `ids` those of each managed one; `card_of` makes the card of the model as it is rebuilt from what is written.
    Raises InputError where `out` exists or cannot be written.
    """
    require_absent(out)
    with temporary_folder_for(out) as temporary:
        folder = temporary / "export"
        folder.mkdir()
        replace_file(folder / CONFIG, config.model_dump_json(indent=1).encode())
        replace_file(folder / LEARNED, statistics.model_dump_json().encode())
        replace_file(
            folder / DENSE, save_tensors({name: weight.detach().contiguous() for name, weight in dense.items()})
        )
        if ids:
            replace_file(folder / IDS, save_tensors({name: own.contiguous() for name, own in ids.items()}))
        schema = config.to_schema(statistics)
        write_tables(tables, schema, config.tables, config.precision, folder / TABLES)
        scorer = _scorer(folder, config, schema, bool(ids))
        card = {**card_of(scorer), "check": make_self_test(scorer, schema)}
        replace_file(folder / CARD, json.dumps(card, indent=1).encode())
        files = {file.name: FileEntry(sha256=_sha256(file), bytes=file.stat().st_size) for file in folder.iterdir()}
        together = hashlib.sha256("".join(f"{name}{files[name].sha256}" for name in sorted(files)).encode())
        manifest = Manifest(format=FORMAT, package=package, version=together.hexdigest()[:12], files=files)
        replace_file(folder / MANIFEST, manifest.model_dump_json(indent=1).encode())
        rename_folder(folder, out)
    return manifest, card


def is_export(folder: Path) -> bool:
    """Whether a folder looks like an export."""
    return (folder / MANIFEST).exists()


def load_export(folder: Path, *, allow_user_classes: bool = False) -> Export:
    """Read an export, every byte of it, and rebuild its model.

    Raises InputError with one line where something is missing, damaged, of another kind, or where the model is of a
    class of somebody's own and `own_classes` does not allow to import it.
    """
    manifest = validate(Manifest, _json(folder / MANIFEST), str(folder / MANIFEST))
    if manifest.format != FORMAT:
        raise InputError(f"{folder}: an export of format {manifest.format}; this package reads format {FORMAT}")
    for name, entry in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file}: is missing; the manifest names it")
        if file.stat().st_size != entry.bytes or _sha256(file) != entry.sha256:
            raise InputError(f"{file}: is not what was exported; it was damaged or altered")
    lacking = [name for name in (CONFIG, LEARNED, CARD, DENSE, TABLES) if name not in manifest.files]
    if lacking:
        raise InputError(f"{folder / MANIFEST}: names no {lacking[0]}")
    config = validate(ExportConfig, _json(folder / CONFIG), str(folder / CONFIG))
    schema = config.to_schema(validate(Statistics, _json(folder / LEARNED), str(folder / LEARNED)))
    classes = [name for name in (config.diffusion.method, config.model.extractor.name) if ":" in name]
    if classes and not allow_user_classes:
        raise InputError(f"{folder}: its model is {classes[0]}, a class to import; --allow-user-classes allows it")
    try:
        model = _scorer(folder, config, schema, IDS in manifest.files)
    except (InputError, RuntimeError, KeyError) as error:
        raise InputError(f"{folder}: cannot be rebuilt ({' '.join(str(error).split())})") from error
    return Export(folder, manifest, config, schema, _json(folder / CARD), model)


def _scorer(folder: Path, config: ExportConfig, schema: Schema, has_ids: bool) -> Scorer:
    """Of the weights in the folder."""
    ids = load_tensors((folder / IDS).read_bytes()) if has_ids else {}
    tables = ServedTables(schema, config.tables, config.precision, folder / TABLES, ids)
    model = Scorer(tables, _diffusion(config, tables.layout))
    dense = load_tensors((folder / DENSE).read_bytes())
    for name, module in {"diffusion.": model.diffusion, "tables.concat.": tables.concat}.items():
        own = {key.removeprefix(name): weight for key, weight in dense.items() if key.startswith(name)}
        module.load_state_dict(own, assign=True)
    model.eval()
    return model


def _diffusion(config: ExportConfig, layout: FieldLayout) -> AsymmetricDiffusion:
    """The dense part, as yet with drawn weights; its forward process, which only training uses, is any."""
    settings = config.diffusion.model_copy(update={"forward": ForwardConfig()})
    return method_class(settings.method)(layout, config.model, settings, seed=0)


def _json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; is it the folder of an export?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    if not isinstance(document, dict):
        raise InputError(f"{file}: found {type(document).__name__}; a JSON object is expected")
    return document


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
