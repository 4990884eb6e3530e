"""Serve files: Serve's own format, read strictly, with every mistake where the user made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.errors import JobError
from trimtab.serving.file import ServeFile, load_serve
from trimtab.serving.start import cause, served

pytestmark = pytest.mark.slow

FILE = """\
http_options: {host: 127.0.0.1, port: 9000}
applications:
  - name: guided
    route_prefix: /llm
    import_path: trimtab.serving.app:build
    args:
      models:
        smol: builtin:smollm2-135m
        weak: {source: builtin:smollm2-135m, layers: 22}
      ensembles:
        duo: {base: smol, helpers: [weak], guide: {kind: contrastive}}
    deployments:
      - {name: duo, ray_actor_options: {num_cpus: 1}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "guided.yaml"
    file.write_text(FILE)
    return file


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(JobError) as caught:
        load_serve(path, overrides)
    return [problem.replace(f"{path.parent}/", "") for problem in caught.value.problems]


def test_a_file_is_read_with_its_overrides(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = "applications.0.args"
    file = load_serve(path, [f"{app}.ensembles.duo.guide.coef=2", f"{app}.storage=here", "http_options.port=9001"])
    assert isinstance(file, ServeFile)
    assert file.args["guided"].ensembles["duo"].guide.coef == 2
    assert file.url == "http://127.0.0.1:9001/llm"
    assert file.config.applications[0].args["storage"] == str(tmp_path / "here")


def test_every_mistake_is_told_at_once_where_it_stands(path: Path) -> None:
    path.write_text(
        FILE.replace("port: 9000", "prot: 9000")
        .replace("layers: 22", "layers: 31")
        .replace("helpers: [weak]", "helpers: [waek]")
        .replace("kind: contrastive", "kind: contrastve")
        .replace("{name: duo, ray", "{name: dou, num_replica: 2, ray")
    )
    assert [problem.partition("; allowed")[0] for problem in mistakes(path)] == [
        "guided.yaml:1: http_options.prot: unknown key; did you mean 'port'?",
        "guided.yaml:13: applications.0.deployments.0.num_replica: unknown key; did you mean 'num_replicas'?",
        "guided.yaml:11: applications.0.args.ensembles.duo.guide.kind: "
        "unknown kind 'contrastve'; did you mean 'contrastive'?",
        "guided.yaml:9: applications.0.args.models.weak.layers: the model has 30 layers",
        "guided.yaml:13: applications.0.deployments.0.name: no deployment 'dou'; did you mean 'duo'?; "
        "there: ingress, duo",
    ]
    path.write_text(FILE.replace("helpers: [weak]", "helpers: [waek]").replace("layers: 22", "layres: 22"))
    assert [problem.partition("; allowed")[0] for problem in mistakes(path)] == [
        "guided.yaml:9: applications.0.args.models.weak.layres: unknown key; did you mean 'layers'?",
        "guided.yaml:11: applications.0.args.ensembles.duo.helpers.0: "
        "no model 'waek'; did you mean 'weak'?; there: smol, weak",
    ]


def test_a_file_that_is_none_of_ours(path: Path, tmp_path: Path) -> None:
    assert mistakes(tmp_path / "guidde.yaml") == [
        "guidde.yaml: no such serve file; did you mean 'guided.yaml'?; there: guided.yaml"
    ]
    assert "no application has import_path: trimtab.serving.app:build" in mistakes(path, "applications=[]")[0]
    assert "should be an integer" in mistakes(path, "http_options.port=many")[0].replace("a valid", "an")
    (found,) = mistakes(path, "applications.0.import_path=some.other:app")
    assert "no application has import_path" in found


def test_other_machines_are_not_served_without_a_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIMTAB_API_KEYS", raising=False)
    for host in ("0.0.0.0", "192.0.2.7"):
        with pytest.raises(JobError, match="TRIMTAB_API_KEYS holds no key"):
            with served(path, [f"http_options.host={host}"]):
                pass
    path.write_text(FILE.replace("host: 127.0.0.1, ", ""))
    with pytest.raises(JobError, match=r"0\.0\.0\.0 is reached from other machines"):
        with served(path):
            pass


def test_what_serve_says_of_a_failure_is_cut_to_its_cause() -> None:
    told = "The deployment failed.\nTraceback (most recent call last):\n  File x\n    raise ModelError(\n"
    assert cause(f"{told}trimtab.errors.ModelError: no such model\nput it there") == (
        "trimtab.errors.ModelError: no such model\nput it there"
    )
    assert cause("It is waiting\nfor CPUs.\n") == "It is waiting\nfor CPUs."
