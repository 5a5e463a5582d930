"""A server on this machine that answers what the real W&B client asks: runs, media, `wandb sync`, sweeps, agents.

It keeps everything in memory for the tests to look at. W&B's own package `sweeps` decides what a sweep tries next.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import yaml

ENTITY = "lab"


def project(name: str | None) -> dict:
    """As the server describes one."""
    return {"id": "cA==", "name": name, "entity": {"id": "ZQ==", "name": ENTITY}}


@dataclass
class Run:
    """What has arrived of a run."""

    name: str
    project: str = ""
    display_name: str = ""
    sweep: str | None = None
    state: str = "running"  # finished, failed, preempted as the client says; W&B calls a silent run crashed
    exit_code: int | None = None
    config: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    starts: int = 0

    def values(self, metric: str) -> list:
        """Of a metric, in the order they arrived."""
        return [row[metric] for row in self.history if metric in row]


@dataclass
class Sweep:
    """A sweep and what its agents run."""

    name: str
    config: dict = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    state: str = "RUNNING"
    trials: dict[str, dict] = field(default_factory=dict)  # run -> {parameter: {"value": ...}}
    agents: list[str] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    """On a free port of the loopback interface."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.RLock()
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.given_up: set[str] = set()  # trials to stop
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        """A client that went away, which the base class would print; a mistake of ours fails the client's test."""

    def run(self, name: str) -> Run:
        """The run, a new one if need be."""
        return self.runs.setdefault(name, Run(name))

    def answer(self, operation: str, asked: dict) -> dict:
        """The data of a GraphQL operation; what is not known here is answered with nothing."""
        method = getattr(self, f"on_{operation.lower()}", None)
        return method(asked) if method else {}

    # who is asking

    def on_viewer(self, asked: dict) -> dict:
        user = {"id": "dQ==", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "", "admin": False}
        lists = {"apiKeys": {"edges": []}, "teams": {"edges": []}}
        return {"viewer": user | lists | {"flags": "{}", "deletedAt": None}}

    on_getviewer = on_getdefaultentity = on_viewer

    # runs

    def on_runresumestatus(self, asked: dict) -> dict:
        run = self.runs.get(asked["name"])
        if run is None or not run.starts:
            return {"model": {"bucket": None}}
        last = [json.dumps(run.history[-1])] if run.history else []
        bucket = {
            "id": f"run-{run.name}",
            "name": run.name,
            "displayName": run.display_name,
            "config": json.dumps({k: {"value": v} for k, v in run.config.items()}),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "historyTail": json.dumps(last),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {
            "model": {"id": "cA==", "name": run.project, "entity": {"id": "ZQ==", "name": ENTITY}, "bucket": bucket}
        }

    def on_upsertbucket(self, asked: dict) -> dict:
        run = self.run(asked["name"])
        run.project = asked.get("project") or run.project
        run.display_name = asked.get("displayName") or run.display_name
        run.sweep = asked.get("sweep") or run.sweep
        if asked.get("config"):
            run.config = {k: v.get("value") for k, v in json.loads(asked["config"]).items()}
        if run.state not in ("running", "preempting") or not run.starts:
            run.starts, run.state, run.exit_code = run.starts + 1, "running", None
        bucket = {
            "id": f"run-{run.name}",
            "name": run.name,
            "displayName": run.display_name,
            "config": asked.get("config"),
            "sweepName": run.sweep,
            "historyLineCount": len(run.history),
            "project": project(run.project),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": run.starts == 1}}

    def on_createrunfiles(self, asked: dict) -> dict:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{asked['run']}/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}

    def streamed(self, name: str, project: str, content: dict) -> None:
        """History, summary and the end of a run, sent as lines of files with their offset."""
        run, files = self.run(name), content.get("files") or {}
        history = files.get("wandb-history.jsonl")
        if history:
            lines = [json.loads(line) for line in history["content"]]
            run.history[history.get("offset", len(run.history)) :] = lines
        for line in files.get("wandb-summary.json", {}).get("content", []):
            run.summary = json.loads(line)
        if content.get("preempting"):
            run.state = "preempting"
        if content.get("complete"):
            run.exit_code = content.get("exitcode")
            left = "preempted" if run.state == "preempting" else "failed"
            run.state = left if run.exit_code else "finished"

    # sweeps

    def on_upsertsweep(self, asked: dict) -> dict:
        import sweeps

        name = asked.get("id") or f"sweep{len(self.sweeps)}"
        sweep = self.sweeps.setdefault(name, Sweep(name))
        if asked.get("config"):
            sweep.config = yaml.safe_load(asked["config"])
            sweep.warnings = sweeps.schema_violations_from_proposed_config(sweep.config)
        sweep.state = asked.get("state") or sweep.state
        found = {"name": sweep.name, "project": project(asked.get("projectName"))}
        return {"upsertSweep": {"sweep": found, "configValidationWarnings": sweep.warnings}}

    def on_sweepwithruns(self, asked: dict) -> dict:
        sweep = self.sweeps.get(asked["sweep"])
        if sweep is None:
            return {"project": {"sweep": None}}
        named = {"id": sweep.name, "name": sweep.name, "state": sweep.state, "runs": {"edges": []}}
        return {"project": {"sweep": named | {"method": sweep.config["method"], "config": yaml.dump(sweep.config)}}}

    def on_createagent(self, asked: dict) -> dict:
        agents = self.sweeps[asked["sweep"]].agents
        name = f"{asked['sweep']}-agent{len(agents)}"
        agents.append(name)
        return {"createAgent": {"agent": {"id": name}}}

    def on_heartbeat(self, asked: dict) -> dict:
        commands = self._commands(asked["id"], json.loads(asked["runState"] or "{}"))
        return {"agentHeartbeat": {"agent": {"id": asked["id"]}, "commands": json.dumps(commands)}}

    def _commands(self, agent: str, alive: dict) -> list[dict]:
        """What an agent is to do: go on, a new trial when it is idle, a stop for those that the tests give up."""
        import sweeps

        sweep = next(s for s in self.sweeps.values() if agent in s.agents)
        if alive:
            return [{"type": "stop", "run_id": name} for name in alive if name in self.given_up]
        past = [self._trial(name, config) for name, config in sweep.trials.items()]
        full = len(past) >= sweep.config.get("run_cap", len(past) + 1)
        trial = None if full or sweep.state != "RUNNING" else sweeps.next_run(sweep.config, past)
        if trial is None:
            return [{"type": "exit"}]
        name = f"{sweep.name}-{len(past)}"
        sweep.trials[name] = trial.config
        return [{"type": "run", "run_id": name, "program": sweep.config["program"], "args": trial.config}]

    def _trial(self, name: str, config: dict):
        import sweeps

        run = self.runs.get(name) or Run(name)
        kept = {"summary_metrics": run.summary, "history": run.history}
        return sweeps.SweepRun(name=name, state=run.state, config=config, **kept)


class Handler(BaseHTTPRequestHandler):
    """GraphQL, the stream of a run's history, and the upload of files."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.reply({})

    def do_PUT(self) -> None:
        body = self.body()
        run, name = re.match(r"/upload/([^/]+)/(.*)", unquote(self.path.split("?")[0])).groups()
        with self.server.lock:
            self.server.run(run).files[name] = body
        self.reply({})

    def do_POST(self) -> None:
        content = json.loads(self.body() or b"{}")
        stream = re.fullmatch(r"/files/[^/]+/([^/]+)/([^/]+)/file_stream", unquote(self.path))
        with self.server.lock:
            if stream:
                self.server.streamed(stream[2], stream[1], content)
                return self.reply({})
            named = content.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", content["query"])[1]
            return self.reply({"data": self.server.answer(named, content.get("variables") or {})})

    def body(self) -> bytes:
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def reply(self, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
