"""Stages that score completions: known sentiments, reward models, several as one."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_rows
from tests.preferring import Preferring, asked

from trimtab.alignment import EnsembleSpec, RewardModel, Vader
from trimtab.compute import Compute
from trimtab.errors import DataError, ModelError, StageError
from trimtab.stages.pairs import read_scores, write_scores
from trimtab.stages.score import combine, score, vader

COMPUTE = Compute(backend="inline")


def candidates(*texts: str, row_id: str = "r", prompt: str = "p") -> dict[str, Any]:
    return {"id": row_id, "prompt": prompt, "candidates": [{"text": text, "ended": True} for text in texts]}


def out(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_vader_gives_its_published_scores(tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "rows",
        [
            candidates("VADER is smart, handsome, and funny.", "The book was good.", "", prompt="What a horrible day!"),
            candidates("At least it isn't a horrible book.", "It is a book.", "The book was good.", row_id="s"),
        ],
    )
    found = vader(Vader(), out(tmp_path / "out"), compute=COMPUTE, rows=rows)
    scores = read_scores(tmp_path / "out")
    assert scores == {"r": [0.8316, 0.4404, 0.0], "s": [0.431, 0.0, 0.4404]}
    values = [*scores["r"], *scores["s"]]
    mean = sum(values) / 6
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / 6)
    assert found == pytest.approx({"rows": 2, "mean": mean, "spread": spread})


def test_scores_that_are_all_alike_prefer_nothing(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows", [candidates("a table", "a chair"), candidates("a door", row_id="s")])
    with pytest.raises(DataError, match="VADER gives all 3 completions the same score, 0: there is nothing to prefer"):
        vader(Vader(), out(tmp_path / "out"), compute=COMPUTE, rows=rows)


MEMBERS = {"0": {"r": [0.0, 2.0], "s": [4.0, 6.0]}, "1": {"r": [1.0, 1.0], "s": [1.0, 5.0]}}
FIRST = [x / math.sqrt(5) for x in (-3, -1, 1, 3)]
SECOND = [x / math.sqrt(3) for x in (-1, -1, -1, 3)]
TOGETHER = {
    "mean": [(a + b) / 2 for a, b in zip(FIRST, SECOND, strict=True)],
    "min": [min(a, b) for a, b in zip(FIRST, SECOND, strict=True)],
    "uncertainty": [(a + b) / 2 - 2.5 * abs(a - b) / 2 for a, b in zip(FIRST, SECOND, strict=True)],
}


@pytest.mark.parametrize("how", TOGETHER)
def test_members_speak_equally_loud_and_together(tmp_path: Path, how: str) -> None:
    """The second member's scores may be on any other scale."""
    folders = {}
    for name, scores in MEMBERS.items():
        folders[name] = out(tmp_path / name)
        write_scores(folders[name], {i: [7 * s + 3 if name == "1" else s for s in v] for i, v in scores.items()})
    spec = EnsembleSpec(members=2, how=how, penalty=2.5)
    found = combine(spec, out(tmp_path / "out"), compute=COMPUTE, members=folders)
    scores = read_scores(tmp_path / "out")
    assert list(scores) == ["r", "s"]
    assert [*scores["r"], *scores["s"]] == pytest.approx(TOGETHER[how])
    spread = sum(abs(a - b) / 2 for a, b in zip(FIRST, SECOND, strict=True)) / 4
    assert found["disagreement"] == pytest.approx(spread)


def test_members_that_are_one_agree(tmp_path: Path) -> None:
    folder = out(tmp_path / "one")
    write_scores(folder, MEMBERS["0"])
    for how in TOGETHER:
        spec, members = EnsembleSpec(members=2, how=how), {"0": folder, "1": folder}
        found = combine(spec, out(tmp_path / how), compute=COMPUTE, members=members)
        assert found["disagreement"] == 0
        assert [x for row in read_scores(tmp_path / how).values() for x in row] == pytest.approx(FIRST)


@pytest.fixture(scope="module")
def words(tiny):
    return Preferring(tiny)


