"""docs/evidence.md, drawn of the comparisons that were kept."""

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

Does it help, and when? Every variant and rival was trained on the same rows with the same budget, once for each seed,
and judged on the same test samples with fields dropped at random. Below each first row are differences from it ± what
all differences of the table together stay within with 95 % probability (a bootstrap over users and seeds, paired,
corrected for their number); * is more than chance. `make evidence DATA=FOLDER` runs all of it anew (FOLDER holds
`movielens-100k/` and `adult/`); `python -m benchmarks.evidence --report` draws this page of what
`benchmarks/results/evidence/` has.
"""
EXPLAINED = {
    "oracle": "the probability of a click given what is recorded, as the generator of the log knows it: the best",
    "boosting": "gradient boosted trees with native missing values, on the fields, and counts and rates of their ids",
    "boosting_dropped": "the same, trained also on copies of the rows with fields dropped",
    "autoencoder": "a denoising autoencoder before the extractor makes the vectors of missing fields",
    "tuned": "what `tune` chose on the validation rows",
    "contrastive": "augment, with InfoNCE between the latents of both views",
}


def write_report(documents: Mapping[str, Mapping[str, Any]], claims: Sequence[Result], docs: Path = DOCS) -> None:
    """Write the page and its pictures."""
    docs.mkdir(exist_ok=True)
    parts = [INTRODUCTION, _claims(claims), _variants(documents)]
    for name, document in documents.items():
        draw_figure(document).savefig(docs / f"evidence-{name}.png", dpi=80)
        parts.append("\n".join(_study(name, document)))
    (docs / "evidence.md").write_text("\n".join(parts))


def _claims(claims: Sequence[Result]) -> str:
    lines = ["## What was to be shown", ""]
    asked = [claim for claim in claims if claim.goal]
    lines += _table(
        ("what", "it", "beside", "", "difference", "asked", "holds"),
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
            for claim in asked
        ],
    )
    return "\n".join(lines)


def _variants(documents: Mapping[str, Mapping[str, Any]]) -> str:
    known = {name: variant.description for name, variant in BUILT_IN.items()} | EXPLAINED
    there = dict.fromkeys(variant for document in documents.values() for variant in document["variants"])
    return "\n".join(["## What was compared", "", *_table(("name", ""), [(name, known[name]) for name in there])])


def _study(name: str, document: Mapping[str, Any]) -> Iterator[str]:
    seeds, rows_ = document["seeds"], document["rows"]
    yield f"## {document['title']}"
    yield ""
    yield f"{rows_:,} test rows, {seeds} seeds, {document['machine']}. AUC:"
    yield ""
    yield from _differences(document, "auc", "base")
    if document["diverged"]:
        yield f"Diverged, and judged at the best step before, or else as a constant: {', '.join(document['diverged'])}."
        yield ""
    if tuning := document.get("tuning"):
        settings = ", ".join(
            f"{path.removeprefix('diffusion.')} {json.dumps(value)}" for path, value in tuning["chosen"].items()
        )
        yield f"`tune` chose, of {tuning['trials']} trainings: {settings}; for {tuning['reason']}."
        yield ""
    yield f"![curves](evidence-{name}.png)"
    yield ""
    for metric in ("gauc", "log_loss"):
        if any(one[metric] is not None for one in document["results"]):
            yield f"{METRICS[metric].heading}:"
            yield ""
            yield from _differences(document, metric, "base")
    for reference in ("augment", "boosting_dropped"):
        if any(cell["from"] == reference for cell in document["differences"]):
            yield f"AUC, from {reference}:"
            yield ""
            yield from _differences(document, "auc", reference)


def _differences(document: Mapping[str, Any], metric: str, reference: str) -> Iterator[str]:
    """As `compare` prints them."""
    headings = ["", *(one["scenario"] for one in document["scenarios"])]
    cells = [cell for cell in document["differences"] if cell["from"] == reference]
    yield from _table(headings, metric_rows({**document, "reference": reference, "differences": cells}, metric))


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    texts = [headings, ["---"] * len(headings), *lines]
    return [*(f"| {' | '.join(line)} |" for line in texts), ""]
