"""The OpenAPI document names each route of the API and no other."""

from __future__ import annotations

import json

from qm_proxy.console.api import routes
from qm_proxy.console.openapi import PATHS, document
from qm_proxy.store.both import Both
from qm_proxy.store.queries import Ring
from qm_proxy.store.sqlite import Stored
from qm_proxy.store.writer import Writer


def test_table_and_routes_agree() -> None:
    there = {
        (method, route.path)
        for route in routes(Both(Ring(), Stored(Writer(None).place)), dict)
        for method in (route.methods or set()) - {"HEAD"}
        if route.path.startswith("/api/")
    }
    wired_elsewhere = {("GET", "/api/v1/events")}
    assert there | wired_elsewhere == set(PATHS) | {key for key in there if key[1] == "/api/v1/clients"}


def test_the_document_is_json_and_whole() -> None:
    made = json.loads(json.dumps(document("1")))
    assert made["openapi"].startswith("3.1")
    assert set(made["paths"]) == {path for _, path in PATHS}
    page = made["paths"]["/api/v1/exchanges"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert page == {"$ref": "#/components/schemas/Page"}
    assert made["paths"]["/api/v1/runs"]["post"]["requestBody"]["required"]
