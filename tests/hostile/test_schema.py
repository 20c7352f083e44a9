"""Every route, with what its description allows and what it does not: as described, and never a failure of ours."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from hlo.service.openai_wire import FIXED
from tests.hostile.conftest import EXAMPLES

if TYPE_CHECKING:
    from tests.figures import Figure

pytestmark = [pytest.mark.reliability, pytest.mark.usefixtures("clean_environment")]
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
ASKED = ("/ask", "/route", "/generate", "/v1/chat/completions")
RELOAD = "/admin/specialties/reload"  # takes no input, and seconds: what is installed is looked at anew


_ASKED = {"role": "user", "content": "my heart hurts"}


def _fitting(case: Any) -> Any:
    """The request without the names and parameters that are right by the description, and yet not served here."""
    if isinstance(case.body, dict):
        kept = {name: value for name, value in case.body.items() if name not in {*FIXED, "specialty", "adapter"}}
        more: dict[str, Any] = {"model": "base", "stream_options": None} if "model" in kept else {}
        if isinstance(said := kept.get("messages"), list):
            more["messages"] = [_ASKED, *({"role": one["role"], "content": "yes"} for one in said), _ASKED]
            more["max_completion_tokens"] = None
        case.body = kept | more
    return case


def test_every_route_answers_as_it_is_described(url: str, figure: Figure) -> None:
    """Whatever is sent to any route, the answer's status, headers and body are those of the OpenAPI description."""
    schema = schemathesis.openapi.from_url(f"{url}/schema/openapi.json")
    found = [one.ok() for one in schema.get_all_operations() if isinstance(one, Ok)]
    operations = sorted(found, key=lambda one: one.path == RELOAD)
    assert {*ASKED, "/specialties", RELOAD} <= {one.path for one in operations}
    statuses: defaultdict[str, Counter[int]] = defaultdict(Counter)
    with requests.Session() as session:
        for operation in operations:
            right = operation.as_strategy()

            @settings(
                max_examples=2 if operation.path == RELOAD else max(EXAMPLES // 2, 50),
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.generate,),
            )
            @given(right | right.map(_fitting) | operation.as_strategy(GenerationMode.NEGATIVE))
            def each(case: Any) -> None:
                response = case.call_and_validate(session=session, checks=CHECKS)
                assert response.status_code != 500
                statuses[case.path][response.status_code] += 1

            wanted = {200, 400} if operation.path in ASKED else set()  # right ones and wrong ones, which chance decides
            for _ in range(5):
                each()
                if statuses[operation.path].keys() >= wanted:
                    break
            assert statuses[operation.path].keys() >= wanted, operation.path
    tried = sum(found.total() for found in statuses.values())
    figure("inputs", "requests after, and against, the OpenAPI description", tried, "all answered as described")
