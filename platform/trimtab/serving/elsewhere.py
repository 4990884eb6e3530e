"""A voice behind another server that speaks OpenAI's /v1/completions."""

import asyncio
import os
from collections.abc import AsyncIterator

import httpx2

from trimtab.alignment import Sampling
from trimtab.errors import ModelError, ServerError
from trimtab.lm import row_seed
from trimtab.models.remote import Remote, RemoteSampler, RemoteScorer, RemoteWriter, visible
from trimtab.serving.answer import Piece, Prompt, Refused, Request, Spent, Token
from trimtab.serving.config import Member
from trimtab.serving.members import is_ids, plain_text
from trimtab.serving.tokenwise import refused
from trimtab.serving.voices import Part, Text

PATIENCE_S = 120


class RemoteVoice:
    """A model of another server; `client` holds its address and key."""

    def __init__(self, name: str, model: str, client: httpx2.Client, template: str | None = None) -> None:
        self.name, self.model, self.client, self.template = name, model, client, template

    @classmethod
    def of(cls, name: str, member: Member) -> "RemoteVoice":
        """Raises ModelError where the environment has no key that the member needs."""
        headers = {}
        if member.key_env:
            if not (key := os.environ.get(member.key_env)):
                raise ModelError(f"{name}: the environment has no {member.key_env}, which is to hold its server's key")
            headers["Authorization"] = f"Bearer {key}"
        template = None if member.template == "plain" else member.template.expanduser().read_text()
        client = httpx2.Client(base_url=f"{member.url.rstrip('/')}/", headers=headers, timeout=PATIENCE_S)
        return cls(name, member.source, client, template)

    def part(self, prompt: Prompt, loop: asyncio.AbstractEventLoop) -> "RemotePart":
        """Raises Refused for token ids."""
        return RemotePart(Remote(self.client, self.model), self.text(prompt))

    async def answer(self, request: Request) -> AsyncIterator[Piece]:
        """Whole completions, each as one piece. Raises Refused."""
        if request.given or request.echo or request.bias:
            raise Refused(400, f"{self.name} is behind another server: no scores, echo or logit_bias", param="model")
        prompts = [self.text(prompt) for prompt in request.prompts]
        rows = [(i, prompts[i // request.n]) for i in range(request.rows)]
        for done in asyncio.as_completed([asyncio.to_thread(self._completion, request, *row) for row in rows]):
            yield await done

    def state(self) -> None:
        """Its slots are the other server's business."""

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def text(self, prompt: Prompt) -> str:
        """The prompt as it reads it. Raises Refused."""
        if is_ids(prompt):
            raise Refused(400, f"prompt: {self.name} is behind another server and reads text only", param="prompt")
        return plain_text(prompt) if self.template is None or isinstance(prompt, str) else self._templated(prompt)

    def _templated(self, messages: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            return render_jinja_template([messages], chat_template=self.template, add_generation_prompt=True)[0][0]
        except TemplateError as error:
            raise Refused(400, f"{self.name} cannot read this: {error}", param="messages") from error

    def _completion(self, request: Request, index: int, prompt: str) -> Piece:
        remote, sampling = Remote(self.client, self.model), request.sampling
        fields = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
        fields |= {"presence_penalty": request.presence, "frequency_penalty": request.frequency}
        seed = row_seed(request.seed, "", index)
        stops = {"stop": request.stop} if request.stop else {}
        try:
            choice = remote.completion(prompt, seed=seed, **fields, **stops)
        except ServerError as error:
            raise refused(error) from error
        told, offset, tokens = visible(choice), 0, []
        for text, p in told if request.likeliest is not None else ():
            tokens.append(Token(-1, text, text.encode(), offset, p, (), {self.name: p}, {self.name: 1.0}, self.name))
            offset += len(text)
        (read, wrote), finish = remote.usage[0], "stop" if choice.get("finish_reason") == "stop" else "length"
        members = {self.name: {"prompt": read, "decode": wrote}}
        return Piece(index, choice["text"], tuple(tokens), finish, Spent(read, wrote, members))


class RemotePart:
    """One answer's requests to a server; the server counts tokens itself."""

    def __init__(self, remote: Remote, prompt: str) -> None:
        self.remote, self.prompt = remote, prompt

    @property
    def prompt_tokens(self) -> int:
        """As the server counted, of the shortest text that was asked to be gone on with."""
        return min((prompt for prompt, _ in self.remote.usage), default=0)

    @property
    def drawn(self) -> int:
        """As the server counted."""
        return sum(drawn for _, drawn in self.remote.usage)

    def writer(self) -> RemoteWriter:
        """As nudging sees it."""
        return RemoteWriter(self.remote, self.prompt)

    def sampler(self, sampling: Sampling) -> tuple[RemoteSampler, Text]:
        """As a search sees the base."""
        sampler = RemoteSampler(self.remote, self.prompt, sampling)
        return sampler, sampler.text

    def scorer(self, base: Part, text: Text) -> RemoteScorer:
        """As a search sees a helper."""
        return RemoteScorer(self.remote, self.prompt, text)

    def leave(self) -> None:
        """The request that is under way ends by itself."""
