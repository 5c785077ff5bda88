"""The OpenAPI document: of every route, true to what validates, fit for those who generate code from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from http_support import OPERATOR, Json, Service

from convsync.web import openapi
from convsync.web.app import create_app
from convsync.web.routing import ROUTES

DOCUMENT = openapi.document(ROUTES)
OPERATIONS = {
    (method.upper(), path): operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
DESCRIBED = [route for route in ROUTES if route.described]


def test_every_route_of_the_api_is_in_the_document() -> None:
    assert create_app is not None  # it is what registers them
    assert set(OPERATIONS) == {(route.method, route.path) for route in DESCRIBED}
    for route in DESCRIBED:
        operation = OPERATIONS[route.method, route.path]
        assert route.answers, f"{route.method} {route.path} does not say what it answers"
        assert operation["summary"], f"{route.method} {route.path} does not say what it is for"
        assert any(int(status) < 400 for status in operation["responses"])
        if route.path.startswith("/api/") and route.access != "public":
            assert route.query is not None, f"{route.path} passes over what it does not know"


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)
    assert all(len(name) > 5 for name in names)


def test_what_guards_a_route_is_what_the_document_says() -> None:
    for route in DESCRIBED:
        operation = OPERATIONS[route.method, route.path]
        schemes = [scheme for one in operation["security"] for scheme in one]
        assert set(schemes) <= set(DOCUMENT["components"]["securitySchemes"])
        if route.access == "public":
            assert schemes == (["signature"] if route.signed else [])
            assert "401" not in operation["responses"]
        else:
            assert "key" in schemes
            assert ("session" in schemes) == (route.method == "GET")
            assert {"401", "429"} <= set(operation["responses"])
        assert ("403" in operation["responses"]) >= (route.access == "operate")


def test_every_error_is_a_problem_document_with_the_codes_it_may_have() -> None:
    for (method, path), operation in OPERATIONS.items():
        for status, answer in operation["responses"].items():
            if int(status) < 400 or (path, status) == ("/readyz", "503"):
                continue
            answer = DOCUMENT["components"]["responses"][answer["$ref"].rpartition("/")[2]]
            [(media_type, content)] = answer["content"].items()
            assert media_type == "application/problem+json", (method, path)
            _, own = content["schema"]["allOf"]
            assert own["properties"]["status"] == {"const": int(status)}
            assert own["properties"]["code"]["enum"]
            assert ("Retry-After" in answer["headers"]) == (status in ("429", "503"))
            assert answer["description"]


def references(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    used = set(references(DOCUMENT))
    for reference in used:
        part: Any = DOCUMENT
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]
        assert part
    for kind in ("schemas", "responses", "headers"):
        for name in DOCUMENT["components"][kind]:
            assert f"#/components/{kind}/{name}" in used


def parameter(method: str, path: str, name: str) -> Json:
    [found] = [one for one in OPERATIONS[method, path]["parameters"] if one["name"] == name]
    return dict(found)


def test_parameters_are_those_of_the_models_that_validate() -> None:
    limit = parameter("GET", "/api/pages/{page_id}/conversations", "limit")
    assert (limit["in"], limit["required"]) == ("query", False)
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}
    run = parameter("GET", "/api/conversations/sync-stream", "run_id")
    assert (run["in"], run["required"], run["schema"]["type"]) == ("query", True, "string")
    number = parameter("PATCH", "/api/pages/{page_id}/conversations/{conversation_id}", "conversation_id")
    assert (number["in"], number["required"], number["schema"]["type"]) == ("path", True, "string")
    match = parameter("PATCH", "/api/pages/{page_id}/conversations/{conversation_id}", "If-Match")
    assert (match["in"], match["required"]) == ("header", True)
    resolved = parameter("GET", "/api/dead-letters", "resolved")
    assert resolved["schema"] == {"type": "boolean", "default": False}
    since = parameter("GET", "/api/pages/{page_id}/checksum", "from")
    assert since["schema"] == {"type": "string", "format": "date-time"}
    names = {one["name"] for one in OPERATIONS["GET", "/api/changes/stream"]["parameters"]}
    assert names == {"after", "Last-Event-ID"}


def test_bodies_are_those_of_the_models_that_validate() -> None:
    body = OPERATIONS["POST", "/api/conversations/sync"]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/NewSync"}
    schema = DOCUMENT["components"]["schemas"]["NewSync"]
    assert (schema["required"], schema["additionalProperties"]) == (["page_id"], False)
    assert set(schema["properties"]) == {"page_id", "mode", "deadline_seconds", "restart"}
    assert schema["properties"]["mode"]["enum"] == ["full", "incremental", "reconcile"]


async def test_the_document_is_served_with_its_tag(service: Service) -> None:
    async with service.client.get("/openapi.json", headers=OPERATOR) as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert await answer.json() == json.loads(json.dumps(DOCUMENT))
        tag = answer.headers["ETag"]
    async with service.client.get("/openapi.json", headers={**OPERATOR, "If-None-Match": tag}) as answer:
        assert (answer.status, await answer.read(), answer.headers["ETag"]) == (304, b"", tag)


@pytest.mark.parametrize("word", ["convsync.web", "pydantic", "p_page_id", "psycopg"])
def test_the_document_speaks_of_the_api_alone(word: str) -> None:
    assert word not in json.dumps(DOCUMENT)