def as_trained_on(model: Path) -> dict[str, list[float]]:
    """Rewards of all completions in one batch of the kind that training sees."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from trimtab.data.rendering import render
    from trimtab.models.network import load_tokenizer
    from trimtab.training.completions import Collate, Shown

    tokenizer, network = load_tokenizer(model), AutoModelForSequenceClassification.from_pretrained(model)
    rows = [tuple(render(tokenizer, r["prompt"], c, max_length=32) for c in r["candidates"]) for r in asked()]
    ids = [row["id"] for row in asked()]
    shown = Shown(ids, rows, torch.ones(len(rows)), torch.ones(len(rows)))
    batch = Collate(shown, tokenizer.pad_token_id)([{"row": i} for i in range(len(rows))])
    with torch.inference_mode():
        inputs = {name: batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask")}
        rewards_N2 = network(**inputs).logits.view(-1, 2)
    return dict(zip(ids, rewards_N2.tolist(), strict=True))


@pytest.mark.parametrize("pad", ["a token of its own", "the end token"])
def test_a_reward_model_scores_as_it_was_trained(tiny, words, pad):
    source = tiny.model
    if pad == "the end token":
        source = tiny.root / "without a pad token"
        shutil.copytree(tiny.model, source)
        settings = json.loads((source / "tokenizer_config.json").read_text())
        (source / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    trained = words.rewarder(words.reward(model={"source": str(source)}, num_train_epochs=3))
    wanted = RewardModel(model=words.reward().model, max_length=32)
    found = words.made(score, wanted, words.tiny.compute(inference_batch=7), rows=words.rows, model=trained)
    expected = as_trained_on(trained / "model")
    scores = read_scores(found)
    assert list(scores) == list(expected)
    for row_id, rewards in scores.items():
        assert rewards == pytest.approx(expected[row_id], abs=1e-5)
    assert max(map(max, scores.values())) - min(map(min, scores.values())) > 0.01
    own = RewardModel(model={"source": str(trained / "model"), "dtype": "float32"}, max_length=32)
    assert read_scores(words.made(score, own, rows=words.rows)) == {
        i: pytest.approx(rewards, abs=1e-5) for i, rewards in scores.items()
    }


def test_a_linear_reward_scores_stored_states_and_texts_alike(words):
    from trimtab.stages.features import features

    spec = words.reward(tune={"kind": "probe", "steps": 60}, learning_rate=0.05)
    states = words.made(features, spec.trunk(), rows=words.rows)
    trained = words.rewarder(spec, features=states)
    wanted = RewardModel(model=spec.model, max_length=32)
    stored, told = (
        read_scores(words.made(score, wanted, rows=words.rows, model=trained, **given))
        for given in ({"features": states}, {})
    )
    for row_id, rewards in stored.items():
        assert rewards == pytest.approx(told[row_id], abs=1e-4)
    chosen = {pair["prompt_id"]: pair["chosen_index"] for pair in words.tiny.table(words.pairs)}
    right = [rewards[chosen[i]] > rewards[1 - chosen[i]] for i, rewards in stored.items()]
    assert sum(right) / len(right) > 0.9
    with pytest.raises(DataError, match="give the output of stage features"):
        words.rewarder(spec)


def test_an_empty_completion_has_the_reward_of_its_prompt(words, tmp_path):
    trained = words.rewarder(words.reward())
    first = asked()[0]
    rows = [first | {"candidates": [{"text": "", "ended": False}, *first["candidates"]]}]
    wanted = RewardModel(model=words.reward().model, max_length=32)
    out(tmp_path / "out")
    given = {"compute": words.tiny.compute(), "rows": write_rows(tmp_path / "rows", rows), "model": trained}
    score(wanted, tmp_path / "out", **given)
    empty, *others = read_scores(tmp_path / "out")["q0"]
    assert empty not in others and math.isfinite(empty)
    long = write_rows(tmp_path / "long", [first | {"id": "long", "prompt": "bread " * 40}])
    with pytest.raises(DataError, match="row long: its prompt alone has 32 tokens or more: raise max_length"):
        score(wanted, tmp_path / "out", **given | {"rows": long})


def test_what_is_no_reward_model_is_refused(words, tmp_path):
    given = {"compute": words.tiny.compute(), "rows": words.rows}
    two = RewardModel(model=words.reward().model)
    with pytest.raises(ModelError, match="a reward model has one output, this one has 2"):
        score(two, out(tmp_path / "two"), **given)
    shutil.copytree(words.tiny.model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"id2label": {"0": "x"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    headless = RewardModel(model={"source": str(tmp_path / "model")})
    with pytest.raises(ModelError, match=r"its weights lack score.weight; is it a reward model\?"):
        score(headless, out(tmp_path / "headless"), **given)


def test_rewards_that_are_no_numbers_are_refused(words, tmp_path):
    from safetensors.torch import load_file, save_file

    trained = words.rewarder(words.reward())
    shutil.copytree(trained, tmp_path / "broken")
    weights = load_file(trained / "model" / "model.safetensors")
    weights["score.weight"][:] = math.nan
    save_file(weights, tmp_path / "broken" / "model" / "model.safetensors", {"format": "pt"})
    wanted = RewardModel(model=words.reward().model, max_length=32)
    with pytest.raises(StageError, match="broken gives 32 rows scores that are not finite: q0, q1"):
        score(wanted, out(tmp_path / "out"), compute=COMPUTE, rows=words.rows, model=tmp_path / "broken")
