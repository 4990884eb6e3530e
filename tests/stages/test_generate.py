"""Stage generate: candidates of every prompt, the same whoever makes them and however often they are interrupted."""

from __future__ import annotations

import json
import math
import os
import random
import signal

import pytest
import torch
import torch.distributed as dist
from tests import forking
from tests.conftest import GOOD, PLAIN, write_rows

from trimtab.alignment import GenerateSpec
from trimtab.compute import Compute
from trimtab.data.rendering import prompt_tokens
from trimtab.data.tables import read_candidates
from trimtab.errors import DataError, StageError
from trimtab.models import shards as files
from trimtab.models.language import load_language
from trimtab.models.network import load_tokenizer
from trimtab.models.shards import shards
from trimtab.models.token_table import TOKENS, Logprobs
from trimtab.run.artifact import PlanRunner
from trimtab.run.local import LocalRunner
from trimtab.stages.generate import generate
from trimtab.stages.prepare import prepare

pytestmark = pytest.mark.slow


def run(spec, storage, places, rank, ranks):
    """What one rank does."""
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{places['out']}/meet", rank=rank, world_size=ranks)
    generate(spec, compute=Compute(backend="inline", storage=storage, inference_batch=6), **places)


def killed(*arguments):
    """What a rank does that is killed once it has left five files."""
    write = files.write_shard

    def last(folder, *made):
        write(folder, *made)
        if len(shards(folder)) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    files.write_shard = last
    run(*arguments)


@pytest.fixture(scope="module")
def rows(tiny):
    """90 prompts of one to twelve words."""
    draw = random.Random(0)
    prompts = [" ".join(draw.choices(GOOD + PLAIN, k=draw.randint(1, 12))) for _ in range(90)]
    common = {"group": None, "part": "train", "candidates": []}
    return write_rows(tiny.root / "prompts", [{"id": f"r{i}", "prompt": p} | common for i, p in enumerate(prompts)])


def spec_of(tiny, **sampling):
    model = {"source": str(tiny.model), "dtype": "float32"}
    return GenerateSpec.model_validate({"model": model, "sampling": {"samples": 3, "max_new_tokens": 20} | sampling})


def made(tiny, rows, out, *, spec=None, partial=None, batch=6, **inputs):
    out.mkdir()
    compute = tiny.compute(inference_batch=batch)
    spec, partial = spec or spec_of(tiny), partial or out / "partial"
    return generate(spec, out, compute=compute, rows=rows, partial=partial, **inputs)


