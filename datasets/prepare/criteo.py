"""The recipe for the Criteo display advertising logs (Kaggle and 1TB): a label, 13 numbers and 26 hexadecimal ids."""

from __future__ import annotations

from asymdiffrec.datasets.prepare.table.recipe import Recipe, RecipeField, TableConfig

NUMERIC_FIELDS = [f"I{index}" for index in range(1, 14)]
ID_FIELDS = [f"C{index}" for index in range(1, 27)]
MIN_COUNT = 10
"""Ids in fewer training rows are rare; the same limit as in FuxiCTR's benchmarks on the Kaggle log (Zhu et al. 2021)"""


def criteo_recipe() -> Recipe:
    """Return the recipe of `prepare criteo` without the input files.

    Numbers x > 2 are transformed to log(x)^2, as the winners of the Kaggle challenge did (Juan et al. 2014).
    """
    fields = {name: RecipeField(type="number", transform="log_squared", group="numbers") for name in NUMERIC_FIELDS}
    fields |= {name: RecipeField(type="id", values="string", group="ids") for name in ID_FIELDS}
    return Recipe(
        name="criteo",
        input=TableConfig(format="text", delimiter="\t", columns=["label", *NUMERIC_FIELDS, *ID_FIELDS]),
        fields=fields,
        missing=[""],
        min_count=MIN_COUNT,
    )
