"""Arguments of a serve file: what is wrong is seen before a model is loaded, all of it at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trimtab.errors import JobError
from trimtab.serving.checks import checked, mistakes
from trimtab.serving.config import GuidedArgs


def model(folder: Path, words: list[str]) -> Path:
    """What can be seen of a model without loading it: a configuration, weights that are none, a tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 4}))
    header = b"{}"
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0])).save(
        str(folder / "tokenizer.json")
    )
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    words = ["<eos>", "a", "b", "c"]
    return {
        "models": {name: str(model(tmp_path / name, words)) for name in ("strong", "weak", "other")},
        "ensembles": {"duo": {"base": "strong", "helpers": ["weak"], "guide": {"kind": "genarm"}}},
        "storage": str(tmp_path / "storage"),
    }


def problems(raw: dict[str, Any]) -> list[str]:
    with pytest.raises(JobError) as caught:
        checked(GuidedArgs.model_validate(raw))
    return caught.value.problems


def test_good_arguments_are_read(raw: dict[str, Any]) -> None:
    args = checked(GuidedArgs.model_validate(raw))
    assert list(args.specs("duo")) == ["strong", "weak"]
    assert args.models["weak"].template == "own"
    assert args.storage.is_absolute()


def test_every_mistake_is_told_at_once(raw: dict[str, Any]) -> None:
    raw["models"]["other"] = {"source": "/nowhere/at/all", "template": "/no/such/file.jinja"}
    raw["ensembles"] |= {
        "ingress": {"base": "strong"},
        "weak": {"base": "strong"},
        "lost": {"base": "srtong", "helpers": ["weak", "weak"], "draft": "strong"},
        "few": {"base": "strong", "helpers": ["weak"], "guide": {"kind": "proxy"}},
        "wide": {
            "base": "strong",
            "helpers": ["weak"],
            "guide": {"kind": "genarm"},
            "ranges": {"alpha": [0, 99], "beta": [0, 1]},
        },
        "reward": {"base": "strong", "helpers": ["weak"], "guide": {"kind": "args"}},
        "words": {"base": "strong", "helpers": ["weak"], "guide": {"kind": "nudging"}, "draft": "weak"},
        "away": {"base": "strong", "helpers": ["far"], "guide": {"kind": "genarm"}},
    }
    raw["models"]["far"] = {"source": "big", "url": "http://127.0.0.1:9/v1", "template": "plain"}
    raw["models"]["wrong"] = {"source": "big", "url": "127.0.0.1:9", "layers": 3}
    found = problems(raw)
    wanted = {
        "models.other.source": "no config.json",
        "models.other.template": "there is no file /no/such/file.jinja",
        "ensembles.ingress": "the ingress has this name",
        "ensembles.weak": "a model has this name",
        "ensembles.lost.base": "no model 'srtong'; did you mean 'strong'?; there: strong, weak, other",
        "ensembles.lost.helpers": "names a model twice",
        "ensembles.lost.draft": "'strong' is no helper; there: weak, weak",
        "ensembles.few.helpers": "proxy takes at least 2 helpers beside the base, but there are 1",
        "ensembles.wide.ranges.alpha": "should lie within 0 to 10",
        "ensembles.wide.ranges.beta": "genarm has no such number; there: alpha",
        "ensembles.reward.guide": "args cannot be served; there: contrastive, ensemble, fusion, genarm, nudging, proxy",
        "ensembles.words.draft": "nudging drafts nothing",
        "ensembles.away.guide": "far is behind another server, where only these reach: nudging, best_of_n, chunk_beam",
        "models.wrong.url": "should be the address",
        "models.wrong.template": "its tokenizer is not here: give plain",
        "models.wrong.layers": "is the server's business",
    }
    assert {problem.partition(": ")[0] for problem in found} == set(wanted)
    for problem in found:
        place, _, text = problem.partition(": ")
        assert wanted[place] in text


def test_other_vocabularies_are_refused_by_content_with_the_way_out(raw: dict[str, Any], tmp_path: Path) -> None:
    model(tmp_path / "weak", ["<eos>", "a", "c", "b"])
    (found,) = problems(raw)
    assert found.startswith("ensembles.duo.helpers.0: weak has another vocabulary than strong")
    assert "nudging" in found


@pytest.mark.slow
def test_a_model_that_is_not_here_yet_is_looked_at_once_it_is_fetched(raw: dict[str, Any]) -> None:
    raw["models"]["strong"] = "builtin:smollm2-135m"
    args = checked(GuidedArgs.model_validate(raw))
    ((loc, text),) = mistakes(args, fetch=True)
    assert loc == ("ensembles", "duo", "helpers", 0)
    assert "(4 and 49152 tokens" in text
    with pytest.raises(JobError, match="another vocabulary"):
        checked(args)


@pytest.mark.parametrize(
    "change",
    [
        {"ensembels": {}},
        {"ensembles": {}},
        {"models": {"a b": "nowhere/none"}},
        {"limits": {"n": 0}},
        {"deadline_s": 0},
        {"ensembles": {"duo": {"base": "strong", "guide": {"kind": "genram"}}}},
        {"ensembles": {"duo": {"base": "strong", "slots": 0}}},
        {"models": {"strong": {"source": "x/y", "template": 3}}},
    ],
)
def test_keys_and_values_that_mean_nothing_are_refused(raw: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GuidedArgs.model_validate(raw | change)


def test_the_process_that_takes_requests_loads_no_model_library() -> None:
    code = (
        "import sys, trimtab.serving.web as web\n"
        "from trimtab.serving.config import GuidedArgs\n"
        "models, ensembles = {'a': 'x/y', 'b': 'x/z'}, {'duo': {'base': 'a', 'helpers': ['b'], "
        "'guide': {'kind': 'genarm'}}}\n"
        "web.web(GuidedArgs(models=models, ensembles=ensembles), {})\n"
        "print(*sorted({'torch', 'transformers', 'ray', 'mlflow', 'trl', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
