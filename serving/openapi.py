"""Build the OpenAPI document of the HTTP interface with the columns of a model, and an HTML page of this document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.protocol import ARROW, JSON

EXAMPLES: dict[str, Any] = {"integer": 1, "number": 0.5, "string": "a"}
"""Example values by JSON type"""


def openapi_document(engine: Engine, max_samples: int, needs_token: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document; a request may have at most `max_samples` samples."""
    columns = {name: column.json_schema for name, column in engine.request_schema.columns.items()}
    sample = {
        "type": "object",
        "description": "Values by column. A column that is absent or null is missing.",
        "properties": columns,
        "additionalProperties": False,
    }
    samples_by_column = {
        "type": "object",
        "description": "Lists of values by column, one value per sample; null is missing.",
        "properties": {name: {"type": "array", "items": schema} for name, schema in columns.items()},
        "additionalProperties": False,
    }
    samples = {
        "oneOf": [
            {"type": "array", "items": _reference("Sample"), "maxItems": max_samples},
            _reference("SamplesByColumn"),
        ]
    }
    scores = {"type": "array", "items": {"type": "number"}, "description": "Probability of label 1 for each sample"}
    version = {"type": "string", "description": "Version of the model that answered"}
    missing = {
        "type": "array",
        "items": {"type": "array", "items": {"type": "string"}},
        "description": "Names of the missing fields of each sample",
    }
    without_denoiser = {**scores, "description": "Scores of the model without its denoiser"}
    top = {
        "type": ["integer", "null"],
        "minimum": 1,
        "description": "Number of candidates to return; null or absent: all",
    }
    indices = {
        "type": "array",
        "items": {"type": "integer"},
        "description": "Indices of the candidates in the request, best first",
    }
    query = _object({"shared": _reference("Sample"), "candidates": samples, "top": top}, ["candidates"])
    ranking = _object({"version": version, "candidates": indices, "scores": scores})
    score_request = {
        "samples": samples,
        "without_denoiser": {
            "type": "boolean",
            "default": False,
            "description": "Also return scores without the denoiser",
        },
        "missing": {"type": "boolean", "default": True, "description": "Return the names of the missing fields"},
    }
    score_response = {"version": version, "scores": scores, "missing": missing, "without_denoiser": without_denoiser}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": f"asymdiffrec: {engine.export.config.name}",
            "version": engine.version,
            "description": "A field that is absent or null is missing.",
        },
        "paths": {
            "/v1/score": {
                "post": _post(
                    "Score samples: return the probability of label 1 for each sample, its missing fields, and "
                    "optionally its score without the denoiser",
                    _object(score_request, ["samples"]),
                    _object(score_response),
                )
            },
            "/v1/rank": {
                "post": _post(
                    "Rank candidates that share some columns, best candidate first; the shared columns are computed "
                    "once. The response to a list of queries is a list of rankings",
                    {"oneOf": [_reference("Query"), {"type": "array", "items": _reference("Query")}]},
                    {"oneOf": [_reference("Ranking"), {"type": "array", "items": _reference("Ranking")}]},
                )
            },
            "/v1/model": {"get": _get("Return the version, the columns of a sample, and the card of the export")},
            "/ready": {"get": _get("Return the version if a model is ready to answer, or status 503")},
            "/health": {"get": _get("Return status 200 if the process answers")},
        },
        "components": {
            "schemas": {
                "Sample": sample,
                "SamplesByColumn": samples_by_column,
                "Query": query,
                "Ranking": ranking,
            }
        },
    }
    if needs_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def docs_page(document: Mapping[str, Any], address: str) -> str:
    """Return an HTML page of an OpenAPI document, with curl commands for the server at `address`.

    The page loads nothing from other hosts, so it works without an internet connection.
    """
    columns = document["components"]["schemas"]["Sample"]["properties"]
    sample = {name: _example(schema) for name, schema in columns.items()}
    names = list(columns)
    half = len(names) // 2
    shared, candidate = ({name: sample[name] for name in part} for part in (names[:half], names[half:]))
    bodies = {
        "/v1/score": {"samples": [sample]},
        "/v1/rank": {"shared": shared, "candidates": [candidate, candidate], "top": 1},
    }
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
    rows = "".join(f"<tr><td>{escape(name)}<td>{escape(_type_name(schema))}" for name, schema in columns.items())
    return "\n".join([*parts, f"<h2>Columns of a sample</h2><table>{rows}</table>"])


def _example(schema: Mapping[str, Any]) -> Any:
    kind = schema["type"][0]
    return [EXAMPLES[schema["items"]["type"]]] if kind == "array" else EXAMPLES[kind]


def _type_name(schema: Mapping[str, Any]) -> str:
    kind = schema["type"][0]
    return f"list of {schema['items']['type']}" if kind == "array" else str(kind)


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Mapping[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    schema = {"type": "object", "properties": dict(properties)}
    return schema | {"required": required} if required else schema


def _post(summary: str, request: Mapping[str, Any], response: Mapping[str, Any]) -> dict[str, Any]:
    error = {"content": {JSON: {"schema": _object({"error": {"type": "string"}})}}}
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": request}, ARROW: {"schema": {"type": "string"}}},
        },
        "responses": {
            "200": {"description": "The response", "content": {JSON: {"schema": response}}},
            "4XX": {"description": "The request is wrong; the error says where and what is allowed", **error},
            "503": {"description": "The model is not loaded yet, or too many requests are in progress", **error},
        },
    }


def _get(summary: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "OK", "content": {JSON: {}}}}}
