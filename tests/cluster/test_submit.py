"""trimtab submit against a real head with a token: a job to its end, a follower killed, failures, secrets."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cluster.heads import Head, clean_environment, head
from tests.conftest import save_tiny_llama, sentence
from tests.test_cli import JOB

from trimtab import verbs

pytestmark = pytest.mark.ray

PLANTED = {
    "OPENAI_API_KEY": "sk-planted-api-key-0123456789",
    "MLFLOW_TRACKING_URI": "http://user:planted-password-0123@127.0.0.1:9/mlflow",
    "AWS_SECRET_ACCESS_KEY": "planted/aws/secret/key/0123456789",
}
SECRETS = [*(value for name, value in PLANTED.items() if "URI" not in name), "planted-password-0123"]


@pytest.fixture(scope="module")
def started() -> Iterator[Head]:
    with head(PLANTED) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with its rows, a tiny model on storage that all nodes reach."""
    import random

    root, draw = tmp_path_factory.mktemp("submit"), random.Random(0)
    save_tiny_llama(root / "mnt" / "model")
    rows = [dict(zip(("text", "label"), sentence(draw), strict=True)) for _ in range(80)]
    (root / "mine").mkdir()
    (root / "mine" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    job = JOB.format(rows="rows.jsonl", model=root / "mnt" / "model")
    (root / "mine" / "job.yaml").write_text(
        job.replace("{backend: inline}", f"{{storage: {root}/mnt/storage, groups: 1}}")
    )
    return root


def submit(*arguments: str | Path, folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    checkout = {"PYTHONPATH": str(Path(__file__).parents[2] / "platform")}
    command = [sys.executable, "-m", "trimtab", "submit", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder / "mine", env=environment | checkout, **pipes)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def told(started: Head, folder: Path, *arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    given = started.environment(RAY_API_SERVER_ADDRESS=started.address, **environment)
    return ended(submit(*arguments, "--shared", folder / "mnt", folder=folder, environment=given))


@dataclass(frozen=True)
class Told:
    """How a job of this name was followed to its end."""

    job: str
    code: int
    out: str
    err: str


def name_in(err: str, stem: str) -> str:
    (name,) = {word.rstrip(":") for word in err.split() if word.startswith(f"{stem}-")}
    return name


@pytest.fixture(scope="module")
def detached(started: Head, folder: Path) -> dict[str, str]:
    """Jobs that run beside the main one: one whose training cannot go well, one without a place for results."""
    text = (folder / "mine" / "job.yaml").read_text()
    homeless, apart = "compute: {groups: 1}", f"compute: {{storage: {folder}/mnt/apart, backend: inline}}"
    own = f"compute: {{storage: {folder}/mnt/storage, groups: 1}}"
    broken = text.replace("learning_rate: 0.01", "learning_rate: 1.0e+38")
    texts = {"broken": broken.replace(own, apart), "homeless": text.replace(own, homeless)}
    names = {}
    for stem, said in texts.items():
        (folder / "mine" / f"{stem}.yaml").write_text(said)
        code, _, err = told(started, folder, f"{stem}.yaml", "--detach")
        assert code == 0, err
        names[stem] = name_in(err, stem)
    return names


@pytest.fixture(scope="module")
def followed(started: Head, folder: Path, detached: dict[str, str]) -> Told:
    """A job whose first follower is killed; how the second one tells it."""
    given = started.environment()
    process = submit(
        *("job.yaml", "--address", started.address, "--json", "--shared", folder / "mnt"),
        folder=folder,
        environment=given,
    )
    for line in process.stdout:
        if '"stage_start"' in line:
            break
    process.kill()
    _, err = process.communicate(timeout=60)
    job = name_in(err, "job")
    return Told(job, *told(started, folder, "--follow", job))


def test_a_job_goes_on_without_its_follower_and_the_next_one_shows_all(followed: Told, folder: Path) -> None:
    assert followed.code == 0, followed
    out, lines = followed.out, followed.out.splitlines()
    starts = [line.split()[-1] for line in lines if " start " in line]
    assert len([line for line in lines if "stages, 0 there already" in line]) == 1
    assert len(starts) == len([line for line in lines if " done " in line]) >= 6
    assert "student.naive" in out
    assert f"report:  {folder}/mnt/storage/artifacts/report-" in out
    assert f"{followed.job}: exit code 0" in followed.err


def test_the_code_travelled(followed: Told, folder: Path) -> None:
    (log,) = (folder / "mnt" / "storage" / "runs").glob("*/events.jsonl")
    start = json.loads(log.read_text().splitlines()[0])
    assert start["event"] == "run_start"
    assert start["commit"] is None, "it ran from a folder that is no checkout"


def test_the_same_job_again_is_another_attempt_that_finds_everything(
    followed: Told, started: Head, folder: Path
) -> None:
    code, out, err = told(started, folder, "job.yaml", "--json")
    assert code == 0, (out, err)
    last = json.loads(out.splitlines()[-1])
    assert (last["event"], last["ran"]) == ("done", 0)
    assert f"{followed.job.removesuffix('-1')}-2: sent" in err


def test_a_job_that_fails_gives_its_exit_code(detached: dict[str, str], started: Head, folder: Path) -> None:
    code, out, err = told(started, folder, "--follow", detached["broken"])
    assert code == 1, (out, err)
    assert "StageError" in err
    assert "exit code 1" in err


def test_results_are_not_left_in_the_job_s_own_folder(detached: dict[str, str], started: Head, folder: Path) -> None:
    code, _, err = told(started, folder, "--follow", detached["homeless"])
    assert code == 2, err
    assert "is the folder of this job and goes with it; set compute.storage" in err


def test_what_does_not_fit_is_refused_before_it_is_sent(started: Head, folder: Path) -> None:
    code, _, err = told(started, folder, "job.yaml", "compute.workers=5")
    assert code == 2
    assert "5 workers of 1 CPUs and 0 GPUs each do not fit: there is room for 2 on 1 node" in err
    heavy = folder / "mine" / "heavy.jsonl"
    heavy.write_text((folder / "mine" / "rows.jsonl").read_text() + "\n")
    with heavy.open("r+b") as sparse:
        sparse.truncate(101 * 2**20)
    code, _, err = told(started, folder, "job.yaml", "task.source=heavy.jsonl")
    heavy.unlink()
    assert code == 2
    assert "a cluster takes 100.0 MiB" in err
    assert "101.0 MiB  heavy.jsonl" in err


@pytest.mark.parametrize(("token", "said"), [("0" * 64, "refuses the token"), ("", "asks for a token")])
def test_who_has_not_the_token_is_told_where_to_put_it(started: Head, folder: Path, token: str, said: str) -> None:
    environment = clean_environment() | {"HOME": str(folder)} | ({"RAY_AUTH_TOKEN": token} if token else {})
    code, _, err = ended(
        submit(
            "job.yaml", "--address", started.address, "--shared", folder / "mnt", folder=folder, environment=environment
        )
    )
    assert code == 2
    assert said in err
    assert "RAY_AUTH_TOKEN_PATH" in err


@pytest.mark.parametrize(("given", "said"), [(None, "1\n"), ("0" * 64, "ClusterError: no Ray cluster lets us in at ")])
def test_a_driver_joins_with_a_token_alone_or_is_told(started: Head, given: str | None, said: str) -> None:
    script = "from trimtab.run.joining import ray_at\nimport sys\nray = ray_at(sys.argv[1])\n"
    environment = started.environment(PYTHONPATH=str(Path(__file__).parents[2] / "platform"))
    done = subprocess.run(
        [sys.executable, "-c", f"{script}print(ray.get(ray.remote(lambda: 1).remote()))", started.gcs],
        env=environment | {"RAY_NUM_REDIS_GET_RETRIES": "2"} | ({"RAY_AUTH_TOKEN": given} if given else {}),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert said in done.stdout + done.stderr
    assert given is None or "RAY_AUTH_TOKEN_PATH" in done.stderr


def test_ctrl_c_lets_go_and_says_how_to_go_on(started: Head, folder: Path) -> None:
    given = started.environment(RAY_ADDRESS=started.address)
    job = ("job.yaml", "supervisor.tune.steps=1000000000", "compute.backend=inline", "--shared", folder / "mnt")
    process = submit(*job, folder=folder, environment=given)
    for line in process.stdout:
        if " start " in line:
            break
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == 130
    name = name_in(err, "job")
    assert f"trimtab submit --follow {name} --address {started.address}" in err
    again = submit(*job, "--detach", folder=folder, environment=given)
    code, _, err = ended(again)
    assert (code, f"{name}: this very job is under way there" in err) == (0, True)
    stop = err.partition("To stop it:")[2].split()
    assert stop[:4] == ["RAY_AUTH_MODE=token", "ray", "job", "stop"]
    subprocess.run([*stop[1:], "--no-wait"], env=given | {stop[0].split("=")[0]: "token"}, check=True, timeout=120)
    code, _, err = told(started, folder, "--follow", name)
    assert code == 130
    assert "exit code 130" in err


def test_no_log_record_or_listing_tells_secrets(followed: Told, started: Head, folder: Path, empty_store: Path) -> None:
    from ray.job_submission import JobSubmissionClient

    store = shutil.copy(empty_store, folder / "mnt" / "storage" / "replayed.db")
    assert [done.problem for done in verbs.sync(None, folder / "mnt" / "storage", f"sqlite:///{store}")] != []
    files = [path for place in (started.folder, folder / "mnt" / "storage") for path in place.rglob("*")]
    read = {path: path.read_bytes() for path in files if path.is_file()}
    assert len(read) > 50
    for secret in (*SECRETS, started.token):
        assert [path for path, text in read.items() if secret.encode() in text] == []
    client = JobSubmissionClient(started.address, headers={"Authorization": f"Bearer {started.token}"})
    jobs = [job.model_dump_json() for job in client.list_jobs()]
    assert len(jobs) >= 3
    assert not [
        secret for secret in (*SECRETS, started.token) if secret in "".join([*jobs, followed.out, followed.err])
    ]
