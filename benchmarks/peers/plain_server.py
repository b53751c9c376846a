"""A simple server for an export, as a peer: FastAPI, pydantic bodies, and an embedding bag for each field.

python -m benchmarks.peers.plain_server EXPORT PORT VOCABULARY

VOCABULARY is a JSON file: {column: {string: row of the embedding table}}.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, create_model
from torch import nn

from asymdiffrec.datasets.schema import IdListConfig, Schema
from asymdiffrec.serving.export import load_export
from asymdiffrec.serving.request_schema import RequestSchema


class PlainModel(nn.Module):
    """The exported model, with its fp32 tables as `nn.EmbeddingBag` modules."""

    def __init__(self, folder: Path, vocabulary: dict[str, dict[str, int]]) -> None:
        super().__init__()
        export = load_export(folder)
        self.schema, self.vocabulary = export.schema, vocabulary
        self.diffusion, self.numbers = export.model.diffusion, export.model.tables.concat.numeric
        tables = dict(zip(export.model.tables.operator.feature_names, _weights(export.model.tables), strict=True))
        self.bags = nn.ModuleDict()
        for name, field in self.schema.sparse.items():
            mode = "mean" if isinstance(field, IdListConfig) and field.pooling == "mean" else "sum"
            self.bags[name] = nn.EmbeddingBag.from_pretrained(tables[self.schema.table_of(name).name], mode=mode)
        self.moments = {name: self.schema.numeric_statistics(name) for name in self.schema.numeric}

    @torch.inference_mode()
    def forward(self, samples: list[dict[str, Any]]) -> list[float]:
        """Return the score of each sample."""
        vectors, missing = [], []
        for name, field in self.schema.sparse.items():
            column = self.schema.column(name)
            ids: list[int] = []
            offsets, absent = [], []
            for sample in samples:
                offsets.append(len(ids))
                value = sample[column]
                values = [] if value is None else value if isinstance(field, IdListConfig) else [value]
                if column in self.vocabulary:
                    rows = self.vocabulary[column]
                    values = [rows[text] for text in values if text in rows]
                absent.append(not values)
                ids += values
            vectors.append(self.bags[name](torch.tensor(ids, dtype=torch.int64), torch.tensor(offsets)))
            missing.append(absent)
        scaled = []
        for name, moments in self.moments.items():
            values = [sample[self.schema.column(name)] for sample in samples]
            missing.append([value is None for value in values])
            scaled.append([0.0 if value is None else (value - moments.mean) / moments.std for value in values])
        absent_all = torch.tensor(missing).t()
        if self.numbers is not None:
            vectors.append(self.numbers(torch.tensor(scaled).t(), absent_all[:, len(self.schema.sparse) :]))
        scores: list[float] = self.diffusion.score(torch.cat(vectors, 1), absent_all).sigmoid().tolist()
        return scores


def _weights(tables: Any) -> list[torch.Tensor]:
    """Return the weights of each table, [num_embeddings, D] fp32."""
    weights = []
    for offset, (_, rows, dim, _, _) in zip(
        tables.operator.weights_physical_offsets, tables.operator.embedding_specs, strict=True
    ):
        weights.append(tables.bytes[offset : offset + 4 * rows * dim].view(torch.float32).view(rows, dim).clone())
    return weights


def sample_model(schema: Schema) -> type[BaseModel]:
    """Return a pydantic model for a sample. Every column may be null."""
    kinds = {
        name: (list[column.kind] if column.is_list else column.kind)  # type: ignore[name-defined]
        for name, column in RequestSchema(schema).columns.items()
    }
    fields: dict[str, Any] = {name: (kind | None, None) for name, kind in kinds.items()}
    return create_model("Sample", **fields)


def application(model: PlainModel) -> FastAPI:
    """Return an application that answers POST /score."""
    app = FastAPI()
    sample = sample_model(model.schema)
    body_model = create_model("Body", samples=(list[sample], ...))  # type: ignore[valid-type]

    @app.post("/score")
    def score(body: body_model) -> dict[str, list[float]]:
        return {"scores": model([sample.model_dump() for sample in body.samples])}  # type: ignore[attr-defined]

    return app


if __name__ == "__main__":
    torch.set_num_threads(1)
    export, port, vocabulary = sys.argv[1:]
    model = PlainModel(Path(export), json.loads(Path(vocabulary).read_text()))
    uvicorn.run(application(model), port=int(port), log_level="warning")
