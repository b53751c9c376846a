"""Write and load exports. An export is a folder with all files that are needed to serve a model.

An export has JSON files, safetensors files and one file with the bytes of all embedding tables. `manifest.json` lists
these files with their checksums; other files in the folder are never read. Nothing in an export is unpickled or
executed, because this package rebuilds the model from its configuration. The checksums detect damage. They do not
protect against an attacker who can write to the folder.
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

from asymdiffrec.base import Config, InputError
from asymdiffrec.datasets.files.atomic import rename_folder, replace_file, require_absent, temporary_folder_for
from asymdiffrec.datasets.files.documents import validate
from asymdiffrec.datasets.schema import FieldsConfig, Schema
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.diffusion.config import DiffusionConfig, ModelConfig
from asymdiffrec.diffusion.forward import ForwardConfig
from asymdiffrec.diffusion.methods import AsymmetricDiffusion, method_class
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.managed.ids import with_id_ranges
from asymdiffrec.embeddings.serving_tables import Precision, ServedTables, write_tables
from asymdiffrec.field_layout import FieldLayout
from asymdiffrec.serving.scorer import Scorer
from asymdiffrec.serving.self_test import make_self_test

FORMAT = 3
"""Version of the export format; `load_export` reads only this version"""
MANIFEST = "manifest.json"
CONFIG = "config.json"
STATISTICS = "statistics.json"
CARD = "card.json"
DENSE = "dense.safetensors"
IDS = "ids.safetensors"
TABLES = "tables.bin"
REQUIRED_FILES = (CONFIG, STATISTICS, CARD, DENSE, TABLES)
"""Files of every export"""
ALL_FILES = (*REQUIRED_FILES, IDS)
"""Files that an export can have; only an export with managed tables has `ids.safetensors`"""
SELF_TEST = "self_test"
"""Key of the self-test in `card.json`, see `self_test.make_self_test`"""


class FileEntry(Config):
    """Checksum and size of one file of an export."""

    sha256: str
    bytes: int = Field(ge=0)


class Manifest(Config):
    """The content of `manifest.json`: the files of the export and the version of the model."""

    format: int
    package: str = Field(description="version of asymdiffrec that wrote the export")
    version: str = Field(
        description="version of the model: 12 hex digits of a checksum over the checksums of all files"
    )
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _require_known_files(self) -> Self:
        unknown = [name for name in self.files if name not in ALL_FILES]
        if unknown:
            raise ValueError(f"files.{unknown[0]}: not a file of an export; allowed are {', '.join(ALL_FILES)}")
        return self


class ExportConfig(FieldsConfig):
    """The content of `config.json`: the configuration from which the model is rebuilt."""

    name: str
    tables: TablesConfig
    model: ModelConfig
    diffusion: DiffusionConfig
    precision: Precision

    def to_schema(self, statistics: Statistics | None = None) -> Schema:
        """Return the schema, as `FieldsConfig.to_schema` does, with separate id ranges for managed tables."""
        return with_id_ranges(super().to_schema(statistics), self.tables.managed_tables)


@dataclass(frozen=True)
class Export:
    """A loaded export.

    export = load_export(Path("model"))
    Engine(export).score(table).scores
    """

    folder: Path
    manifest: Manifest
    config: ExportConfig
    schema: Schema
    card: dict[str, Any]
    """The content of `card.json`: metrics of the model and the self-test"""
    model: Scorer


def write_export(
    out: Path,
    config: ExportConfig,
    statistics: Statistics,
    dense: Mapping[str, torch.Tensor],
    tables: Mapping[str, torch.Tensor],
    ids: Mapping[str, torch.Tensor],
    make_card: Callable[[Scorer], Mapping[str, Any]],
    package: str,
) -> tuple[Manifest, Mapping[str, Any]]:
    """Write the new folder `out`, completely or not at all; return its manifest and card.

    dense: the weights of the dense part, by their names in `Scorer`.
    tables: the weights [num_embeddings, D] of each table.
    ids: the ids of each managed table.
    make_card: returns the card; its argument is the model, rebuilt from the written files.
    package: the version of asymdiffrec.

    Raises InputError if `out` exists or cannot be written.
    """
    require_absent(out)
    with temporary_folder_for(out) as temporary:
        folder = temporary / "export"
        folder.mkdir()
        replace_file(folder / CONFIG, config.model_dump_json(indent=1).encode())
        replace_file(folder / STATISTICS, statistics.model_dump_json().encode())
        replace_file(
            folder / DENSE, save_tensors({name: weight.detach().contiguous() for name, weight in dense.items()})
        )
        if ids:
            replace_file(folder / IDS, save_tensors({name: table_ids.contiguous() for name, table_ids in ids.items()}))
        schema = config.to_schema(statistics)
        write_tables(tables, schema, config.tables, config.precision, folder / TABLES)
        scorer = _build_scorer(folder, config, schema, bool(ids))
        card = {**make_card(scorer), SELF_TEST: make_self_test(scorer, schema)}
        replace_file(folder / CARD, json.dumps(card, indent=1).encode())
        files = {file.name: FileEntry(sha256=_sha256(file), bytes=file.stat().st_size) for file in folder.iterdir()}
        checksum = hashlib.sha256("".join(f"{name}{files[name].sha256}" for name in sorted(files)).encode())
        manifest = Manifest(format=FORMAT, package=package, version=checksum.hexdigest()[:12], files=files)
        replace_file(folder / MANIFEST, manifest.model_dump_json(indent=1).encode())
        rename_folder(folder, out)
    return manifest, card


def is_export(folder: Path) -> bool:
    """Return whether a folder has the manifest of an export."""
    return (folder / MANIFEST).exists()


def load_export(folder: Path, *, allow_user_classes: bool = False) -> Export:
    """Read an export, verify the checksums of all its files, and rebuild its model.

    Raises InputError if a file is missing or damaged, if the export has a format other than FORMAT, or if its model
    uses a user-defined class and `allow_user_classes` is false: importing the class executes code of its module.
    """
    manifest = _read_manifest(folder / MANIFEST)
    for name, entry in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file}: is missing, but {MANIFEST} lists it; export the run again")
        if file.stat().st_size != entry.bytes or _sha256(file) != entry.sha256:
            raise InputError(f"{file}: differs from its checksum in {MANIFEST}; it was damaged or changed")
    if absent := [name for name in REQUIRED_FILES if name not in manifest.files]:
        raise InputError(f"{folder / MANIFEST}: does not list {absent[0]}; export the run again")
    config = validate(ExportConfig, _read_json(folder / CONFIG), str(folder / CONFIG))
    schema = config.to_schema(validate(Statistics, _read_json(folder / STATISTICS), str(folder / STATISTICS)))
    user_classes = [name for name in (config.diffusion.method, config.model.extractor.name) if ":" in name]
    if user_classes and not allow_user_classes:
        raise InputError(
            f"{folder}: the model uses the user-defined class {user_classes[0]}; add --allow-user-classes to import it"
        )
    try:
        model = _build_scorer(folder, config, schema, IDS in manifest.files)
    except (InputError, RuntimeError, KeyError) as error:
        raise InputError(f"{folder}: the model cannot be rebuilt ({' '.join(str(error).split())})") from error
    return Export(folder, manifest, config, schema, _read_json(folder / CARD), model)


def _read_manifest(file: Path) -> Manifest:
    document = _read_json(file)
    if document.get("format") != FORMAT:
        raise InputError(
            f"{file}: export format {document.get('format')}, written by asymdiffrec {document.get('package')}; this "
            f"version reads format {FORMAT}; export the run again"
        )
    return validate(Manifest, document, str(file))


def _build_scorer(folder: Path, config: ExportConfig, schema: Schema, has_ids: bool) -> Scorer:
    """Build the model with the weights in the folder."""
    ids = load_tensors((folder / IDS).read_bytes()) if has_ids else {}
    tables = ServedTables(schema, config.tables, config.precision, folder / TABLES, ids)
    model = Scorer(tables, _build_diffusion(config, tables.layout))
    dense = load_tensors((folder / DENSE).read_bytes())
    for prefix, module in {"diffusion.": model.diffusion, "tables.concat.": tables.concat}.items():
        state = {key.removeprefix(prefix): weight for key, weight in dense.items() if key.startswith(prefix)}
        module.load_state_dict(state, assign=True)
    model.eval()
    return model


def _build_diffusion(config: ExportConfig, layout: FieldLayout) -> AsymmetricDiffusion:
    """Build the dense part with random weights and the default forward process, which serving does not use."""
    diffusion = config.diffusion.model_copy(update={"forward": ForwardConfig()})
    return method_class(diffusion.method)(layout, config.model, diffusion, seed=0)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; is the folder an export?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    if not isinstance(document, dict):
        raise InputError(f"{file}: found {type(document).__name__}; a JSON object is expected")
    return document


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
