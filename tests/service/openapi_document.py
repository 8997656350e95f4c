"""The OpenAPI document of the service, as it is committed: `make openapi` writes it anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentwire_service.app import create_app
from latentwire_service.metrics import Metrics
from latentwire_service.policy import policy_of
from latentwire_service.serving import Serving
from latentwire_service.settings import Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"


def generated() -> dict[str, Any]:
    """What a service with default settings shows at `/openapi.json`."""
    settings, metrics = Settings(_env_file=None), Metrics()
    serving = Serving(settings, metrics, "0.0.0", lambda: None)
    return create_app(serving, metrics, policy_of(settings), "0.0.0").openapi()


def render(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(render(generated()))
