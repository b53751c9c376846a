"""The interface as OpenAPI describes it, with the columns of the model that is live, and a page of it to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.protocol import ARROW, JSON

EXAMPLES: dict[str, Any] = {"integer": 1, "number": 0.5, "string": "a"}


def description(engine: Engine, most: int, token: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document; `most` samples are allowed in a request."""
    columns = {name: column.json_schema for name, column in engine.request_schema.columns.items()}
    sample = {"type": "object", "properties": columns, "additionalProperties": False}
    by_column = {
        "type": "object",
        "properties": {name: {"type": "array", "items": one} for name, one in columns.items()},
        "additionalProperties": False,
    }
    samples = {"oneOf": [{"type": "array", "items": _ref("Sample"), "maxItems": most}, _ref("SamplesByColumn")]}
    numbers = {"type": "array", "items": {"type": "number"}}
    version = {"type": "string", "description": "of the model that answered"}
    names = {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}
    top = {"type": ["integer", "null"], "minimum": 1}
    query = _object({"shared": _ref("Sample"), "candidates": samples, "top": top}, ["candidates"])
    ranking = _object(
        {"version": version, "candidates": {"type": "array", "items": {"type": "integer"}}, "scores": numbers}
    )
    scores = _object({"version": version, "scores": numbers, "missing": names, "before": numbers})
    asked = {"samples": samples, "before": {"type": "boolean"}, "missing": {"type": "boolean"}}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": f"asymdiffrec: {engine.export.config.name}",
            "version": engine.version,
            "description": "A field that is absent or null is missing.",
        },
        "paths": {
            "/v1/score": {
                "post": _operation(
                    "Probability of a 1, for each sample; which fields are missing; and, with `before`, what it would "
                    "be without the denoiser",
                    _object(asked, ["samples"]),
                    scores,
                )
            },
            "/v1/rank": {
                "post": _operation(
                    "Candidates that share some columns, the best first: what they share is computed once. A list of "
                    "queries is answered by a list",
                    {"oneOf": [_ref("Query"), {"type": "array", "items": _ref("Query")}]},
                    {"oneOf": [_ref("Ranking"), {"type": "array", "items": _ref("Ranking")}]},
                )
            },
            "/v1/model": {"get": _told("Card of what is served, and the columns of a sample")},
            "/ready": {"get": _told("Whether it serves, and which version")},
            "/health": {"get": _told("Whether it answers")},
        },
        "components": {"schemas": {"Sample": sample, "SamplesByColumn": by_column, "Query": query, "Ranking": ranking}},
    }
    if token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def page(document: Mapping[str, Any], address: str) -> str:
    """An HTML page without anything from elsewhere."""
    columns = document["components"]["schemas"]["Sample"]["properties"]
    sample = {name: _example(one) for name, one in columns.items()}
    names = list(columns)
    shared, own = (
        {name: sample[name] for name in part} for part in (names[: len(names) // 2], names[len(names) // 2 :])
    )
    bodies = {"/v1/score": {"samples": [sample]}, "/v1/rank": {"shared": shared, "candidates": [own, own], "top": 1}}
    token = " -H 'Authorization: Bearer TOKEN'" if "security" in document else ""
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{escape(document['info']['title'])}</title>",
        "<style>body{font:16px sans-serif;max-width:60em;margin:2em auto}pre{background:#eee;padding:1em;overflow:auto}"
        "</style>",
        f"<h1>{escape(document['info']['title'])}</h1>",
        f"<p>Version {escape(document['info']['version'])}. {escape(document['info']['description'])} "
        "<a href=openapi.json>openapi.json</a></p>",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(operation['summary'])}.</p>")
            body = f" -H 'content-type: {JSON}' -d '{json.dumps(bodies[path])}'" if path in bodies else ""
            parts.append(f"<pre>{escape(f'curl {address}{path}{token}{body}')}</pre>")
    rows = "".join(f"<tr><td>{escape(name)}<td>{escape(_kind(one))}" for name, one in columns.items())
    return "\n".join([*parts, f"<h2>Columns of a sample</h2><table>{rows}</table>"])


def _example(schema: Mapping[str, Any]) -> Any:
    kind = schema["type"][0]
    return [EXAMPLES[schema["items"]["type"]]] if kind == "array" else EXAMPLES[kind]


def _kind(schema: Mapping[str, Any]) -> str:
    kind = schema["type"][0]
    return f"list of {schema['items']['type']}" if kind == "array" else str(kind)


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Mapping[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    found = {"type": "object", "properties": dict(properties)}
    return found | {"required": required} if required else found


def _operation(summary: str, asked: Mapping[str, Any], answered: Mapping[str, Any]) -> dict[str, Any]:
    error = {"content": {JSON: {"schema": _object({"error": {"type": "string"}})}}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {JSON: {"schema": asked}, ARROW: {"schema": {"type": "string"}}}},
        "responses": {
            "200": {"description": "answered", "content": {JSON: {"schema": answered}}},
            "4XX": {"description": "what is wrong, with the field named", **error},
            "503": {"description": "too many requests at once, or not ready yet", **error},
        },
    }


def _told(summary: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "OK", "content": {JSON: {}}}}}
