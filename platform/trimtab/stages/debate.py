"""Stage debate: copies of a model argue over every case, side by side, each turn with random numbers of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.compute import Compute
from trimtab.debating import DebateSpec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.generate import SPEED
from trimtab.stages.prepare import ROWS

if TYPE_CHECKING:
    from trimtab.methods.debates._base import DebateProtocol, Transcript
    from trimtab.models.debating import Floor, Held

CHUNK = 1024
"""Tokens of prompts that are read before others are gone on with: nobody waits for a first token here."""
Table = list[dict[str, Any]]


@stage(version=1, on="workers", resumes=True)
def debate(
    spec: DebateSpec, out: Path, *, compute: Compute, rows: Path, partial: Path, model: Path | None = None
) -> Metrics:
    """A transcript a case: every turn with its plan, quotes, tokens and log-prob.

    `model` is the output of the stage that trained the debaters. Ranks share the cases; what is done is kept in
    `partial`, and found there by the next attempt. `tokens` counts those drawn, `tokens_read` those of prompts that
    were read and not remembered from the turn before.
    """
    from trimtab.data.tables import write_jsonl
    from trimtab.data.transcripts import read_cases_of
    from trimtab.training.world import world

    ranks, protocol = world(), spec.protocol
    begun = {case.id: protocol.begin(case, seed=spec.seed) for _, case in read_cases_of(rows)}
    found = _found(partial) if ranks.first else {}
    done = ranks.gather(set(found))[0]
    slots = max(1, compute.inference_batch)
    todo = ranks.share(list(_batches(begun, done, size=max(1, slots // max(map(len, protocol.beats()))))))
    started = time.perf_counter()
    floor = _opened(spec, model, compute, [one for batch in todo for one in batch]) if todo else None
    mine = _hold(floor, protocol, todo, seed=spec.seed, partial=partial)
    read = sum(ranks.gather(floor.decoder.tokens[0] if floor else 0))
    seconds = max(ranks.gather(time.perf_counter() - started))
    made = {row["id"]: row for part in ranks.gather(mine) for row in part} | found
    if not ranks.first:
        return {}
    table = [made[case_id] for case_id in begun]
    write_jsonl(out / ROWS, table)
    drawn = sum(turn["tokens"] for row in table if row["id"] not in done for turn in row["turns"])
    (out / SPEED).write_text(json.dumps({"tokens_per_second": drawn / seconds, "seconds": seconds}))
    return _counts(table) | {"tokens_read": read, "resumed": len(done)}


def _found(partial: Path) -> dict[str, dict[str, Any]]:
    """Debates that earlier attempts have held."""
    from trimtab.data.tables import read_jsonl

    kept = [path for path in partial.glob("*.jsonl") if not path.name.startswith(".")]
    return {row["id"]: row for path in kept for row in read_jsonl(path)}


def _batches(begun: dict[str, Transcript], done: set[str], *, size: int) -> Iterator[list[Transcript]]:
    """What is not done. Batches are made of all cases, so that a debate stands in the same one in every attempt."""
    every = list(begun.values())
    for start in range(0, len(every), size):
        if left := [one for one in every[start : start + size] if one.case.id not in done]:
            yield left


def _opened(spec: DebateSpec, model: Path | None, compute: Compute, begun: list[Transcript]) -> Floor:
    """A decoder with room for the longest debate."""
    from trimtab.models.debating import Chat, Floor
    from trimtab.models.decode import Decoder
    from trimtab.models.guided import open_stepper
    from trimtab.models.language import made_by
    from trimtab.models.network import load_tokenizer
    from trimtab.models.source import model_folder

    source, protocol = made_by(model, spec.model), spec.protocol
    tokenizer = load_tokenizer(model_folder(source.source, compute.cache, revision=source.revision))
    tongue = Chat(tokenizer)
    first = [ask for one in begun for ask in protocol.asks(one)]
    longest = max(len(tongue.prompt(ask.messages)) + len(tongue.encode(ask.start)) for ask in first)
    named = max(len(tongue.encode(protocol.name(one, speaker))) for one in begun for speaker in (0, 1))
    reply = len(tongue.encode(getattr(protocol.wording, f"{protocol.part}_reply")))
    room = 2 * longest + reply + protocol.utterances * (protocol.max_tokens + named + 16)
    stepper, ends = open_stepper(source, compute.cache, slots=max(1, compute.inference_batch), context=room)
    return Floor(Decoder([stepper], ends=[ends], vocabulary=len(tokenizer), chunk=CHUNK), tongue)


def _hold(
    floor: Floor | None, protocol: DebateProtocol, batches: list[list[Transcript]], *, seed: int, partial: Path
) -> Table:
    """The debates of all batches, each batch left in `partial` as soon as it is over."""
    from trimtab.data.transcripts import transcript_row
    from trimtab.progress import Meter

    meter, made = Meter(sum(map(len, batches))), []
    for batch in batches:
        held = floor.hold(protocol, batch, seed=seed)
        floor.forget()
        table = [transcript_row(one.transcript, one.costs) for one in held]
        _keep(partial, table)
        made += table
        meter.add(len(batch), sum(_tokens(one) for one in held))
    return made


def _tokens(held: Held) -> int:
    return sum(cost.tokens for cost in held.costs)


def _keep(partial: Path, table: Table) -> None:
    """One more file, named when whole: whoever dies meanwhile leaves nothing that is read."""
    from trimtab.data.formats import stable_hash
    from trimtab.data.tables import write_jsonl

    partial.mkdir(parents=True, exist_ok=True)
    name = f"{stable_hash(*(row['id'] for row in table))}.jsonl"
    write_jsonl(partial / f".{name}", table)
    (partial / f".{name}").rename(partial / name)


def _counts(table: Table) -> Metrics:
    turns = [turn for row in table for turn in row["turns"]]
    quotes = [quote for turn in turns for quote in turn["quotes"]]
    return {
        "rows": len(table),
        "turns": len(turns),
        "tokens": sum(turn["tokens"] for turn in turns),
        "prompt_tokens": sum(turn["prompt_tokens"] for turn in turns),
        "words": sum(len(turn["text"].split()) for turn in turns) / len(turns),
        "cut": sum(turn["cut"] for turn in turns) / len(turns),
        "empty": sum(not turn["text"] for turn in turns) / len(turns),
        "quotes": len(quotes),
        "quotes_verified": sum(quote["verified"] for quote in quotes),
    }
