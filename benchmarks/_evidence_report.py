"""Write docs/evidence.md from the comparisons in results/evidence/."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asymdiffrec.trainer.experiments.page import draw_figure
from asymdiffrec.trainer.experiments.text import metric_rows
from asymdiffrec.trainer.experiments.variants import BUILT_IN
from asymdiffrec.trainer.metrics import METRICS
from benchmarks._result import Result

DOCS = Path(__file__).parents[1] / "docs"
INTRODUCTION = """# Evidence

Does the method help, and when? Every variant and rival was trained on the same rows with the same budget, once per
seed, and evaluated on the same test samples with fields dropped at random.

The first row of a table has the metric of the reference. The other rows have differences from it, with simultaneous
95 % confidence intervals: with a probability of 95 % every interval of the table contains its true difference (paired
bootstrap over users and seeds, corrected for the number of differences). A star marks an interval without 0: the
difference is significant.

`make evidence DATA=FOLDER` runs everything again; FOLDER has `movielens-100k/` and `adult/`.
`python -m benchmarks.evidence --report` writes this page from `benchmarks/results/evidence/`.
"""
DESCRIPTIONS = {
    "oracle": "the probability of a click given the recorded fields, computed by the log's generator: the optimum",
    "boosting": "gradient boosted trees with native missing values, on the fields and on counts and rates of their ids",
    "boosting_dropped": "boosting, trained on the rows and on copies of the rows with dropped fields",
    "autoencoder": "a denoising autoencoder before the extractor computes the vectors of missing fields",
    "tuned": "the settings that `tune` chose on the validation rows",
    "contrastive": "augment, with InfoNCE between the latents of both views",
}
"""Descriptions of the variants that `compare` does not define"""


def write_report(documents: Mapping[str, Mapping[str, Any]], claims: Sequence[Result], docs: Path = DOCS) -> None:
    """Write the page and its figures from the comparisons of all studies."""
    docs.mkdir(exist_ok=True)
    parts = [INTRODUCTION, _claims(claims), _variants(documents)]
    for name, document in documents.items():
        draw_figure(document).savefig(docs / f"evidence-{name}.png", dpi=80)
        parts.append("\n".join(_study(name, document)))
    (docs / "evidence.md").write_text("\n".join(parts))


def _claims(claims: Sequence[Result]) -> str:
    lines = ["## Claims", ""]
    lines += _table(
        ("claim", "value", "peer", "peer's value", "difference", "goal", "holds"),
        [
            (
                claim.name,
                f"{claim.value:.4f}",
                claim.peer,
                f"{claim.peer_value:.4f}",
                f"{claim.value - claim.peer_value:+.4f}",
                claim.goal,
                "yes" if claim.holds else "**no**",
            )
            for claim in claims
            if claim.goal
        ],
    )
    return "\n".join(lines)


def _variants(documents: Mapping[str, Mapping[str, Any]]) -> str:
    descriptions = {name: variant.description for name, variant in BUILT_IN.items()} | DESCRIPTIONS
    names = dict.fromkeys(variant for document in documents.values() for variant in document["variants"])
    lines = _table(("name", "description"), [(name, descriptions[name]) for name in names])
    return "\n".join(["## Variants", "", *lines])


def _study(name: str, document: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {document['title']}"
    yield ""
    yield f"{document['rows']:,} test rows, {document['seeds']} seeds, {document['machine']}. AUC:"
    yield ""
    yield from _differences(document, "auc", "base")
    if document["diverged"]:
        diverged = ", ".join(document["diverged"])
        yield f"Diverged: {diverged}. Evaluated at the best saved step; if no step was saved, with constant scores."
        yield ""
    if tuning := document.get("tuning"):
        settings = ", ".join(
            f"{path.removeprefix('diffusion.')} {json.dumps(value)}" for path, value in tuning["chosen"].items()
        )
        yield f"In {tuning['trials']} trainings `tune` chose {settings}. Reason: {tuning['reason']}."
        yield ""
    yield f"![curves](evidence-{name}.png)"
    yield ""
    for metric in ("gauc", "log_loss"):
        if any(result[metric] is not None for result in document["results"]):
            yield f"{METRICS[metric].heading}:"
            yield ""
            yield from _differences(document, metric, "base")
    for reference in ("augment", "boosting_dropped"):
        if any(cell["from"] == reference for cell in document["differences"]):
            yield f"AUC, differences from {reference}:"
            yield ""
            yield from _differences(document, "auc", reference)


def _differences(document: Mapping[str, Any], metric: str, reference: str) -> Iterator[str]:
    """Yield the lines of a table in the format of `compare`: a metric, and its differences from a reference."""
    headings = ["", *(scenario["scenario"] for scenario in document["scenarios"])]
    cells = [cell for cell in document["differences"] if cell["from"] == reference]
    yield from _table(headings, metric_rows({**document, "reference": reference, "differences": cells}, metric))


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    texts = [headings, ["---"] * len(headings), *lines]
    return [*(f"| {' | '.join(line)} |" for line in texts), ""]
