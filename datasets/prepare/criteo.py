"""Criteo's display advertising logs, Kaggle's and the terabyte: label, 13 numbers, 26 hexadecimal ids, no names."""

from __future__ import annotations

from asymdiffrec.datasets.prepare.table.recipe import Recipe, RecipeField, TableConfig

NUMBERS = [f"I{place}" for place in range(1, 14)]
IDS = [f"C{place}" for place in range(1, 27)]
MIN_COUNT = 10
"""Rows that an id is in to count as itself: the custom of FuxiCTR's benchmarks (Zhu et al. 2021) on Kaggle's log"""


def criteo_recipe() -> Recipe:
    """The recipe of `prepare criteo`, which lacks the files alone.

    Numbers are transformed as log(x)^2 above 2, after the winners of the Kaggle challenge (Juan et al. 2014).
    """
    fields = {name: RecipeField(type="number", transform="log_squared", group="numbers") for name in NUMBERS}
    fields |= {name: RecipeField(type="id", values="string", group="ids") for name in IDS}
    return Recipe(
        name="criteo",
        input=TableConfig(format="text", delimiter="\t", columns=["label", *NUMBERS, *IDS]),
        fields=fields,
        missing=[""],
        min_count=MIN_COUNT,
    )
