"""One ensemble in a process of its own: its models are loaded here, and its answers leave here."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

from trimtab.environment import settle
from trimtab.errors import TrimtabError
from trimtab.serving.answer import Answerer, Event, Opened, Piece, Refusal, Refused, Request, State
from trimtab.serving.config import Debate, Ensemble, GuidedArgs, Member
from trimtab.serving.debater import Debater
from trimtab.serving.elsewhere import RemoteVoice
from trimtab.serving.members import Reader
from trimtab.serving.recorded import Keeper, record
from trimtab.serving.registered import Origins, download
from trimtab.serving.replies import PASSING
from trimtab.serving.textwise import Textwise
from trimtab.serving.tokenwise import Tokenwise
from trimtab.serving.voices import LocalVoice


def opened(args: GuidedArgs, name: str) -> Answerer:
    """An ensemble or a debate, its models loaded. Raises ModelError where one cannot be had, or vocabularies differ."""
    specs = args.specs(name)
    if name in args.debates:
        members = [_engine(args, name, {member: spec}) for member, spec in specs.items()]
        return Debater(members, args.debates[name], version=version(args, name))
    if args.ensembles[name].on_text:
        voices = [
            RemoteVoice.of(member, spec) if spec.url else LocalVoice(_engine(args, name, {member: spec}))
            for member, spec in specs.items()
        ]
        return Textwise(voices, version=version(args, name))
    return _engine(args, name, specs)


def _engine(args: GuidedArgs, name: str, specs: dict[str, Member]) -> Tokenwise:
    """Models of one vocabulary in one engine."""
    from trimtab.models.decode import Decoder
    from trimtab.models.guided import check_vocabulary, open_stepper
    from trimtab.models.source import model_folder
    from trimtab.serving.engine import Engine

    group, members = args.groups[name], list(specs)
    draft = group.draft if isinstance(group, Ensemble) else None
    folders = {member: model_folder(spec.source, args.cache, revision=spec.revision) for member, spec in specs.items()}
    readers = [Reader.of(member, spec, folders[member]) for member, spec in specs.items()]
    for helper in readers[1:]:
        check_vocabulary(readers[0].name, readers[0].tokenizer, helper.name, helper.tokenizer)
    opened = [open_stepper(spec, args.cache, slots=group.slots, context=group.context) for spec in specs.values()]
    steppers, ends = zip(*opened, strict=True)
    decoder = Decoder(steppers, ends=ends, vocabulary=len(readers[0].tokenizer))
    return Tokenwise(
        readers,
        Engine(decoder),
        version=version(args, name),
        longest=args.limits.prompt_tokens,
        draft=members.index(draft) if draft else None,
    )


def version(args: GuidedArgs, name: str) -> str:
    """A hash of the weights of an ensemble's models, and of all in its configuration that changes an answer."""
    from trimtab.models.language import model_identity

    members = {
        member: f"{spec.url} {spec.source}" if spec.url else model_identity(spec, args.cache)
        for member, spec in args.specs(name).items()
    }
    templates = {
        member: spec.template if isinstance(spec.template, str) else spec.template.expanduser().read_text()
        for member, spec in args.specs(name).items()
    }
    group = args.groups[name]
    how = group.model_dump(mode="json", exclude={"slots", "description", "ranges", "draft"})
    if isinstance(group, Debate):
        how["wording"] = group.protocol.wording.model_dump()
    return hashlib.sha256(json.dumps([members, templates, how], sort_keys=True).encode()).hexdigest()[:16]


class Replica:
    """An answerer as the API reaches it: what it raises becomes a refusal, and pieces that are there leave together."""

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer

    async def answer(self, request: Request) -> AsyncIterator[tuple[Event, ...]]:
        """`Opened`, then pieces; a refusal ends it."""
        heard: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        pump = asyncio.create_task(self._pump(request, heard))
        begun = False
        try:
            while True:
                batch = [await heard.get()]
                while not heard.empty():
                    batch.append(heard.get_nowait())
                events = [piece for piece in batch if isinstance(piece, Piece)]
                if events:
                    yield (*(() if begun else (Opened(self.answerer.version),)), *events)
                    begun = True
                if isinstance(batch[-1], Refused):
                    yield (batch[-1].refusal,)
                    return
                if isinstance(batch[-1], BaseException):
                    raise batch[-1]
                if batch[-1] is None:
                    return
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _pump(self, request: Request, heard: asyncio.Queue) -> None:
        try:
            async with aclosing(self.answerer.answer(request)) as pieces:
                async for piece in pieces:
                    heard.put_nowait(piece)
            heard.put_nowait(None)
        except Exception as error:  # noqa: BLE001  whatever it is, who waits must hear of it
            heard.put_nowait(error)

    async def state(self) -> State | Refusal:
        """A refusal where it can answer no more."""
        try:
            return self.answerer.state()
        except TrimtabError as error:
            return Refusal(503, str(error), "ensemble_unavailable")

    def close(self) -> None:
        """Let go of the models."""
        self.answerer.close()


class EnsembleReplica(Replica):
    """The deployment of an ensemble."""

    def __init__(self, args: GuidedArgs, name: str, origins: Origins) -> None:
        settle()
        download(args, name, origins)
        super().__init__(opened(args, name))
        record(args, name, self.answerer.version, origins)
        self.keeper = Keeper(args, name, self.answerer.version) if name in args.debates else None

    async def answer(self, request: Request) -> AsyncIterator[tuple[Event, ...]]:
        """As a Replica; a debate that is to be kept is, once it is over."""
        began, events = time.time_ns(), []
        async with aclosing(super().answer(request)) as batches:
            async for batch in batches:
                told = [one for event in batch if isinstance(event, Piece) for one in event.told]
                events += [one | {"at": time.time_ns()} for one in told if one["event"] not in PASSING]
                yield batch
        if request.debate and request.debate.keep and events[-1]["event"] == "verdict":
            case = request.debate.case
            asked = {"question": case.question, "answers": list(case.answers), "source": case.source}
            asked |= {"seed": request.seed, "protocol": request.debate.protocol.model_dump(exclude={"prompts"})}
            self.keeper.keep(asked, began, events)

    def check_health(self) -> None:
        """Raises TrimtabError where the replica must be replaced."""
        self.answerer.state()

    def __del__(self) -> None:
        """The replica is being stopped."""
        if hasattr(self, "answerer"):
            self.close()
