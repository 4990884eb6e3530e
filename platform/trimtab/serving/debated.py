"""What a request asks of a debate."""

from trimtab.methods.debates._base import Case
from trimtab.serving.answer import Debated, Refused
from trimtab.serving.config import Debate, GuidedArgs
from trimtab.serving.openai import ChatRequest, ModelRequest


def debated(args: GuidedArgs, asked: ModelRequest) -> Debated | None:
    """None where the model is no debate. Raises Refused: 400, and 422 for more turns or words than there may be."""
    chat = asked if isinstance(asked, ChatRequest) else None
    wanted = chat.debate if chat else None
    if asked.model not in args.debates:
        if wanted:
            there = ", ".join(args.debates) or "none"
            raise Refused(400, f"debate: {asked.model} is no debate; there: {there}", param="debate")
        return None
    if chat is None:
        raise Refused(400, f"{asked.model} is a debate: ask it at /v1/chat/completions", param="model")
    if wanted is None:
        raise Refused(400, 'debate: give two answers to argue for: {"answers": [A, B]}', param="debate")
    if (chat.n or 1) > 1 or chat.logprobs:
        raise Refused(400, "a debate is held once, and tells no logprobs; leave n and logprobs out", param="n")
    first, second = (answer.strip() for answer in wanted.answers)
    if first == second or not (first and second):
        raise Refused(400, "debate.answers: should be two different answers", param="debate.answers")
    question = chat.messages[-1].plain["content"]
    usual = args.debates[asked.model]
    limits = {name: _within(name, getattr(wanted, name), usual) for name in ("turns", "words")}
    case = Case("asked", question, (first, second), wanted.source)
    return Debated(case, usual.protocol.model_copy(update=limits), wanted.keep)


def _within(name: str, value: int | None, usual: Debate) -> int:
    most = getattr(usual.protocol, name)
    if value is not None and value > most:
        raise Refused(422, f"debate.{name}: should be 1 to {most} here (given: {value})", param=f"debate.{name}")
    return value or most
