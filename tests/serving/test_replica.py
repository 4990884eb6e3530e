"""An ensemble as its replica opens it: versions, vocabularies, pieces that leave together, refusals."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving.kit import saved

from trimtab.alignment import Sampling
from trimtab.errors import ModelError
from trimtab.serving.answer import Answerer, Opened, Piece, Refusal, Refused, Request, State
from trimtab.serving.checks import checked
from trimtab.serving.config import GuidedArgs
from trimtab.serving.replica import Replica, opened, version

ASKED = Request(("a",), Sampling(), 0)


class Prepared:
    """Answers with what it was given, a pause between two lists."""

    version = "v7"

    def __init__(self, *said: list[Piece] | Exception) -> None:
        self.said, self.closed = said, False

    async def answer(self, request: Request) -> AsyncIterator[Piece]:
        try:
            for some in self.said:
                if isinstance(some, Exception):
                    raise some
                for piece in some:
                    yield piece
                await asyncio.sleep(0.02)
        finally:
            self.closed = True

    def state(self) -> State:
        return State(self.version, 1, 0, 0)

    def close(self) -> None:
        self.closed = True


async def heard(answerer: Answerer, request: Request = ASKED) -> list[tuple]:
    return [batch async for batch in Replica(answerer).answer(request)]


A, B, C = (Piece(0, text) for text in "abc")


def test_pieces_that_are_there_leave_together() -> None:
    assert asyncio.run(heard(Prepared([A], [B, C]))) == [(Opened("v7"), A), (B, C)]


def test_refusals_are_told_and_faults_are_raised() -> None:
    no = Refused(422, "no", param="guidance")
    assert asyncio.run(heard(Prepared(no))) == [(Refusal(422, "no", None, "guidance"),)]
    assert asyncio.run(heard(Prepared([A], no))) == [(Opened("v7"), A), (Refusal(422, "no", None, "guidance"),)]
    with pytest.raises(ZeroDivisionError):
        asyncio.run(heard(Prepared([A], ZeroDivisionError())))


def test_who_leaves_early_closes_the_answer() -> None:
    async def main() -> None:
        prepared = Prepared([A], [B] * 5, [C])
        batches = Replica(prepared).answer(ASKED)
        await anext(batches)
        await batches.aclose()
        assert prepared.closed

    asyncio.run(main())


def test_what_crosses_processes_can() -> None:
    for one in (ASKED, A, Opened("v"), Refusal(429, "no"), State("v", 1, 0, 0)):
        assert pickle.loads(pickle.dumps(one)) == one


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("replica")
    models = {"base": str(saved(root / "base")), "helper": str(saved(root / "helper", layers=1))}
    duo = {"base": "base", "helpers": ["helper"], "guide": {"kind": "genarm"}, "context": 100}
    return {"models": models, "ensembles": {"duo": duo}, "storage": str(root / "storage")}


def read(raw: dict[str, Any], **duo: Any) -> GuidedArgs:
    return checked(GuidedArgs.model_validate(raw | {"ensembles": {"duo": raw["ensembles"]["duo"] | duo}}))


@pytest.mark.slow
def test_a_version_follows_all_that_decides_an_answer_and_nothing_else(raw: dict[str, Any], tmp_path: Path) -> None:
    usual = version(read(raw), "duo")
    assert version(read(raw, slots=2, description="new words"), "duo") == usual
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages[0].content }}")
    helper = {"source": raw["models"]["helper"]}
    others = [
        read(raw, guide={"kind": "genarm", "alpha": 2}),
        read(raw, context=90),
        read(raw, guide={"kind": "contrastive"}),
        read(raw | {"models": raw["models"] | {"helper": helper | {"template": "plain"}}}),
        read(raw | {"models": raw["models"] | {"helper": helper | {"template": str(template)}}}),
        read(raw | {"models": raw["models"] | {"base": {"source": raw["models"]["base"], "layers": 1}}}),
        read(raw | {"models": raw["models"] | {"base": str(saved(tmp_path / "other", layers=3))}}),
    ]
    assert len({version(args, "duo") for args in others} | {usual}) == len(others) + 1


@pytest.mark.slow
def test_an_ensemble_is_opened_and_answers(raw: dict[str, Any]) -> None:
    one = opened(read(raw), "duo")
    try:
        assert one.version == version(read(raw), "duo")
        assert one.state() == State(one.version, 8, 0, 0)
        guide = read(raw).ensembles["duo"].guide
        request = Request(("hello",), Sampling(max_new_tokens=3), 0, guide=guide, likeliest=1)
        batches = asyncio.run(heard(one, request))
        tokens = [token for batch in batches for piece in batch if isinstance(piece, Piece) for token in piece.tokens]
        assert len(tokens) == 3
        assert set(tokens[0].said) == {"base", "helper"}
    finally:
        one.close()
    assert asyncio.run(Replica(one).state()).status == 503


@pytest.mark.slow
def test_an_ensemble_on_text_has_an_engine_each_or_another_server(raw: dict[str, Any], monkeypatch, tmp_path) -> None:
    args = read(raw, guide={"kind": "nudging"}, slots=2)
    one = opened(args, "duo")
    try:
        assert one.state() == State(one.version, 4, 0, 0)
        request = Request(("hello",), Sampling(max_new_tokens=6), 0, guide=args.ensembles["duo"].guide)
        *_, last = asyncio.run(heard(one, request))
        assert last[-1].finish
        assert set(last[-1].spent.members) == {"base", "helper"}
    finally:
        one.close()
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    far = {"source": "big", "url": "http://127.0.0.1:9/v1", "key_env": "FAR_KEY", "template": str(template)}
    away = read(raw | {"models": raw["models"] | {"helper": far}}, guide={"kind": "nudging"})
    assert version(away, "duo") != one.version
    with pytest.raises(ModelError, match="helper: the environment has no FAR_KEY"):
        opened(away, "duo")
    monkeypatch.setenv("FAR_KEY", "secret")
    one = opened(away, "duo")
    try:
        assert one.voices[1].client.headers["authorization"] == "Bearer secret"
        assert one.voices[1].text([{"role": "user", "content": "hi"}]) == "<user>hi"
        (refusal,) = asyncio.run(heard(one, Request(("hello",), Sampling(), 0, guide=args.ensembles["duo"].guide)))[0]
        assert (refusal.status, refusal.code) == (502, "member_unavailable")
    finally:
        one.close()


@pytest.mark.slow
def test_another_vocabulary_is_refused_before_weights_are_loaded(raw: dict[str, Any]) -> None:
    args = GuidedArgs.model_validate(raw)
    tokenizer = Path(raw["models"]["helper"]) / "tokenizer.json"
    was = tokenizer.read_text()
    changed = json.loads(was)
    words = changed["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    tokenizer.write_text(json.dumps(changed))
    weights = Path(raw["models"]["base"]) / "model.safetensors"
    try:
        weights.rename(weights.with_name("away.safetensors"))
        with pytest.raises(ModelError, match="helper has another vocabulary than base.*nudging"):
            opened(args, "duo")
    finally:
        weights.with_name("away.safetensors").rename(weights)
        tokenizer.write_text(was)
