"""The pages on HTTP name the routes and the fields that the service has."""

from __future__ import annotations

import re
from typing import Any, cast

from latentwire_service.api.access_policy import policy_of
from latentwire_service.api.openai.chat_request import ChatRequest
from latentwire_service.api.openai.routes import create_openai_router
from latentwire_service.api.routes import create_router
from latentwire_service.settings import Settings
from support.markdown import DOCS


def test_routes_are_the_services() -> None:
    rows = " ".join(DOCS["http-api.md"].column("Method and path", 0))
    documented = set(re.findall(r"(GET|POST) (/[a-z0-9_./{}]+)", rows))
    policy = policy_of(Settings(_env_file=None))
    routers = [
        cast(Any, create)(None, None, None, policy, None)
        for create in (create_router, create_openai_router)
    ]
    served = {
        (method, route.path_format)
        for router in routers
        for route in router.routes
        for method in route.methods
    }
    assert documented == served | {("GET", "/docs"), ("GET", "/openapi.json")}


def test_each_field_of_a_chat_request_is_on_its_page() -> None:
    section = DOCS["openai-api.md"].section("Request")
    named = set(re.findall(r"`(\w+)", section))
    assert set(ChatRequest.model_fields) - {"function_call", "tool_choice"} <= named
