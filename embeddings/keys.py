"""How TorchRec names the parameters of a look-up."""

from __future__ import annotations


def table_of(key: str) -> str:
    """The table of a key such as `PATH.embedding_bags.TABLE.weight`; no table has a dot in its name."""
    return key.split(".")[-2]
