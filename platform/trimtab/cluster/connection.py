"""A cluster's dashboard: Ray's own job client, with a token, and errors that say what to do."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

from trimtab.errors import ClusterError
from trimtab.run.joining import TOKEN, settle_token

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ANSWERS_WITHIN_S = 30.0
PAUSE_S = 0.5
NODES = 10_000
"""As many as Ray's dashboard tells of at most; by itself of a hundred, the dead among them."""
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class Lost(ClusterError):
    """The cluster did not answer this time; it may the next."""


class Cluster:
    """A cluster that jobs are sent to. `open` says that it asks for no token."""

    def __init__(self, address: str | None) -> None:
        """Connect. Raises ClusterError where nothing answers, or not to us."""
        settle_token()
        if address:
            address = f"http://{address}" if ":" in address and "://" not in address else address
            os.environ[ADDRESSES[0]] = address
        elif not any(os.environ.get(name) for name in ADDRESSES):
            raise ClusterError("which cluster? give --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS")
        self.address = _url(address)
        self.open = self._mode() == "disabled"
        with self._told():
            self.client = _client(self.address)

    def _mode(self) -> str:
        """How it is guarded; it tells everyone."""
        import requests

        try:
            answer = requests.get(f"{self.address}/api/authentication_mode", timeout=ANSWERS_WITHIN_S)
            return answer.json().get("authentication_mode", "") if answer.ok else ""
        except (requests.RequestException, ValueError) as error:
            raise ClusterError(
                f"no cluster's dashboard answers at {self.address} ({type(error).__name__}); give the address of the "
                "head's dashboard, such as http://HEAD:8265, and see that its port can be reached from here"
            ) from error

    def jobs(self) -> dict[str, str]:
        """The status of every job that was ever sent, by its id."""
        with self._told():
            return {job.submission_id: str(job.status) for job in self.client.list_jobs() if job.submission_id}

    def submit(self, **said: Any) -> str:
        with self._told():
            return self.client.submit_job(**said)

    def info(self, job: str) -> JobDetails:
        """Raises ClusterError for a job that it does not know."""
        with self._told(job):
            return self.client.get_job_info(job)

    async def tail(self, job: str) -> AsyncIterator[str]:
        """The log, from its start, in pieces, for as long as the job runs. Raises Lost."""
        import aiohttp

        try:
            async with aclosing(self.client.tail_job_logs(job)) as pieces:
                async for piece in pieces:
                    yield piece
        except (aiohttp.ClientError, RuntimeError, OSError) as error:
            raise Lost(str(error)) from error

    def nodes(self) -> list[Mapping[str, Any]]:
        """What each living node offers, as Ray counts it: CPU, GPU, memory. Raises Lost where not even a head is there.

        A dashboard answers some moments before its own node is counted.
        """
        from ray.util.state import list_nodes

        said = {"filters": [("state", "=", "ALIVE")], "limit": NODES, "timeout": ANSWERS_WITHIN_S}
        until = time.monotonic() + ANSWERS_WITHIN_S
        while time.monotonic() < until:
            with self._told():
                found = list_nodes(self.address, raise_on_missing_output=False, **said)
            if found:
                return [node.resources_total for node in found]
            time.sleep(PAUSE_S)
        raise Lost(f"the cluster at {self.address} counts no node that is alive; see whether its head has come up")

    def asked(self, path: str) -> dict[str, Any]:
        """What the dashboard says under a path."""
        with self._told():
            answer = self.client._do_request("GET", path)
            answer.raise_for_status()
            return answer.json()

    @contextmanager
    def _told(self, job: str = "") -> Iterator[None]:
        """Ray's errors as ours. Raises ClusterError, or Lost where it may answer later."""
        import requests
        from ray.exceptions import AuthenticationError
        from ray.util.state.exception import RayStateApiException

        try:
            yield
        except AuthenticationError as error:
            refused = "refuses the token" if "failed" in str(error) else "asks for a token"
            raise ClusterError(f"the cluster at {self.address} {refused}: {TOKEN}") from error
        except (requests.RequestException, ConnectionError, RayStateApiException) as error:
            raise Lost(f"{type(error).__name__}: {error}") from error
        except RuntimeError as error:
            if job and str(error).startswith("Request failed with status code 404:"):
                raise ClusterError(f"the cluster at {self.address} knows no job {job}") from error
            raise Lost(str(error)) from error


def _client(address: str) -> JobSubmissionClient:
    """Ray's client, which by itself waits for ever, and tells of every upload."""
    from ray.job_submission import JobSubmissionClient

    class Impatient(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **said: Any) -> Any:
            return super()._do_request(method, endpoint, **({"timeout": ANSWERS_WITHIN_S} | said))

    for name in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    return Impatient(address)


def _url(address: str | None) -> str:
    """Raises ClusterError for one that leads nowhere."""
    from ray.dashboard.utils import get_address_for_submission_client

    try:
        found = get_address_for_submission_client(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"{address or 'RAY_ADDRESS'}: no cluster there ({error})") from error
    return (found if "://" in found else f"http://{found}").rstrip("/")
