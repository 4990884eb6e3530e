"""A dashboard as Ray's job client meets it, whose job says what a script tells, and whose connections break."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOKEN = "the-token-of-this-cluster"


@dataclass
class Dashboard:
    """Every connection to the log tells it from its start; the first ones break off after so many characters.

    `silent`: they say nothing more instead, as over a line that is dead, and during the last of them the job ends; so
    do the first `slow` questions about a job. The next `stumbles` of them meet an error in the dashboard itself.
    `starting`: so many first questions about nodes come before it knows of its own.
    `rests`: of the first connections, how many seconds each is quiet before the log's end, while the job runs.
    """

    log: str
    breaks: list[int] = field(default_factory=list)
    status: str = "SUCCEEDED"
    exit_code: int | None = 0
    jobs: dict[str, str] = field(default_factory=dict)
    received: list[dict[str, Any]] = field(default_factory=list)
    lose_answers: int = 0
    silent: bool = False
    slow: int = 0
    stumbles: int = 0
    starting: int = 0
    rests: list[float] = field(default_factory=list)
    token: str | None = None
    url: str = ""
    connections: int = 0

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self.guard], client_max_size=100 * 2**20)
        app.router.add_get("/api/authentication_mode", self.mode)
        app.router.add_get("/api/version", self.version)
        app.router.add_get("/api/jobs/", self.listed)
        app.router.add_post("/api/jobs/", self.taken)
        app.router.add_get("/api/jobs/{job}", self.info)
        app.router.add_get("/api/jobs/{job}/logs/tail", self.tail)
        app.router.add_get("/api/v0/nodes", self.nodes)
        app.router.add_get("/api/packages/{protocol}/{name}", self.package)
        return app

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization")
        if self.token is None or request.path == "/api/authentication_mode" or given == f"Bearer {self.token}":
            return await handler(request)
        return web.Response(status=403 if given else 401, text="no")

    async def mode(self, request: web.Request) -> web.Response:
        return web.json_response({"authentication_mode": "token" if self.token else "disabled"})

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

    async def package(self, request: web.Request) -> web.Response:
        return web.Response()

    async def nodes(self, request: web.Request) -> web.Response:
        self.starting -= 1
        own = {"node_id": "a", "node_ip": "127.0.0.1", "is_head_node": True, "state": "ALIVE", "state_message": None}
        own |= {"node_name": "head", "resources_total": {"CPU": 2.0, "memory": 4.0 * 2**30}, "labels": {}}
        found = [] if self.starting >= 0 else [own]
        counted = {"total": len(found), "num_after_truncation": len(found), "num_filtered": len(found)}
        return web.json_response({"result": True, "msg": "", "data": {"result": counted | {"result": found}}})

    def details(self, job: str) -> dict[str, Any]:
        said = {"type": "SUBMISSION", "submission_id": job, "entrypoint": "python", "message": "so it ended.\nlog"}
        return said | {"status": self.jobs[job], "driver_exit_code": self.exit_code}

    async def listed(self, request: web.Request) -> web.Response:
        return web.json_response([self.details(job) for job in self.jobs])

    async def taken(self, request: web.Request) -> web.Response:
        """A job; of the first so many the answer gets lost on the way."""
        said = await request.json()
        if said["submission_id"] in self.jobs:
            return web.Response(status=400, text=f"{said['submission_id']} already exists")
        self.jobs[said["submission_id"]] = "RUNNING"
        self.received.append(said)
        if self.lose_answers:
            self.lose_answers -= 1
            request.transport.abort()
        return web.json_response({"submission_id": said["submission_id"], "job_id": said["submission_id"]})

    async def info(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        if self.slow:
            self.slow -= 1
            await asyncio.sleep(3600)
        if self.stumbles:
            self.stumbles -= 1
            return web.Response(status=500, text='File "job_head.py", line 404, in get_job_info')
        return web.json_response(self.details(job)) if job in self.jobs else web.Response(status=404, text="none")

    async def tail(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["job"] not in self.jobs:
            return web.Response(status=404, text="none")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.connections += 1
        until = self.breaks.pop(0) if self.breaks else None
        for start in range(0, len(self.log[:until]), 7):
            if start + 7 >= len(self.log[:until]) and self.rests:
                await asyncio.sleep(self.rests.pop(0))
            await socket.send_str(self.log[:until][start : start + 7])
        if until is None or (self.silent and not self.breaks):
            self.jobs[request.match_info["job"]] = self.status
        if until is not None and self.silent:
            await asyncio.sleep(3600)
        elif until is not None:
            request.transport.abort()
        return socket


@contextmanager
def serving(dashboard: Dashboard) -> Iterator[Dashboard]:
    """The dashboard on a port of this machine, in a thread."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    runner = web.AppRunner(dashboard.app(), shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        dashboard.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()

    def run() -> None:
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield dashboard
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()
