"""Causal language models: load, score, and continue many rows at once.

B rows, T tokens, V vocabulary, N positions that are scored, S steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.errors import ModelError
from trimtab.lm import Generated, TokenScores, draw, uniforms
from trimtab.models.features import batches_by_length
from trimtab.models.network import cut, device, torch_dtype
from trimtab.models.running import Running
from trimtab.models.source import model_folder
from trimtab.parts import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trimtab.alignment import Sampling

LOGITS = 1 << 27
"""Numbers that the logits of one scored batch may be."""
CHUNK = 256
"""Positions whose logits are in fp32 at once."""


def load_language(spec: ModelSpec, cache: Path) -> PreTrainedModel:
    """The network with its language head, in its dtype, cut to its layers.

    Raises ModelError when it cannot be found, its weights have no such head, or it has fewer layers than asked for.
    """
    from transformers import AutoModelForCausalLM

    folder = model_folder(spec.source, cache, revision=spec.revision)
    model, loaded = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch_dtype(spec.dtype),
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if missing := sorted(loaded["missing_keys"]):
        raise ModelError(f"model {spec.source!r}: its weights lack {', '.join(missing[:3])}; is it a language model?")
    cut(model, spec.layers)
    return model


def made_by(stage_output: Path | None, spec: ModelSpec) -> ModelSpec:
    """The model that an earlier stage made, in the spec's dtype; the spec's own where there is no such stage."""
    return ModelSpec(source=str(stage_output / "model"), dtype=spec.dtype) if stage_output else spec


def model_identity(spec: ModelSpec, cache: Path) -> str:
    """A hash of the configuration, every byte of the weights, the layers kept and the dtype."""
    folder = model_folder(spec.source, cache, revision=spec.revision)
    kept = list(range(spec.layers)) if isinstance(spec.layers, int) else spec.layers and list(spec.layers)
    digest = hashlib.sha256(f"{kept}:{torch_dtype(spec.dtype)}".encode())
    for path in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:32]


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those of the generation settings."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    several = named if isinstance(named, list) else [named]
    return frozenset(int(i) for i in (*several, tokenizer.eos_token_id) if i is not None)


class LanguageModel:
    """An LM that is a transformers network, on this process's device; `batch` rows are worked on at once.

    In fp32 no result depends on the rows beside it.
    """

    def __init__(self, model: PreTrainedModel, *, ends: frozenset[int], batch: int) -> None:
        import torch

        self.model, self.batch = model.eval().to(device()), batch
        self.width = model.get_output_embeddings().weight.shape[0]
        self.ends = torch.tensor(sorted(ends), dtype=torch.long, device=model.device)

    def next_logprobs(self, contexts: list[list[int]]) -> Tensor:
        """logprobs_BV in fp32 of the token after each context."""
        import torch

        self._check(contexts)
        found_BV = torch.empty(len(contexts), self.width, device=self.model.device)
        for rows in batches_by_length([len(context) for context in contexts], self.batch):
            logits_BV = self._logits([contexts[i] for i in rows], [len(contexts[i]) - 1 for i in rows])
            found_BV[rows] = logits_BV.float().log_softmax(-1)
        return found_BV

    def score(self, prompts: list[list[int]], completions: list[list[int]]) -> list[TokenScores]:
        """log p of every completion token given the prompt and the tokens before it, in fp32."""
        self._check(prompts)
        whole = [prompt + ids[:-1] for prompt, ids in zip(prompts, completions, strict=True)]
        scores = [TokenScores(ids, []) for ids in completions]
        for rows in self._scored_together(whole, completions):
            logits_NV = self._logits([whole[i] for i in rows], [len(prompts[i]) - 1 for i in rows])
            told = iter(_told(logits_NV, [token for i in rows for token in completions[i]]).tolist())
            for i in rows:
                scores[i] = TokenScores(completions[i], [next(told) for _ in completions[i]])
        return scores

    def _scored_together(self, whole: list[list[int]], completions: list[list[int]]) -> Iterator[list[int]]:
        """Rows in batches of alike lengths, none with more logits than there may be."""
        most = LOGITS // self.width
        lengths = [len(row) if ids else 0 for row, ids in zip(whole, completions, strict=True)]
        for rows in batches_by_length(lengths, self.batch):
            batch: list[int] = []
            for i in rows:
                if batch and sum(len(completions[j]) for j in (*batch, i)) > most:
                    yield batch
                    batch = []
                batch += [i] if completions[i] else []
            if batch:
                yield batch

    def _logits(self, rows: list[list[int]], first: list[int]) -> Tensor:
        """logits_NV after each row's tokens from its `first` on; no other position reaches the language head."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        ids_BT = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        place_T, length_B = torch.arange(ids_BT.shape[1]), torch.tensor([len(row) for row in rows])
        mask_BT = place_T < length_B[:, None]
        wanted_BT = (mask_BT & (place_T >= torch.tensor(first)[:, None])).to(self.model.device)
        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda module, states: (states[0][wanted_BT][None],))
        try:
            with torch.inference_mode():
                ids_BT, mask_BT = ids_BT.to(self.model.device), mask_BT.long().to(self.model.device)
                return self.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[0]
        finally:
            hook.remove()

    def generate(self, prompts: list[list[int]], sampling: Sampling, seeds: list[int]) -> list[Generated]:
        """One completion a prompt, drawn with random numbers of its seed; equal prompts are read once a batch.

        Raises ModelError for an empty prompt, or one too long for the model to be continued.
        """
        self._check(prompts)
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(map(len, prompts), default=0)
        if most and longest + sampling.max_new_tokens > most:
            raise ModelError(
                f"a prompt of {longest} tokens and {sampling.max_new_tokens} new ones: the model reads {most}; "
                "lower sampling.max_prompt_tokens or sampling.max_new_tokens"
            )
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), prompts[i]))
        made: dict[int, Generated] = {}
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            made |= zip(
                rows, self._continued([prompts[i] for i in rows], sampling, [seeds[i] for i in rows]), strict=True
            )
        return [made[i] for i in range(len(prompts))]

    def _continued(self, prompts: list[list[int]], sampling: Sampling, seeds: list[int]) -> list[Generated]:
        import torch

        steps, here = sampling.max_new_tokens, self.model.device
        uniform_SB = uniforms(seeds, steps).to(here)
        drawn_SB = torch.zeros(steps, len(prompts), dtype=torch.long, device=here)
        told_SB = torch.zeros(steps, len(prompts), device=here)
        length_B = torch.full((len(prompts),), steps, device=here)
        ended_B = torch.zeros(len(prompts), dtype=torch.bool, device=here)
        with torch.inference_mode():
            running = Running(self.model, prompts, steps)
            for step in range(steps):
                logprobs_BV = running.logits_BV.float().log_softmax(-1)
                next_B = draw(logprobs_BV, sampling, uniform_SB[step, running.row_B])
                drawn_SB[step, running.row_B] = next_B
                told_SB[step, running.row_B] = logprobs_BV.gather(-1, next_B[:, None])[:, 0]
                over = running.row_B[torch.isin(next_B, self.ends)]
                over = over[~ended_B[over]]
                length_B[over], ended_B[over] = step + 1, True
                if step + 1 == steps or ended_B.all():
                    break
                running.go_on(next_B, ~ended_B)
        rows = zip(drawn_SB.T.tolist(), told_SB.T.tolist(), length_B.tolist(), ended_B.tolist(), strict=True)
        return [Generated(ids[:length], told[:length], ended) for ids, told, length, ended in rows]

    def _check(self, prompts: list[list[int]]) -> None:
        if empty := [i for i, prompt in enumerate(prompts) if not prompt]:
            raise ModelError(f"prompt {empty[0]} has no token for a completion to stand behind")


def _told(logits_NV: Tensor, tokens: list[int]) -> Tensor:
    """log p_N of one token a position."""
    import torch

    tokens_N1 = torch.tensor(tokens, device=logits_NV.device)[:, None]
    parts = zip(logits_NV.split(CHUNK), tokens_N1.split(CHUNK), strict=True)
    return torch.cat([_picked(logits.float(), token) for logits, token in parts])


def _picked(logits_NV: Tensor, tokens_N1: Tensor) -> Tensor:
    return (logits_NV.gather(-1, tokens_N1) - logits_NV.logsumexp(-1, keepdim=True))[:, 0]
