"""Stage logprobs: what the model says live, computed once, found by row and number."""

from __future__ import annotations

import json
import random

import pytest
import torch
import torch.distributed as dist
from tests import forking
from tests.conftest import GOOD, PLAIN, write_rows

from trimtab.alignment import LogprobSpec
from trimtab.compute import Compute
from trimtab.data.rendering import render, tokenizer_identity
from trimtab.errors import DataError, StageError
from trimtab.models.language import load_language, model_identity
from trimtab.models.network import load_tokenizer
from trimtab.models.shards import shards
from trimtab.stages.logprobs import Logprobs, logprobs

pytestmark = pytest.mark.slow


def run(spec, root, rank, storage):
    """What one of two ranks does; what it returns is left in a file."""
    dist.init_process_group("gloo", init_method=f"file://{root}/meet", rank=rank, world_size=2)
    compute = Compute(backend="inline", storage=root / storage, inference_batch=8)
    metrics = logprobs(spec, root / "two", rows=root / "out rows", compute=compute)
    (root / f"metrics{rank}.json").write_text(json.dumps(metrics))


def words(draw, most):
    return " ".join(draw.choices(GOOD + PLAIN, k=draw.randint(1, most)))


@pytest.fixture(scope="module")
def table():
    """30 prompts with four different candidates each."""
    draw = random.Random(0)
    return [
        {
            "id": f"r{i}",
            "prompt": words(draw, 9),
            "group": None,
            "part": "train",
            "candidates": [{"text": " " + words(draw, 9), "ended": draw.random() < 0.5} for _ in range(4)],
        }
        for i in range(30)
    ]


def spec_of(tiny, **fields):
    return LogprobSpec(model={"source": str(tiny.model), "dtype": "float32"} | fields.pop("model", {}), **fields)


def made(tiny, table, root, name, *, spec=None, batch=8, **inputs):
    """Metrics of the stage; its output is root / name, its store in root / storage."""
    rows = write_rows(root / f"{name} rows", table)
    (root / name).mkdir()
    compute = tiny.compute(inference_batch=batch).model_copy(update={"storage": root / "storage"})
    return logprobs(spec or spec_of(tiny), root / name, compute=compute, rows=rows, **inputs)


def test_stored_log_probs_are_what_the_model_says(tiny, table, tmp_path):
    metrics = made(tiny, table, tmp_path, "out")
    tokenizer, spec = load_tokenizer(tiny.model), spec_of(tiny)
    network, stored = load_language(spec.model, tmp_path), Logprobs(tmp_path / "out")
    tokens = 0
    for row in table:
        for k, candidate in enumerate(row["candidates"]):
            shown = render(tokenizer, row["prompt"], candidate, max_length=512)
            with torch.inference_mode():
                logits = network(torch.tensor([shown.ids])).logits[0, len(shown.prompt_ids) - 1 : -1]
            live = logits.log_softmax(-1).gather(-1, torch.tensor(shown.completion_ids)[:, None])[:, 0]
            ids, logps = stored.of(row["id"], k)
            assert ids.tolist() == shown.completion_ids
            assert ids.dtype == torch.long and logps.dtype == torch.float32
            assert (live - logps).abs().max() < 1e-5
            tokens += len(ids)
    assert (stored.tokenizer, stored.model) == (tokenizer_identity(tokenizer), model_identity(spec.model, tmp_path))
    counts = {"truncated": 0, "dropped_long_prompt": 0, "dropped_empty": 0, "merged_boundary": 0}
    sizes = {"rows": 30, "completions": 120, "supervised_tokens": tokens, "computed": 120, "found": 0}
    assert metrics == counts | sizes


def test_the_same_texts_are_never_computed_again(tiny, table, tmp_path):
    made(tiny, table, tmp_path, "first")
    files = shards(tmp_path / "storage" / "cache" / "logprobs" / Logprobs(tmp_path / "first").model)
    turned = [row | {"id": f"other {row['id']}", "candidates": row["candidates"][::-1]} for row in table[::-1]]
    metrics = made(tiny, turned, tmp_path, "second", batch=64)
    assert (metrics["computed"], metrics["found"]) == (0, 120)
    one, two = Logprobs(tmp_path / "first"), Logprobs(tmp_path / "second")
    for row in table:
        for k in range(4):
            for before, after in zip(one.of(row["id"], k), two.of(f"other {row['id']}", 3 - k), strict=True):
                assert torch.equal(before, after)
    assert shards(files[0].parent) == files
    files[1].unlink()
    assert made(tiny, table, tmp_path, "third")["computed"] == 8


