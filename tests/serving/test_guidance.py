"""The `guidance` of a request: what it may change, and what it is told where it may not."""

from __future__ import annotations

import re
from typing import Any

import pytest

from trimtab.methods.guides.contrastive import Contrastive
from trimtab.methods.guides.ensemble import Ensemble
from trimtab.methods.guides.genarm import GenArm
from trimtab.methods.guides.proxy import Proxy
from trimtab.serving.answer import Refused
from trimtab.serving.cards import card, cards
from trimtab.serving.config import GuidedArgs
from trimtab.serving.guidance import Alone, flat, steering

ARGS = GuidedArgs.model_validate(
    {
        "models": dict.fromkeys(["base", "kind", "polite", "small"], "nowhere/none"),
        "ensembles": {
            "two": {
                "base": "base",
                "helpers": ["kind", "polite"],
                "guide": {"kind": "genarm", "alpha": 0.5},
                "ranges": {"alpha": [0, 2]},
                "description": "two helpers",
            },
            "one": {"base": "base", "helpers": ["small"], "guide": {"kind": "contrastive", "coef": 0.5}},
            "plain": {"base": "base"},
        },
    }
)


def guide(model: str, **asked: Any) -> Any:
    return steering(ARGS, model, asked).guide


def refusal(model: str, **asked: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        steering(ARGS, model, asked)
    return caught.value


def test_nothing_asked_is_the_ensembles_own_guide() -> None:
    assert guide("two") == GenArm(alpha=0.5)
    assert guide("one") == Contrastive(coef=0.5)
    assert guide("plain") is None
    assert guide("two", method=None, alpha=None) == GenArm(alpha=0.5)


def test_numbers_change_the_own_guide_and_another_method_starts_from_its_own_defaults() -> None:
    assert guide("two", alpha=1.5, normalize=True) == GenArm(alpha=1.5, normalize=True)
    assert guide("two", alpha=[0.2, 1.4]) == GenArm(alpha=(0.2, 1.4))
    assert guide("two", method="genarm", normalize=True) == GenArm(alpha=0.5, normalize=True)
    assert guide("two", method="proxy", alpha=-0.5) == Proxy(alpha=-0.5)
    assert guide("two", method="ensemble") == Ensemble()
    assert guide("two", method="none") is None


def test_weights_by_the_names_of_helpers() -> None:
    assert guide("two", guides=[{"model": "polite", "weight": 1.5}]) == GenArm(alpha=(0.0, 1.5))
    assert guide("two", guides=[{"model": "polite"}, {"model": "kind", "weight": 2}]) == GenArm(alpha=(2.0, 1.0))
    assert guide("two", method="proxy", guides=[{"model": "kind", "weight": 2}]) == Proxy(alpha=(2.0,))
    assert guide("two", method="ensemble", guides=[{"model": "kind", "weight": 3}]) == Ensemble(weights=(1, 3, 0))
    assert guide("one", guides=[{"model": "small", "weight": 2}]) == Contrastive(coef=2)


def test_members_answer_by_themselves() -> None:
    assert steering(ARGS, "base", {}).ensemble == "two"
    assert guide("base") is None
    assert guide("polite") == Alone(model=2)
    assert guide("polite").weights(3) == (0, 0, 1)
    assert steering(ARGS, "small", {"trace": True, "method": "none"}).trace
    assert steering(ARGS, "small", {}).ensemble == "one"


@pytest.mark.parametrize(
    ("model", "asked", "status", "said"),
    [
        ("twoo", {}, 404, "did you mean 'two'"),
        ("two", {"alpho": 1}, 400, "did you mean 'alpha'.*allowed: method, guides, trace, alpha, normalize"),
        ("two", {"method": "genram"}, 400, "did you mean 'genarm'.*allowed: none, ensemble, fusion"),
        ("two", {"method": "nudging"}, 400, "nudging works on text, and this ensemble token by token"),
        ("two", {"method": ["genarm"]}, 400, "guidance.method"),
        ("two", {"method": "none", "alpha": 1}, 400, "none takes no alpha"),
        ("two", {"alpha": "much"}, 400, "guidance.alpha"),
        ("two", {"trace": "yes"}, 400, "guidance.trace"),
        ("two", {"alpha": 11}, 422, "guidance.alpha: should be 0 to 10"),
        ("two", {"alpha": float("nan")}, 422, "guidance.alpha"),
        ("two", {"alpha": 3}, 422, "should be 0 to 2 here .given: 3"),
        ("two", {"alpha": [1, 3]}, 422, "should be 0 to 2 here"),
        ("two", {"alpha": [1, 1, 1]}, 422, "takes 3 helpers beside the base, but there are 2"),
        ("one", {"method": "fusion"}, 422, "at least 2 helpers"),
        ("plain", {"method": "genarm"}, 422, "at least 1 helpers"),
        ("base", {"alpha": 1}, 400, "base is one model"),
        ("two", {"guides": [{"model": "small"}]}, 400, "'small' is no helper of this ensemble; there: kind, polite"),
        ("two", {"guides": [{"model": ["kind"]}]}, 400, "is no helper"),
        ("two", {"guides": "kind"}, 400, "a list of"),
        ("two", {"guides": [{"modle": "kind"}]}, 400, "a list of"),
        ("two", {"guides": [{"model": "kind", "weight": "x"}]}, 400, "guidance.alpha"),
        ("two", {"guides": [{"model": "kind", "weight": 99}]}, 422, "guidance.alpha"),
        ("two", {"guides": [{"model": "kind", "weight": 3}]}, 422, "should be 0 to 2 here"),
        ("two", {"method": "fusion", "guides": [{"model": "kind"}]}, 400, "finds the weights itself"),
        ("two", {"method": "proxy", "guides": [{"model": "polite"}]}, 400, "polite is the untuned model"),
    ],
)
def test_what_cannot_be_done_says_what_can(model: str, asked: dict, status: int, said: str) -> None:
    refused = refusal(model, **asked)
    assert refused.refusal.status == status
    assert re.search(said, str(refused), re.DOTALL)
    assert refused.refusal.param


def test_a_helper_that_is_not_there_has_a_code_of_its_own() -> None:
    assert refusal("two", guides=[{"model": "small"}]).refusal.code == "guide_not_available"
    assert refusal("nobody").refusal.code == "model_not_found"


def test_flat_fields_stand_for_the_object() -> None:
    assert flat({"guidance_alpha": 2, "guidance_method": "genarm", "other": 1}) == {"alpha": 2, "method": "genarm"}


def test_cards_say_what_can_be_tuned_and_how_far() -> None:
    two = card(ARGS, "two")["ensemble"]
    assert two["members"] == {"base": "base", "helpers": ["kind", "polite"]}
    assert (two["method"], two["description"]) == ("genarm", "two helpers")
    assert two["ranges"] == {"alpha": {"min": 0, "max": 2, "default": 0.5}}
    assert {"none", "genarm", "proxy", "fusion", "ensemble"} == set(two["methods"])
    one = card(ARGS, "one")["ensemble"]["ranges"]
    assert one["coef"] == {"min": 0, "max": 10, "default": 0.5}
    assert 0 < one["amateur_temperature"]["min"] < 1
    assert [entry["id"] for entry in cards(ARGS)] == ["two", "one", "plain", "base", "kind", "polite", "small"]
    assert "ensemble" not in card(ARGS, "base")
