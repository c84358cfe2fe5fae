"""A short look for requests that the server's own description allows and that break it."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CHECKS, load_all_checks

from tests.serve.servers import Served

WANTED = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


def test_no_request_breaks_it(served: Served) -> None:
    load_all_checks()
    checks = [CHECKS.get_one(name) for name in WANTED]
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=15,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def attack(case: Any) -> None:
            nonlocal tried
            tried += 1
            if isinstance(case.body, dict) and "max_tokens" in case.body:
                case.body["max_tokens"] = 2
            response = case.call(timeout=60)
            if response.status_code != 503:
                case.validate_response(response, checks=checks)

        operation.as_strategy()
        from hypothesis import given

        given(case=operation.as_strategy())(attack)()
    assert tried > 100
