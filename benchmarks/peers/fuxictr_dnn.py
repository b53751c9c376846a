"""Train FuxiCTR's DNN on the batches of a file: one epoch for each line on standard input.

`benchmarks._fuxictr` runs this program in an environment that has FuxiCTR.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import Tensor


class DNN(BaseModel):
    """The DNN of FuxiCTR's model zoo, built from the layers of its package. The package has no model zoo."""

    def __init__(self, features: FeatureMap, dim: int, hidden: list[int], **settings: object) -> None:
        super().__init__(features, **settings)
        self.embedding_layer = FeatureEmbedding(features, dim)
        self.mlp = MLP_Block(
            input_dim=dim * features.num_fields,
            output_dim=1,
            hidden_units=hidden,
            hidden_activations="ReLU",
            output_activation=self.output_activation,
        )

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the predictions of a batch."""
        return {"y_pred": self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True))}


def make_model(fields: list[str], rows: int, dim: int, hidden: list[int], learning_rate: float) -> BaseModel:
    """Return a DNN with one table per field. A table has `rows` + 1 rows; row 0 is for missing ids."""
    features = FeatureMap("clicks", ".")
    spec = {"source": "", "type": "categorical", "padding_idx": 0, "vocab_size": rows + 1}
    features.features = OrderedDict((name, dict(spec)) for name in fields)
    features.labels, features.num_fields, features.total_features = ["label"], len(fields), len(fields) * (rows + 1)
    features.default_emb_dim = dim
    features.set_column_index()
    dnn = DNN(features, dim, hidden, metrics=["AUC"], verbose=0, model_root=".")
    dnn.compile("adam", "binary_crossentropy", learning_rate)
    return dnn


def main() -> None:
    """Train one epoch for each line on standard input; the arguments name the file with the batches and the sizes."""
    arguments = json.loads(sys.argv[1])
    file = np.load(arguments.pop("batches"))
    dnn = make_model(**arguments)
    dnn._max_gradient_norm = 10.0  # as in BaseModel.fit
    dnn.train()
    names = [*arguments["fields"], "label"]
    batches = [
        {name: torch.from_numpy(values) for name, values in zip(names, [*ids, label], strict=True)}
        for ids, label in zip(file["ids"], file["label"], strict=True)
    ]
    print("ready", flush=True)
    for _ in sys.stdin:
        for batch in batches:
            dnn.train_step(batch)
        print("done", flush=True)


if __name__ == "__main__":
    main()