@pytest.fixture(scope="module")
def whole(tiny, rows, tmp_path_factory):
    """The output of an attempt that nothing disturbed, and its metrics."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, made(tiny, rows, out)


def start(tiny, rows, out, partial, *, ranks=1, call=run):
    """One process a rank."""
    out.mkdir()
    places = {"out": out, "rows": rows, "partial": partial}
    return [forking.start(call, spec_of(tiny), tiny.root / "storage", places, rank, ranks) for rank in range(ranks)]


def test_every_prompt_has_its_candidates_and_their_tokens(tiny, rows, whole):
    out, metrics = whole
    table, tokenizer = read_candidates(out / "rows.jsonl"), load_tokenizer(tiny.model)
    assert [row.id for row in table] == [f"r{i}" for i in range(90)]
    assert [row.prompt for row in table] == [row["prompt"] for row in tiny.table(rows)]
    stored, lengths, ended = Logprobs(out), [], 0
    for row in table:
        assert len(row.candidates) == 3
        for k, candidate in enumerate(row.candidates):
            ids = stored.of(row.id, k)[0].tolist()
            lengths.append(len(ids))
            ended += candidate.ended
            assert candidate.ended == (ids[-1] == tokenizer.eos_token_id)
            assert candidate.text == tokenizer.decode(ids[:-1] if candidate.ended else ids, skip_special_tokens=True)
    assert metrics == {
        "rows": 90,
        "samples": 270,
        "tokens": sum(lengths),
        "mean_length": sum(lengths) / 270,
        "ended": ended / 270,
        "dropped_long_prompt": 0,
        "resumed": 0,
    }
    assert 0 < ended < 270


def test_stored_log_probs_are_the_models(tiny, whole):
    out, _ = whole
    network, tokenizer = load_language(spec_of(tiny).model, tiny.root), load_tokenizer(tiny.model)
    stored = Logprobs(out)
    for row in tiny.table(out)[::9]:
        prompt = prompt_tokens(tokenizer, row["prompt"])
        ids, logprobs = stored.of(row["id"], 1)
        with torch.inference_mode():
            logits = network(torch.tensor([prompt + ids.tolist()])).logits[0, len(prompt) - 1 : -1]
        assert (logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0] - logprobs).abs().max() < 1e-5


def test_the_size_of_a_batch_changes_nothing(tiny, rows, whole, tmp_path):
    made(tiny, rows, tmp_path / "out", batch=200)
    assert (tmp_path / "out" / "rows.jsonl").read_text() == (whole[0] / "rows.jsonl").read_text()


@pytest.mark.chaos
def test_a_killed_attempt_is_continued_where_it_stopped(tiny, rows, whole, tmp_path):
    out, partial = tmp_path / "killed", tmp_path / "partial"
    (process,) = start(tiny, rows, out, partial, call=killed)
    process.join(400)
    assert process.exitcode == -signal.SIGKILL
    assert not (out / "rows.jsonl").exists()
    left = {path: path.read_bytes() for path in shards(partial)}
    assert len(left) == 5
    metrics = made(tiny, rows, tmp_path / "out", partial=partial)
    assert metrics == whole[1] | {"resumed": 2 * 5}
    for name in ("rows.jsonl", TOKENS):
        assert (tmp_path / "out" / name).read_bytes() == (whole[0] / name).read_bytes()
    assert {path: path.read_bytes() for path in left} == left
    again = made(tiny, rows, tmp_path / "again", partial=partial, batch=200)
    assert again["resumed"] == 90
    assert (tmp_path / "again" / TOKENS).read_bytes() == (whole[0] / TOKENS).read_bytes()


def test_a_batch_that_was_done_in_part_is_filled_up(tiny, rows, whole, tmp_path):
    """An attempt with other batches left other rows: none is drawn twice, all come out the same."""
    made(tiny, rows, tmp_path / "first", partial=tmp_path / "partial", batch=21)
    for path in shards(tmp_path / "partial")[::2]:
        path.unlink()
    metrics = made(tiny, rows, tmp_path / "out", partial=tmp_path / "partial")
    assert 0 < metrics["resumed"] < 90
    assert (tmp_path / "out" / "rows.jsonl").read_text() == (whole[0] / "rows.jsonl").read_text()


def test_several_ranks_share_the_rows_and_what_one_had_done(tiny, rows, whole, tmp_path):
    made(tiny, rows, tmp_path / "first", partial=tmp_path / "partial")
    for path in shards(tmp_path / "partial")[5:]:
        path.unlink()
    processes = start(tiny, rows, tmp_path / "two", tmp_path / "partial", ranks=2)
    for process in processes:
        process.join(400)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(shards(tmp_path / "partial")) == 45
    for name in ("rows.jsonl", TOKENS):
        assert (tmp_path / "two" / name).read_bytes() == (whole[0] / name).read_bytes()


def test_another_seed_draws_others_and_temperature_zero_draws_one(tiny, rows, whole, tmp_path):
    made(tiny, rows, tmp_path / "seed", spec=spec_of(tiny, seed=1))
    other, first = tiny.table(tmp_path / "seed"), tiny.table(whole[0])
    assert sum(a["candidates"] == b["candidates"] for a, b in zip(first, other, strict=True)) < 5
    made(tiny, rows, tmp_path / "greedy", spec=spec_of(tiny, temperature=0))
    assert all(a == b == c for a, b, c in (row["candidates"] for row in tiny.table(tmp_path / "greedy")))


def test_long_prompts_are_left_out_and_counted(tiny, rows, tmp_path):
    metrics = made(tiny, rows, tmp_path / "out", spec=spec_of(tiny, max_prompt_tokens=8, samples=1, max_new_tokens=2))
    short = [row["id"] for row in tiny.table(rows) if len(row["prompt"].split()) <= 8]
    assert [row["id"] for row in tiny.table(tmp_path / "out")] == short
    assert metrics["rows"] == len(short) == 90 - metrics["dropped_long_prompt"] < 90
    long_only = write_rows(tmp_path / "long", [row for row in tiny.table(rows) if row["id"] not in short])
    with pytest.raises(DataError, match="prompts has up to 8 tokens"):
        made(tiny, long_only, tmp_path / "none", spec=spec_of(tiny, max_prompt_tokens=8))


def test_the_model_of_an_earlier_stage_continues(tiny, rows, whole, tmp_path):
    spec = spec_of(tiny)
    network = load_language(spec.model, tmp_path)
    network.lm_head.weight.data.neg_()
    network.save_pretrained(tmp_path / "stage" / "model")
    load_tokenizer(tiny.model).save_pretrained(tmp_path / "stage" / "model")
    made(tiny, rows, tmp_path / "out", model=tmp_path / "stage")
    assert Logprobs(tmp_path / "out").model != Logprobs(whole[0]).model
    assert Logprobs(tmp_path / "out").tokenizer == Logprobs(whole[0]).tokenizer
    assert tiny.table(tmp_path / "out") != tiny.table(whole[0])


def test_a_model_that_gives_no_number_is_named(tiny, rows, tmp_path):
    network = load_language(spec_of(tiny).model, tmp_path)
    network.lm_head.weight.data[3] = math.nan
    network.save_pretrained(tmp_path / "stage" / "model")
    load_tokenizer(tiny.model).save_pretrained(tmp_path / "stage" / "model")
    with pytest.raises(StageError, match="row r[0-9]+: the model gives it log-probs that are not finite"):
        made(tiny, rows, tmp_path / "out", model=tmp_path / "stage")


def test_a_runner_keeps_what_is_partly_done_until_the_output_is_whole(tiny, rows, tmp_path):
    runner = LocalRunner(Compute(backend="inline", storage=tmp_path, inference_batch=6))
    source = lay_out(runner, rows)
    spec = spec_of(tiny)
    artifact = runner(generate, spec, rows=source)
    made(tiny, rows, tmp_path / "before", partial=artifact.partial)
    lost = shards(artifact.partial)[3]
    lost.unlink()
    (source.path / "rows.jsonl").rename(tmp_path / "aside.jsonl")
    with pytest.raises(StageError, match="rows.jsonl"):
        runner.wait()
    assert len(shards(artifact.partial)) == 44
    (tmp_path / "aside.jsonl").rename(source.path / "rows.jsonl")
    runner.wait()
    assert artifact.metrics()["resumed"] == 88
    assert not artifact.partial.exists()
    assert artifact.ready


def lay_out(runner: PlanRunner, rows):
    """The prompts as the output of a stage that is there already."""
    from trimtab.parts import TaskSpec

    source = runner(prepare, TaskSpec(source="unused"))
    write_rows(source.folder, [json.loads(line) for line in (rows / "rows.jsonl").read_text().splitlines()])
    (source.folder / "metrics.json").write_text("{}")
    return source
