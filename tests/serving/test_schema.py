"""The API against what its own schema lets through, and what it does not: nothing that is sent makes it fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from tests.decoding import ScriptedStepper
from tests.serving.kit import arguments, ensemble, idle, speller, until

from trimtab.serving.replica import Replica
from trimtab.serving.tokenwise import Tokenwise
from trimtab.serving.web import web

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def duo() -> Iterator[Tokenwise]:
    one = ensemble({name: ScriptedStepper(speller(text), 2, 100) for name, text in (("base", "yes"), ("helper", "no"))})
    yield one
    one.close()


@pytest.fixture(scope="module")
def schema(duo: Tokenwise) -> Any:
    guide = {"kind": "genarm", "alpha": 0.5}
    ensembles = {"duo": {"base": "base", "helpers": ["helper"], "guide": guide}}
    args = arguments(ensembles, limits={"max_tokens": 20, "n": 3}, api_keys_env="SOME_KEYS")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SOME_KEYS", "one")
        app = web(args, {"duo": Replica(duo)})
    return schemathesis.openapi.from_asgi("/openapi.json", app)


KEY = {"Authorization": "Bearer one"}
GET = ["/health", "/ready", "/metrics", "/version", "/v1/models", "/v1/models/{model}"]
POST = ["/v1/chat/completions", "/v1/completions", "/v1/score"]
VALID, INVALID = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
TRIED = [(path, VALID) for path in GET] + [(path, mode) for path in POST for mode in (VALID, INVALID)]


def test_every_route_is_tried(schema: Any) -> None:
    found = [one.ok() for one in schema.get_all_operations()]
    assert {(one.method, one.path) for one in found} == {("get", path) for path in GET} | {
        ("post", path) for path in POST
    }


@pytest.mark.parametrize(("path", "mode"), TRIED, ids=lambda one: getattr(one, "value", one))
def test_nothing_makes_it_fail(schema: Any, duo: Tokenwise, path: str, mode: Any) -> None:
    strategy = schema[path]["POST" if path in POST else "GET"].as_strategy(generation_mode=mode)
    statuses = set()

    @settings(max_examples=50, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=strategy)
    def tried(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "duo"
            if path == "/v1/score":
                case.body["prompt"] = None if case.body.get("messages") else "say:"
        statuses.add(case.call_and_validate(headers=KEY, checks=[not_a_server_error]).status_code)

    tried()
    assert {True: 400, False: 200}[mode is INVALID] in statuses or path == "/v1/models/{model}"
    until(lambda: idle(duo))
