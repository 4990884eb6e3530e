"""The decoding loop of an ensemble: rows come and go at every step, each with a guide and settings of its own.

B rows, M models (the base first), V vocabulary. All models share one vocabulary; each may see a prompt of its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from trimtab.errors import ModelError
from trimtab.models.asked import Asked, Finish, Row, Told
from trimtab.models.fusing import Fusing, Fusion, Place
from trimtab.models.speculation import Pace, burst

if TYPE_CHECKING:
    from trimtab.models.stepper import Stepper

SHARE, ALIKE = 16, 8
"""Tokens of a chunk that a prompt gets at least; beginnings that read this much more are waited for."""
FORCED, HELD = 64, 256
"""Given tokens of a row that are read at once; places whose log-probs over the vocabulary are held at once."""


class Decoder:
    """Slots in which completions are written side by side; no draw depends on the rows beside it.

    A slot that is free keeps what it has read, so that a prompt that begins like it is read from there on.
    """

    def __init__(
        self, models: Sequence[Stepper], *, ends: Sequence[frozenset[int]], vocabulary: int, chunk: int = 256
    ) -> None:
        self.models, self.ends, self.chunk = models, ends, chunk
        self.fusing = Fusing(ends, vocabulary)
        self.context = min(model.context for model in models)
        self.waiting: deque[tuple[int, Asked]] = deque()
        self.rows: dict[int, Row] = {}
        self.free = list(range(len(models[0].held)))
        self.reading: list[Row] = []
        self.tokens = [0] * len(models)
        self.pace = Pace(len(models))
        self._tickets = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.rows)

    def add(self, asked: Asked) -> int:
        """A ticket for a completion. Raises ModelError for an empty or overlong prompt, StageError for a guide."""
        if len(asked.prompts) != len(self.models):
            raise ModelError(f"{len(asked.prompts)} prompts for {len(self.models)} models")
        for prompt in asked.prompts:
            if not prompt:
                raise ModelError("a prompt has no token for a completion to stand behind")
            if (length := len(prompt) + len(asked.forced)) >= self.context:
                raise ModelError(f"the prompt has {length} tokens; the ensemble reads less than {self.context}")
        if asked.guide:
            asked.guide.check(len(self.models))
        self._tickets += 1
        self.waiting.append((self._tickets, asked))
        return self._tickets

    def drop(self, ticket: int) -> None:
        """Forget a completion, wherever it stands; its slot is free."""
        self.waiting = deque(entry for entry in self.waiting if entry[0] != ticket)
        row = self.rows.pop(ticket, None)
        if row:
            self.free.append(row.slot)
            self.free.sort()
            self.reading = [one for one in self.reading if one is not row]

    def step(self) -> list[Told]:
        """Read a chunk of the prompts that wait, and one token more (or several) of every completion under way."""
        import torch

        self._read_prompts()
        ready = [row for row in self.rows.values() if row not in self.reading]
        with torch.inference_mode():
            given = self._alike([row for row in ready if row.left_to_force])
            told = [one for rows in given for one in self._forced(rows)]
            drawing = [row for row in ready if row.ticket in self.rows and not row.left_to_force]
            for rows, helper, count in self._ahead(drawing):
                told += burst(self, rows, helper=helper, count=count)
                drawing = [row for row in drawing if row not in rows]
            self._advance([row for row in drawing if row.logits_MV is None])
            return told + self._drawn(drawing)

    def _ahead(self, rows: list[Row]) -> list[tuple[list[Row], int, int]]:
        """Rows for which a helper had better draft, those of the same models together, with helper and drafts."""
        groups: dict[tuple, list[Row]] = {}
        for row in rows:
            if row.drafts and row.logits_MV is None:
                models = tuple(m for m in range(len(self.models)) if row.runs(m) and m != row.asked.draft)
                groups.setdefault((row.asked.draft, models), []).append(row)
        counts = {key: self.pace.count(key[0], list(key[1])) for key in groups}
        return [(groups[key], key[0], count) for key, count in counts.items() if count]

    def _read_prompts(self) -> None:
        """A chunk of the prompts that are being read, side by side."""
        while len(self.reading) < max(1, self.chunk // SHARE) and self._admit():
            pass
        if not self.reading:
            return
        share = max(1, self.chunk // len(self.reading))
        for m, model in enumerate(self.models):
            parts = {row.ticket: row.asked.prompts[m][len(model.held[row.slot]) :][:share] for row in self.reading}
            rows = sorted((r for r in self.reading if r.runs(m) and parts[r.ticket]), key=lambda row: row.slot)
            if rows:
                logits_BV = model.read([(row.slot, parts[row.ticket]) for row in rows])[:, -1]
                self.tokens[m] += sum(len(parts[row.ticket]) for row in rows)
                for row, logits_V in zip(rows, logits_BV, strict=True):
                    row.logits_MV[m] = logits_V
        self.reading = [row for row in self.reading if not self._is_read(row)]

    def _is_read(self, row: Row) -> bool:
        lengths = [(len(model.held[row.slot]), len(row.asked.prompts[m])) for m, model in enumerate(self.models)]
        return all(held == wanted for m, (held, wanted) in enumerate(lengths) if row.runs(m))

    def _admit(self) -> bool:
        """A slot for the next that waits, unless it begins like one that is being read: it will go on from there."""
        if not (self.waiting and self.free):
            return False
        ticket, asked = self.waiting[0]
        slot = max(self.free, key=lambda slot: (self._shared(asked.prompts[0], self.models[0].held[slot]), -slot))
        row = Row.of(ticket, asked, slot)
        main = next(m for m in range(len(self.models)) if row.runs(m))
        known = max(self._shared(asked.prompts[main], held) for held in self.models[main].held)
        if any(self._shared(asked.prompts[main], one.asked.prompts[main]) >= known + ALIKE for one in self.reading):
            return False
        self.waiting.popleft()
        self.free.remove(slot)
        for m in range(len(self.models)):
            if row.runs(m):
                self._take_over(m, slot, asked.prompts[m])
        self.rows[ticket] = row
        self.reading.append(row)
        return True

    def _shared(self, prompt: list[int], held: list[int]) -> int:
        """Tokens with which both begin; one of the prompt is always left to be read."""
        most = min(len(prompt) - 1, len(held))
        return next((i for i in range(most) if prompt[i] != held[i]), most)

    def _take_over(self, m: int, slot: int, prompt: list[int]) -> None:
        """Whatever some slot has read of the prompt's beginning is in this one."""
        model = self.models[m]
        held = enumerate(model.held)
        length, _, source = max((self._shared(prompt, read), s == slot, s) for s, read in held)
        if source != slot:
            model.copy(source, slot, length)
        else:
            model.rewind(slot, length)

    def _advance(self, rows: list[Row]) -> None:
        """Every model reads the last token of the rows that it counts for."""
        for row in rows:
            row.logits_MV = [None] * len(self.models)
        for m, model in enumerate(self.models):
            run = sorted((row for row in rows if row.runs(m)), key=lambda row: row.slot)
            if run:
                started = time.perf_counter()
                logits_BV = model.read([(row.slot, row.drawn[-1:]) for row in run])[:, -1]
                self.pace.read(m, time.perf_counter() - started)
                self.tokens[m] += len(run)
                for row, logits_V in zip(run, logits_BV, strict=True):
                    row.logits_MV[m] = logits_V

    def _alike(self, rows: list[Row]) -> list[list[Row]]:
        """Rows whose given tokens can be read side by side: as many tokens, by the same models."""
        groups: dict[tuple, list[Row]] = {}
        for row in sorted(rows, key=lambda row: row.slot):
            runs = tuple(row.runs(m) for m in range(len(self.models)))
            groups.setdefault((min(len(row.left_to_force), FORCED), runs), []).append(row)
        each = {key: HELD // key[0] for key in groups}
        return [own[i : i + each[key]] for key, own in groups.items() for i in range(0, len(own), each[key])]

    def _forced(self, rows: list[Row]) -> list[Told]:
        """The next of the tokens that are given, as many of each row, read by every model in one go."""
        self._advance([row for row in rows if row.logits_MV is None])
        given = [list(row.left_to_force[:FORCED]) for row in rows]
        count = len(given[0])
        columns = [[[first] * (count if first is None else 1) for first in row.logits_MV] for row in rows]
        for m, model in enumerate(self.models):
            if rows[0].runs(m) and count > 1:
                read = [(row.slot, ids[:-1]) for row, ids in zip(rows, given, strict=True)]
                self.tokens[m] += len(read) * (count - 1)
                for own, logits_TV in zip(columns, model.read(read, last=count - 1), strict=True):
                    own[m] += list(logits_TV)
        places = [
            Place(row, logits_MV)
            for row, own in zip(rows, columns, strict=True)
            for logits_MV in zip(*own, strict=True)
        ]
        return self._taken(places, self.fusing(places), [token for ids in given for token in ids])

    def _drawn(self, rows: list[Row]) -> list[Told]:
        """One token more of every row."""
        if not rows:
            return []
        places = [Place(row, tuple(row.logits_MV)) for row in rows]
        fusion = self.fusing(places)
        return self._taken(places, fusion, self.fusing.draw(places, fusion.fused_BV))

    def _taken(self, places: list[Place], fusion: Fusion, tokens: list[int]) -> list[Told]:
        """The tokens belong to their rows; rows that end leave."""
        told = []
        for one in self.fusing.told(places, fusion, tokens):
            if one.ticket in self.rows:
                told.append(self.take(self.rows[one.ticket], one))
        return told

    def take(self, row: Row, one: Told) -> Told:
        """The token belongs to its row, which leaves where it ends with it."""
        row.drawn.append(one.id)
        row.logits_MV = None
        finish = self._finish(row)
        if finish:
            self.drop(row.ticket)
        return replace(one, finish=finish)

    def take_back(self, row: Row) -> None:
        """No model has read the row's last token, or what does not belong to it."""
        for m, model in enumerate(self.models):
            if row.runs(m):
                model.rewind(row.slot, len(row.asked.prompts[m]) + len(row.drawn) - 1)

    def _finish(self, row: Row) -> Finish | None:
        if not row.left_to_force and row.drawn[-1] in self.ends[0]:
            return "stop"
        longest = max(len(prompt) for m, prompt in enumerate(row.asked.prompts) if row.runs(m))
        most = 0 if row.asked.score_only else row.asked.sampling.max_new_tokens
        full = len(row.drawn) - len(row.asked.forced) >= most or longest + len(row.drawn) >= self.context
        return "length" if full and not row.left_to_force else None
