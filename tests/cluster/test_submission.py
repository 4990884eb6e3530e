"""What travels, under which name, and what is refused before anything is sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.cluster.parcel import Parcel, code
from trimtab.cluster.submission import Submission, prepared, read
from trimtab.errors import JobError, ResourceError
from trimtab.load import load_job
from trimtab.run.naming import USABLE
from trimtab.search.load import load_search

JOB = """\
kind: weak_to_strong
task: {source: data/rows.jsonl}
split: {supervise: 20, transfer: 20, test: 20}
supervisor: &weak {model: "builtin:smollm2-135m", tune: {kind: probe}}
ceiling: *weak
students: {naive: *weak}
compute: {storage: /mnt/shared/trimtab}
"""
SEARCH = """\
job: jobs/job.yaml
space: {students.naive.objective.kind: {choice: [xent, logconf]}}
metric: student.naive/agreement
validation: 20
"""


def written(folder: Path) -> Path:
    """A job, its rows and much else that must not travel."""
    for name in ("jobs", "data", "tune", ".git", ".venv/lib", "mlruns"):
        (folder / name).mkdir(parents=True)
    (folder / "data" / "rows.jsonl").write_text(
        "\n".join(json.dumps({"text": f"row {i}", "label": i % 2}) for i in range(80))
    )
    for name in (".git/pack", ".venv/lib/torch.so", "mlruns/x", "data/other.jsonl", "weights.safetensors"):
        (folder / name).write_text("not to travel")
    (folder / "jobs" / "job.yaml").write_text(JOB)
    (folder / "tune" / "search.yaml").write_text(SEARCH)
    return folder / "jobs" / "job.yaml"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRIMTAB_STORAGE", raising=False)
    written(tmp_path)
    return tmp_path


def arrived(sent: Submission, place: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files laid out as on the cluster, which is the current folder there; the command's file and overrides."""
    with sent.parcel.laid_out() as folder:
        folder.rename(place)
        place.joinpath("keep").touch()
        folder.mkdir()
    monkeypatch.chdir(place)
    return sent.command[4:-1]