@pytest.mark.parametrize("apart", [False, True])
def test_two_ranks_share_what_is_missing(tiny, table, tmp_path, apart):
    """Also where the second one's node has a store of its own."""
    made(tiny, table, tmp_path, "out")
    store = tmp_path / "storage" / "cache" / "logprobs" / Logprobs(tmp_path / "out").model
    for path in shards(store)[2:]:
        path.unlink()
    (tmp_path / "two").mkdir()
    places = ["storage", "elsewhere" if apart else "storage"]
    for rank in [forking.start(run, spec_of(tiny), tmp_path, rank, place) for rank, place in enumerate(places)]:
        rank.join(400)
    first, second = (json.loads((tmp_path / f"metrics{rank}.json").read_text()) for rank in range(2))
    assert (first["computed"], first["found"]) == (104, 16)
    assert second == {}
    assert made(tiny, table, tmp_path, "again")["computed"] == 0
    one, two = Logprobs(tmp_path / "out"), Logprobs(tmp_path / "two")
    for row in table:
        assert all((one.of(row["id"], k)[1] - two.of(row["id"], k)[1]).abs().max() < 1e-5 for k in range(4))


def test_other_weights_other_layers_or_another_dtype_share_nothing(tiny, table, tmp_path):
    made(tiny, table, tmp_path, "out")
    for name, fields in (("cut", {"layers": 3}), ("bf16", {"dtype": "bfloat16"})):
        assert made(tiny, table, tmp_path, name, spec=spec_of(tiny, model=fields))["computed"] == 120
    network = load_language(spec_of(tiny).model, tmp_path)
    network.lm_head.weight.data.neg_()
    network.save_pretrained(tmp_path / "stage" / "model")
    load_tokenizer(tiny.model).save_pretrained(tmp_path / "stage" / "model")
    assert made(tiny, table, tmp_path, "trained", model=tmp_path / "stage")["computed"] == 120
    names = ("out", "cut", "bf16", "trained")
    assert len({Logprobs(tmp_path / name).model for name in names}) == 4
    assert len({tuple(Logprobs(tmp_path / name).of("r0", 0)[1].tolist()) for name in names}) == 4


def test_equal_completions_are_computed_once(tiny, table, tmp_path):
    twice = [row | {"candidates": row["candidates"][:1] * 2} for row in table]
    metrics = made(tiny, twice, tmp_path, "out")
    assert (metrics["completions"], metrics["computed"]) == (60, 30)
    stored = Logprobs(tmp_path / "out")
    assert torch.equal(stored.of("r3", 0)[1], stored.of("r3", 1)[1])


def test_what_does_not_fit_is_cut_or_has_no_log_probs(tiny, table, tmp_path):
    metrics = made(tiny, table, tmp_path, "out", spec=spec_of(tiny, max_length=7))
    stored = Logprobs(tmp_path / "out")
    lengths = {row["id"]: [len(stored.of(row["id"], k)[0]) for k in range(4)] for row in table}
    for row in table:
        room = 7 - len(row["prompt"].split())
        wanted = [len(c["text"].split()) + c["ended"] for c in row["candidates"]]
        assert lengths[row["id"]] == [max(0, min(room, length)) for length in wanted]
    assert metrics["dropped_long_prompt"] == sum(length == 0 for row in lengths.values() for length in row) > 0
    assert metrics["truncated"] > 0


def test_what_is_not_there_is_named(tiny, table, tmp_path):
    made(tiny, table, tmp_path, "out")
    stored = Logprobs(tmp_path / "out")
    for row_id, candidate in (("r99", 0), ("r1", 4), ("r1", -1)):
        with pytest.raises(DataError, match=f"no log-probs of row '{row_id}', candidate {candidate}"):
            stored.of(row_id, candidate)
    with pytest.raises(DataError, match="has no log-probs; give the output of stage logprobs or generate"):
        Logprobs(tmp_path)
    with pytest.raises(DataError, match="row r2: its prompt has no token"):
        made(tiny, [row | {"prompt": ""} if row["id"] == "r2" else row for row in table], tmp_path, "empty")


def test_log_probs_that_are_no_numbers_are_not_stored(tiny, table, tmp_path):
    network = load_language(spec_of(tiny).model, tmp_path)
    network.lm_head.weight.data[4] = float("nan")
    network.save_pretrained(tmp_path / "stage" / "model")
    load_tokenizer(tiny.model).save_pretrained(tmp_path / "stage" / "model")
    with pytest.raises(StageError, match="log-probs that are not finite"):
        made(tiny, table, tmp_path, "out", model=tmp_path / "stage")
    assert not list((tmp_path / "storage").rglob("*.safetensors"))
