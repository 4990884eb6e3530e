"""The command line as its user meets it: exit codes, messages, JSON, a stop, a kill, and the same command again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli import app
from trimtab.endings import stoppable

JOB = """\
kind: weak_to_strong
task: {{source: {rows}}}
split: {{supervise: 20, transfer: 20, test: 20}}
supervisor: &weak
  model: {{source: {model}, layers: 1}}
  tune: {{kind: probe, steps: 20}}
  learning_rate: 0.01
ceiling: &strong {{<<: *weak, model: {model}}}
students:
  naive: *strong
compute: {{backend: inline}}
"""
FOREVER = "supervisor.tune.steps=1000000000"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


def start(*arguments: str | Path, storage: Path) -> subprocess.Popen[str]:
    given = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "trimtab", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=given | ENVIRONMENT | {"TRIMTAB_STORAGE": str(storage)},
    )


def trimtab(*arguments: str | Path, storage: Path) -> subprocess.CompletedProcess[str]:
    process = start(*arguments, storage=storage)
    out, err = process.communicate(timeout=400)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


Done = subprocess.CompletedProcess


@pytest.fixture
def signals() -> Iterator[None]:
    """What a command does to signals is undone."""
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


@pytest.fixture
def here(
    signals: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mlflow_uri: str
) -> Callable[..., Done[str]]:
    """The same commands, called in this process, which has imported already what each of them would."""

    def call(*arguments: str | Path, storage: Path) -> Done[str]:
        monkeypatch.setenv("TRIMTAB_STORAGE", str(storage))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
        with pytest.raises(SystemExit) as ended:
            app([*map(str, arguments)])
        return Done(arguments, ended.value.code, *capsys.readouterr())

    return call


def log_of(storage: Path, number: int = -1) -> list[dict[str, Any]]:
    """The events of a run: of the one started last, if none is named."""
    logs = [log.read_text().splitlines() for log in (storage / "runs").glob("*/events.jsonl")]
    events = [[json.loads(line) for line in log if line.endswith("}")] for log in logs if log]
    return sorted(events, key=lambda events: events[0]["time"])[number]


def trainings(storage: Path) -> int:
    """How many have started, in all runs."""
    logs = (storage / "runs").glob("*/events.jsonl")
    return sum('"stage_start"' in line and '"stage": "train"' in line for log in logs for line in log.open())


def wait_for_training(storage: Path, process: subprocess.Popen[str], earlier: int) -> None:
    until = time.monotonic() + 400
    while trainings(storage) == earlier or not list((storage / "artifacts").glob(".train-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers and random weights, which reads letters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    letters = {c: i for i, c in enumerate(["<pad>", "<eos>", *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(letters), pad_token_id=0, eos_token_id=1, bos_token_id=None, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def written(folder: Path, *, model: str | Path, labels: int = 2, rows: int = 80) -> Path:
    """A job on rows of its own."""
    words = ("bad", "good", "odd")
    texts = [json.dumps({"text": f"row {i} is {words[i % labels]}", "label": i % labels}) for i in range(rows)]
    (folder / "rows.jsonl").write_text("\n".join(texts))
    (folder / "job.yaml").write_text(JOB.format(rows=folder / "rows.jsonl", model=model))
    return folder / "job.yaml"


@dataclass(frozen=True)
class Stopped:
    """A run that a signal stopped in its first training, for which all was there."""

    job: Path
    storage: Path
    done: Done[str]

    def again(self, storage: Path, signal_: signal.Signals) -> Stopped:
        """The same run on a copy of the storage, stopped by another signal.

        Its states are computed anew, which imports all that a training needs.
        """
        shutil.copytree(self.storage, storage, ignore=shutil.ignore_patterns("features-*"))
        return Stopped(self.job, storage, stopped(self.job, storage, signal_))


def stopped(job: Path, storage: Path, signal_: signal.Signals) -> Done[str]:
    earlier = trainings(storage)
    process = start("run", job, FOREVER, "--json", storage=storage)
    wait_for_training(storage, process, earlier)
    process.send_signal(signal_)
    out, err = process.communicate(timeout=240)
    return Done(process.args, process.returncode, out, err)


@pytest.fixture(scope="module")
def ctrl_c(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    job = written(folder, model=model)
    return Stopped(job, folder / "storage", stopped(job, folder / "storage", signal.SIGINT))


def test_mistakes_are_listed_and_nothing_is_written(tmp_path: Path) -> None:
    job = written(tmp_path, model="builtin:smollm2-135m")
    done = trimtab("check", job, "studnts.x=1", "seeds=[]", storage=tmp_path / "storage")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("2 mistakes:\n  override studnts.x=1: studnts: unknown key; did you mean 'students'?")
    assert "Traceback" not in done.stderr
    done = trimtab("run", job, "seeds=[]", "--json", storage=tmp_path / "storage")
    assert done.returncode == 2
    said = json.loads(done.stdout)
    assert (said["event"], said["type"], len(said["problems"])) == ("error", "JobError", 1)
    assert not (tmp_path / "storage").exists()


@pytest.mark.usefixtures("signals")
def test_what_nohup_has_us_ignore_is_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stoppable()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_a_plan_for_people_and_for_machines(tmp_path: Path) -> None:
    job = written(tmp_path, model="builtin:smollm2-135m")
    done = trimtab("plan", job, storage=tmp_path / "storage")
    assert done.returncode == 0
    assert "run  prepare" in done.stdout
    assert "stages to run; they need about" in done.stdout
    said = json.loads(trimtab("plan", job, "--json", storage=tmp_path / "storage").stdout)
    assert said["stages"][0]["label"] == "prepare"
    assert said["memory"] > 0
    assert not (tmp_path / "storage").exists()


def test_a_report_without_runs_and_data_without_a_file(tmp_path: Path) -> None:
    done = trimtab("report", storage=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("DataError: no run under")
    done = trimtab("data", tmp_path / "rows.csv", "columns.txt=a", storage=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "1 mistake:")
    done = trimtab("data", tmp_path / "rows.csv", storage=tmp_path)
    assert done.returncode == 2
    assert "no such file" in done.stderr


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "rows", "said"),
    [(1, 80, "two classes are needed"), (2, 10, "split"), (2, 0, "holds no rows")],
    ids=["one class", "too few rows", "no rows"],
)
def test_data_that_cannot_be_used_ends_a_run_before_a_model_loads(
    tmp_path: Path, here: Callable[..., Done[str]], labels: int, rows: int, said: str
) -> None:
    job = written(tmp_path, model="builtin:smollm2-135m", labels=labels, rows=rows)
    done = here("run", job, storage=tmp_path / "storage")
    assert done.returncode == 2, done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("DataError: ")
    assert said in errors[0]
    events = log_of(tmp_path / "storage")
    assert {event["stage"] for event in events if event["event"] == "stage_start"} <= {"prepare", "split"}
    assert events[-1]["event"] == "run_end"
    assert events[-1]["status"] == "failed"


@pytest.mark.chaos
@pytest.mark.slow
def test_a_crash_names_the_stage_and_keeps_what_was_finished(tmp_path: Path) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))
    (broken / "model.safetensors").write_bytes(b"broken")
    done = trimtab("run", written(tmp_path, model=broken), "--json", storage=tmp_path / "storage")
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("StageError: stage features-")
    assert "inputs: rows=prepare-" in done.stderr
    assert "end of its log:" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (lines[-1]["event"], lines[-1]["type"]) == ("error", "StageError")
    assert lines[-2]["status"] == "failed"
    assert len(list((tmp_path / "storage" / "artifacts").glob("prepare-*/metrics.json"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_stopped_run_ends_cleanly(tmp_path: Path, ctrl_c: Stopped, signal_: signal.Signals) -> None:
    found = ctrl_c if signal_ == signal.SIGINT else ctrl_c.again(tmp_path / "storage", signal_)
    err = found.done.stderr
    assert found.done.returncode == 130, err
    assert err.splitlines()[-1] == "stopped; finished stages are kept, and the same command goes on from there"
    assert "Traceback" not in err
    assert json.loads(found.done.stdout.splitlines()[-1])["event"] == "error"
    events = log_of(found.storage)
    assert (events[-1]["event"], events[-1]["status"]) == ("run_end", "interrupted")
    assert not list((found.storage / "artifacts").glob(".*-????????"))


@pytest.mark.chaos
@pytest.mark.slow
def test_a_killed_run_is_settled_and_resumed(tmp_path: Path, ctrl_c: Stopped) -> None:
    job, storage = ctrl_c.job, tmp_path / "storage"
    assert ctrl_c.again(storage, signal.SIGKILL).done.returncode == -signal.SIGKILL
    assert log_of(storage)[-1]["event"] != "run_end"
    assert list((storage / "artifacts").glob(".train-*"))
    done = trimtab("run", job, "--json", storage=storage)
    assert done.returncode == 0, done.stderr
    killed, resumed = log_of(storage, -2), log_of(storage)
    assert (killed[-1]["event"], killed[-1]["status"]) == ("run_end", "interrupted")
    assert not list((storage / "artifacts").glob(".train-*"))
    cached = {event["stage"] for event in resumed if event.get("status") == "cached"}
    assert {"prepare", "split", "features"} <= cached
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["event"] == "done"
    assert Path(lines[-1]["report"]).is_file()
    assert {"supervisor/accuracy", "student.naive/accuracy", "ceiling/accuracy"} <= set(lines[-1]["metrics"])
    again = trimtab("run", job, storage=storage)
    assert "nothing to do: every stage was there" in again.stdout
    assert lines[-1]["report"] in trimtab("report", "--storage", storage, storage=tmp_path / "other").stdout
    synced = trimtab("report", "--sync", storage=storage)
    assert synced.returncode == 0, synced.stdout
    assert len(synced.stdout.splitlines()) == 3, "the one that Ctrl-C stopped, too"


def test_pairs_are_shown_with_their_rejects(tmp_path: Path) -> None:
    rows = [{"prompt": "Is it?", "chosen": f" yes {i}", "rejected": " no"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "oops\n")
    bad = tmp_path / "bad.jsonl"
    done = trimtab("data", tmp_path / "pairs.jsonl", "max_bad_fraction=0.2", "--quarantine", bad, storage=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pairs.jsonl: pairs, prompts are texts" in done.stdout
    assert "chosen:    yes 0" in done.stdout
    assert "NOT USABLE" not in done.stdout
    assert [json.loads(line)["reason"] for line in bad.read_text().splitlines()] == ["not JSON"]
    done = trimtab("data", tmp_path / "pairs.jsonl", "columns.chosn=x", storage=tmp_path)
    assert (done.returncode, "did you mean 'chosen'" in done.stderr) == (2, True)


@pytest.mark.slow
def test_pairs_are_shown_as_a_model_sees_them(tiny: Any, tmp_path: Path, here: Callable[..., Done[str]]) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "bread cup", "chosen": " door", "rejected": " river"}\n')
    done = here("data", tmp_path / "pairs.jsonl", "--model", tiny.model, storage=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "chosen:   bread cup[[door [EOS]]]" in done.stdout