def test_a_job_travels_with_its_rows_and_nothing_else(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = prepared(read("jobs/job.yaml", ["seeds=[1, 2]"]))
    assert sorted(sent.parcel.files) == ["data/rows.jsonl", "jobs/job.yaml"]
    assert sent.command[:4] == ["python", "-m", "trimtab", "run"]
    file, *overrides = arrived(sent, here / "there", monkeypatch)
    assert load_job(file, overrides).pipeline.seeds == (1, 2)


def test_a_search_travels_with_its_job(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = prepared(read("tune/search.yaml", ["budget.trials=3"]))
    assert sorted(sent.parcel.files) == ["data/rows.jsonl", "jobs/job.yaml", "tune/search.yaml"]
    file, *overrides = arrived(sent, here / "there", monkeypatch)
    assert sent.command[3] == "tune"
    assert load_search(file, overrides).spec.budget.trials == 3


def test_a_search_finds_its_job_there_however_it_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = here / "tune" / "search.yaml"
    search.write_text(SEARCH.replace("jobs/job.yaml", str(here / "jobs" / "job.yaml")))
    sent = prepared(read(search))
    file, *overrides = arrived(sent, here / "there", monkeypatch)
    (here / "jobs").rename(here / "gone")
    assert load_search(file, overrides).spec.job == "jobs/job.yaml"


@pytest.mark.parametrize("name", ["rows.jsonl", "é 😀.jsonl"])
@pytest.mark.parametrize("file", ["jobs/job.yaml", "tune/search.yaml"])
def test_an_absolute_path_below_the_folder_gets_its_name_there(
    here: Path, file: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "data" / "rows.jsonl").rename(here / "data" / name)
    sent = prepared(read(file, [f"task.source={here}/data/{name}"]))
    found = arrived(sent, here / "there", monkeypatch)
    (here / "data" / name).unlink()
    job = load_job(*(found[0], found[1:])) if "jobs" in file else load_search(found[0], found[1:]).default
    assert job.pipeline.task.source == f"data/{name}"


def test_a_job_outside_the_current_folder_takes_its_own(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    sent = prepared(read(here / "jobs" / "job.yaml", ["task.source=builtin:valence"]))
    assert sent.parcel.files == {"job.yaml": here / "jobs" / "job.yaml"}
    sent = prepared(read(here / "tune" / "search.yaml", ["task.source=builtin:valence"]))
    assert sorted(sent.parcel.files) == ["jobs/job.yaml", "tune/search.yaml"]


def test_what_a_cluster_cannot_have_is_refused_all_at_once(
    here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "rows.jsonl"
    outside.write_text((here / "data" / "rows.jsonl").read_text())
    model = here / "model"
    model.mkdir()
    (model / "config.json").write_text('{"num_hidden_layers": 2}')
    (model / "x.safetensors").write_text("x")
    said = [f"task.source={outside}", f"supervisor.model={model}", "compute.storage=results"]
    with pytest.raises(JobError) as told:
        prepared(read("jobs/job.yaml", said))
    storage, source, weights = told.value.problems
    assert storage.startswith("compute.storage: 'results' is a folder of this machine")
    assert source.startswith(f"task.source: {outside} lies on this machine outside {here}")
    assert weights.startswith(f"supervisor.model: {model}: weights do not travel")
    said = [*said[:2], f"compute.storage={here}/mnt"]
    sent = prepared(read("jobs/job.yaml", said), shared=[model, outside.parent])
    assert sorted(sent.parcel.files) == ["jobs/job.yaml"]
    assert sent.command[5:-1] == said


def test_results_do_not_go_into_the_memory_of_a_process(here: Path) -> None:
    with pytest.raises(JobError, match="compute.storage: 'memory://x' is the memory of one process; give a path"):
        prepared(read("jobs/job.yaml", ["compute.storage=memory://x"]))


def test_the_choices_of_a_search_travel_or_are_refused(here: Path) -> None:
    (here / "data" / "second.jsonl").write_text((here / "data" / "rows.jsonl").read_text().replace("row", "line"))
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text('{"num_hidden_layers": 2, "model_type": "llama"}')
    (here / "model" / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    search = here / "tune" / "search.yaml"
    rows, second, absolute = "data/rows.jsonl", "data/second.jsonl", str(here / "data" / "second.jsonl")
    space = "space: {students.naive.learning_rate: {uniform: [0.001, 0.01]}, %s: {choice: %s}}"
    kind = "space: {students.naive.objective.kind: {choice: [xent, logconf]}}"
    search.write_text(SEARCH.replace(kind, space % ("task.source", json.dumps([rows, second]))))
    assert sorted(prepared(read(search)).parcel.files) == [rows, second, "jobs/job.yaml", "tune/search.yaml"]
    search.write_text(SEARCH.replace(kind, space % ("task.source", json.dumps([rows, absolute]))))
    with pytest.raises(JobError, match="task.source: a choice, .*, is data/second.jsonl on the cluster; write it so"):
        prepared(read(search))
    search.write_text(SEARCH.replace(kind, space % ("students.naive.model", '["builtin:smollm2-135m", "model"]')))
    with pytest.raises(JobError, match="students.naive.model(.source)?: model: weights do not travel"):
        prepared(read(search))


def test_checkpoints_do_not_travel(here: Path) -> None:
    checkpoint = here / "run" / "partial"
    checkpoint.mkdir(parents=True)
    said = [f"compute.resume={checkpoint}"]
    with pytest.raises(JobError, match=f"compute.resume: {checkpoint}: checkpoints do not travel; put it below"):
        prepared(read("jobs/job.yaml", said))
    assert prepared(read("jobs/job.yaml", said), shared=[here / "run"]).command[5:-1] == said


@pytest.mark.parametrize(("name", "stem"), [("_draft", "draft-"), ("étude 2", "tude-2-"), ("é", "job-")])
def test_a_job_of_any_name_has_an_id_that_a_run_may_have(here: Path, name: str, stem: str) -> None:
    sent = prepared(read((here / "jobs" / "job.yaml").rename(here / "jobs" / f"{name}.yaml")))
    assert sent.stem == stem + sent.stem[-8:]
    assert USABLE.fullmatch(sent.stem)


def test_the_cluster_says_where_results_go_unless_we_do(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "jobs" / "job.yaml").write_text(JOB.replace("compute: {storage: /mnt/shared/trimtab}", ""))
    assert prepared(read("jobs/job.yaml")).command[5:-1] == []
    monkeypatch.setenv("TRIMTAB_STORAGE", "/mnt/ours")
    assert prepared(read("jobs/job.yaml")).command[5:-1] == ['compute.storage="/mnt/ours"']
    monkeypatch.setenv("TRIMTAB_STORAGE", "s3://bucket/prefix")
    assert prepared(read("jobs/job.yaml")).command[5:-1] == ['compute.storage="s3://bucket/prefix"']
    sent = prepared(read("jobs/job.yaml", ["compute.storage=/a", "compute.address=ray://other"]))
    assert sent.command[5:-1] == ["compute.storage=/a", "compute.address=ray://other", "compute.address=null"]


def test_the_name_follows_what_the_job_is_made_of(here: Path) -> None:
    stem = prepared(read("jobs/job.yaml")).stem
    assert stem.startswith("job-")
    assert prepared(read("jobs/job.yaml")).stem == stem
    assert prepared(read("jobs/job.yaml", ["seeds=[7]"])).stem != stem
    assert prepared(read("jobs/job.yaml", ["compute.workers=2"])).stem != stem
    with (here / "data" / "rows.jsonl").open("a") as rows:
        rows.write('\n{"text": "one more", "label": 1}')
    assert prepared(read("jobs/job.yaml")).stem != stem


def test_what_it_needs_is_estimated_for_the_cluster_s_size(here: Path) -> None:
    sent = prepared(read("jobs/job.yaml", ["supervisor.tune.kind=full"]))
    assert sent.worker > 135e6 * 16
    assert sent.need(8).memory > sent.need(1).memory >= sent.worker


def test_secrets_do_not_travel(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-0123456789")
    with pytest.raises(JobError, match="value of SOME_API_KEY would travel") as told:
        prepared(read("jobs/job.yaml", ["name=sk-0123456789"]))
    assert "sk-0123456789" not in str(told.value)
    with (here / "jobs" / "job.yaml").open("a") as file:
        file.write("# made with http://host:5000/image@sha256:0, kept at abfs://container@account/x\n")
    prepared(read("jobs/job.yaml"))
    for password in ("pass", "pa/ss"):
        with pytest.raises(JobError, match="an address holds a password") as told:
            prepared(read("jobs/job.yaml", [f"name=http://user:{password}@host/x"]))
        assert "ss@" not in str(told.value)


def test_too_much_is_refused_with_the_largest_files(tmp_path: Path) -> None:
    files = {}
    for i in range(14):
        path = tmp_path / f"{i}.bin"
        path.write_bytes(b"")
        with path.open("r+b") as sparse:
            sparse.truncate((i + 1) << 20)
        files[f"data/{i}.bin"] = path
    with pytest.raises(ResourceError) as told:
        Parcel("files of the job", files).fits()
    lines = str(told.value).splitlines()
    assert "105.0 MiB in 14 files would travel, and a cluster takes 100.0 MiB" in lines[0]
    assert lines[1].split() == ["14.0", "MiB", "data/13.bin"]
    assert len(lines) == 11
    Parcel("files of the job", dict(list(files.items())[:13])).fits()


def test_code_is_the_package_with_its_data() -> None:
    names = code().files
    assert {"trimtab/cli.py", "trimtab/search/search.html.j2", "trimtab/data/facts.txt"} <= set(names)
    assert not [name for name in names if name.endswith(".pyc")]
    assert code().size < 8 << 20
