"""A Kubeflow Pipelines API server for tests: the part of v2beta1 that perfit uses, over HTTP, with state.

Requests are read into the models that KFP publishes (``kfp_models``), answers are such models; where the real server
checks more (namespaces, names in use, cron, ids), so does this one, with its words. Runs advance by script.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from kfp_server_api import models
from requests_toolbelt import MultipartDecoder

from .kfp_models import Invalid, parse, serialise

ROOT = "/apis/v2beta1"
LOGIN = b"<!doctype html><title>Log in</title><form>...</form>"
GRPC_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6}
ROUTES: list[tuple[str, re.Pattern, Callable]] = []


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str):
        self.status, self.message = status, message


@dataclass
class Fault:
    """Something that goes wrong with the next requests: a status, or a dropped connection."""

    method: str
    path: str
    status: int | None
    message: str
    times: int


@dataclass
class KfpApi:
    """State and behaviour of the server.

    Args:
        multi_user: Whether it serves several users, who then have to name one of ``namespaces``.
        token: If set, what the ``authorization`` header must bear, else the answer is 401.
        cookie: If set, what the ``cookie`` header must be, else the answer is a redirect to a login page.
        largest_upload: In bytes.
        version: 0.0.0 is an old one that says none. Before 2.17 it knows no limits of a run and drops the document
            that has one without a word; recurring runs then get its own service account (kubeflow/pipelines#13311).
        page: How many items a list holds at most.
        is_ui: Whether this is the UI's server, which hands out logs and pods under paths of its own, and a page
            for what it does not know.
        logs: By the pod's name.
        pods: What Kubernetes says of pods, by name.
        before: What to do before requests of a path are handled, given their query and body: what someone else does.
    """

    multi_user: bool = False
    namespaces: tuple[str, ...] = ("team-a",)
    token: str | None = None
    cookie: str | None = None
    largest_upload: int = 32 << 20
    version: tuple[int, int, int] = (2, 17, 0)
    page: int = 100
    is_ui: bool = False
    logs: dict[str, str] = field(default_factory=dict)
    pods: dict[str, dict] = field(default_factory=dict)
    url: str = ""
    experiments: dict[str, models.V2beta1Experiment] = field(default_factory=dict)
    pipelines: dict[str, models.V2beta1Pipeline] = field(default_factory=dict)
    versions: dict[str, models.V2beta1PipelineVersion] = field(default_factory=dict)
    runs: dict[str, models.V2beta1Run] = field(default_factory=dict)
    recurring_runs: dict[str, models.V2beta1RecurringRun] = field(default_factory=dict)
    script: list[tuple[str, list]] = field(default_factory=lambda: [("SUCCEEDED", [])])
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    enabled_at_once: list[int] = field(default_factory=list)
    before: dict[str, Callable[[dict[str, str], Any], None]] = field(default_factory=dict)
    crashes: list[str] = field(default_factory=list)
    _clock: Iterator[datetime] = field(default_factory=lambda: _times())

    def play(self, *looks: tuple[str, list]) -> None:
        """Set what each poll of a run returns: its state and its task details; the last one stays."""
        self.script = list(looks)

    def fail(self, method: str, path: str, status: int | None = None, message: str = "", times: int = 1) -> None:
        """Let the next requests whose path matches fail; without a status, the connection is dropped."""
        self.faults.append(Fault(method, path, status, message, times))

    def calls(self, method: str, path: str) -> list[dict[str, str]]:
        """Return the query parameters of the requests whose path matches."""
        return [query for verb, at, query in self.requests if verb == method and re.search(path, at)]

    def answer(self, method: str, path: str, query: dict[str, str], content: bytes, kind: str) -> Any:
        """Handle a request that is permitted."""
        for verb, pattern, handler in ROUTES:
            if verb == method and (match := pattern.fullmatch(path)):
                body = _body(content, kind)
                if meanwhile := self.before.pop(path.removeprefix(ROOT), None):
                    meanwhile(query, body)
                return handler(self, query, body, **match.groupdict())
        raise Refusal(404, f"Not Found: {method} {path}")

    def text(self, path: str, query: dict[str, str]) -> tuple[int, str, str] | None:
        """Return status, text and type of what is no part of v2beta1; None if it is."""
        missing = (404, '{"error": "pod not found"}', "application/json")
        if log := re.fullmatch(r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", path):
            known = not self.is_ui and log[1] in self.runs and log[2] in self.logs
            page = (200, LOGIN.decode(), "text/html")
            return (200, self.logs[log[2]], "text/plain") if known else page if self.is_ui else missing
        if path not in ("/k8s/pod/logs", "/k8s/pod"):
            return None
        if not self.is_ui:
            return missing
        held = self.logs if path.endswith("logs") else {name: json.dumps(pod) for name, pod in self.pods.items()}
        name = query["podname"] if query.get("podnamespace") else ""
        return (200, held[name], "text/plain") if name in held else (500, "Could not get it", "text/plain")

    def now(self) -> datetime:
        """Return the time, which differs at every call."""
        return next(self._clock)

    def namespace(self, given: str | None, what: str) -> str:
        """Return the namespace to use, as the real server decides."""
        if not self.multi_user:
            return ""
        if not given:
            raise Refusal(400, f"{what} cannot have an empty namespace in multi-user mode")
        if given not in self.namespaces:
            raise Refusal(403, f"User 'user@example.com' is not authorized to create {what} in namespace {given}")
        return given


def route(method: str, path: str) -> Callable:
    """Register a handler; ``{name}`` in a path is a segment of it."""
    pattern = re.compile(ROOT + re.sub(r"\{(\w+)\}", r"(?P<\1>[^/:]+)", path))

    def register(handler: Callable) -> Callable:
        ROUTES.append((method, pattern, handler))
        return handler

    return register


@route("GET", "/healthz")
def get_healthz(api: KfpApi, query, body):
    # Written by hand in the real server too: the published model has no tag_name.
    tag = {"tag_name": ".".join(map(str, api.version))} if any(api.version) else {}
    return {"commit_sha": "abc", "multi_user": api.multi_user, **tag}


@route("GET", "/experiments")
def list_experiments(api: KfpApi, query, body):
    space = api.namespace(query.get("namespace"), "An experiment")
    matching = [item for item in api.experiments.values() if item.namespace == space]
    return _page(api, query, matching, models.V2beta1ListExperimentsResponse, "experiments")


@route("POST", "/experiments")
def create_experiment(api: KfpApi, query, body):
    made = parse(body, "V2beta1Experiment")
    made.namespace = api.namespace(made.namespace, "An experiment")
    if any((e.display_name, e.namespace) == (made.display_name, made.namespace) for e in api.experiments.values()):
        raise Refusal(409, f"Failed to create a new experiment. The name {made.display_name} already exists")
    made.experiment_id, made.created_at, made.storage_state = _id(), api.now(), "AVAILABLE"
    return api.experiments.setdefault(made.experiment_id, made)


@route("GET", "/pipelines")
def list_pipelines(api: KfpApi, query, body):
    # Without a namespace, several users see the pipelines that they share.
    space = api.namespace(query["namespace"], "A pipeline") if query.get("namespace") else ""
    matching = [item for item in api.pipelines.values() if item.namespace == space]
    return _page(api, query, matching, models.V2beta1ListPipelinesResponse, "pipelines")


@route("POST", "/pipelines")
def create_pipeline(api: KfpApi, query, body):
    made = parse(body, "V2beta1Pipeline")
    if not made.name:
        raise Refusal(400, "name is required")
    made.namespace = api.namespace(made.namespace, "A pipeline")
    if any((p.name, p.namespace) == (made.name, made.namespace) for p in api.pipelines.values()):
        raise Refusal(409, f"Failed to create a new pipeline. The name {made.name} already exists")
    made.pipeline_id, made.created_at = _id(), api.now()
    return api.pipelines.setdefault(made.pipeline_id, made)


@route("GET", "/pipelines/{pipeline_id}")
def get_pipeline(api: KfpApi, query, body, pipeline_id):
    return _get(api.pipelines, pipeline_id, "Pipeline")


@route("POST", "/pipelines/upload")
def upload_pipeline(api: KfpApi, query, body):
    pipeline = create_pipeline(api, {}, {"name": query["name"], "display_name": query["name"]})
    _add_version(api, pipeline.pipeline_id, query["name"], body)
    return pipeline


@route("POST", "/pipelines/upload_version")
def upload_version(api: KfpApi, query, body):
    _get(api.pipelines, query.get("pipelineid", ""), "Pipeline")
    return _add_version(api, query["pipelineid"], query["name"], body)


@route("GET", "/pipelines/{pipeline_id}/versions")
def list_versions(api: KfpApi, query, body, pipeline_id):
    _get(api.pipelines, pipeline_id, "Pipeline")
    matching = [version for version in api.versions.values() if version.pipeline_id == pipeline_id]
    return _page(api, query, matching, models.V2beta1ListPipelineVersionsResponse, "pipeline_versions")


@route("GET", "/pipelines/{pipeline_id}/versions/{version_id}")
def get_version(api: KfpApi, query, body, pipeline_id, version_id):
    return _get(api.versions, version_id, "PipelineVersion")


@route("POST", "/runs")
def create_run(api: KfpApi, query, body):
    made = parse(body, "V2beta1Run")
    _check_launch(api, made, "run")
    made.run_id, made.created_at, made.state = _id(), api.now(), "PENDING"
    return api.runs.setdefault(made.run_id, made)


@route("GET", "/runs")
def list_runs(api: KfpApi, query, body):
    return _page(api, query, list(api.runs.values()), models.V2beta1ListRunsResponse, "runs")


@route("GET", "/runs/{run_id}")
def get_run(api: KfpApi, query, body, run_id):
    run = _get(api.runs, run_id, "Run")
    run.state, details = api.script.pop(0) if len(api.script) > 1 else api.script[0]
    run.run_details = models.V2beta1RunDetails(task_details=details)
    return run


@route("POST", "/recurringruns")
def create_recurring_run(api: KfpApi, query, body):
    made = parse(body, "V2beta1RecurringRun")
    _check_launch(api, made, "recurring run")
    if not 1 <= int(made.max_concurrency or 0) <= 10:
        raise Refusal(400, "Max concurrency of a recurring run must be at least 1 and at most 10")
    cron = made.trigger.cron_schedule
    if cron and len(cron.cron.split()) not in (5, 6):
        raise Refusal(400, "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron)")
    made.recurring_run_id, made.created_at = _id(), api.now()
    made.namespace = api.experiments[made.experiment_id].namespace
    if api.version < (2, 17, 0):
        made.service_account = "pipeline-runner"
    api.recurring_runs[made.recurring_run_id] = made
    _count_enabled(api, made.display_name)
    return made


@route("GET", "/recurringruns")
def list_recurring_runs(api: KfpApi, query, body):
    space = api.namespace(query.get("namespace"), "A recurring run")
    matching = [item for item in api.recurring_runs.values() if item.namespace == space]
    return _page(api, query, matching, models.V2beta1ListRecurringRunsResponse, "recurring_runs")


@route("GET", "/recurringruns/{id}")
def get_recurring_run(api: KfpApi, query, body, id):
    return _get(api.recurring_runs, id, "Recurring run")


@route("DELETE", "/recurringruns/{id}")
def delete_recurring_run(api: KfpApi, query, body, id):
    if query.get("propagation_policy") not in (None, *models.V2beta1DeletePropagationPolicy.allowable_values):
        raise Refusal(400, "unknown propagation policy")
    _get(api.recurring_runs, id, "Recurring run")
    del api.recurring_runs[id]
    return {}


@route("POST", "/recurringruns/{id}:enable")
def enable_recurring_run(api: KfpApi, query, body, id):
    run = _get(api.recurring_runs, id, "Recurring run")
    run.mode = models.RecurringRunMode.ENABLE
    _count_enabled(api, run.display_name)
    return {}


@route("POST", "/recurringruns/{id}:disable")
def disable_recurring_run(api: KfpApi, query, body, id):
    _get(api.recurring_runs, id, "Recurring run").mode = models.RecurringRunMode.DISABLE
    return {}


@route("POST", "/runs/{run_id}:terminate")
def terminate_run(api: KfpApi, query, body, run_id):
    _get(api.runs, run_id, "Run").state = "CANCELED"
    return {}


def _count_enabled(api: KfpApi, name: str) -> None:
    matching = [run for run in api.recurring_runs.values() if run.display_name == name and run.mode == "ENABLE"]
    api.enabled_at_once.append(len(matching))


def _check_launch(api: KfpApi, made: Any, what: str) -> None:
    if not made.display_name:
        raise Refusal(400, f"The {what} name is empty. Please specify a valid name")
    _get(api.experiments, made.experiment_id or "", "Experiment")
    source = made.pipeline_version_reference
    if source is None:
        raise Refusal(400, f"A {what} needs a pipeline version")
    version = _get(api.versions, source.pipeline_version_id, "PipelineVersion")
    root = version.pipeline_spec.get("pipeline_spec", version.pipeline_spec)["root"]
    known = root.get("inputDefinitions", {}).get("parameters", {})
    given = (made.runtime_config and made.runtime_config.parameters) or {}
    if unknown := set(given) - set(known):
        raise Refusal(400, f"invalid input parameters: {sorted(unknown)}")


def _add_version(api: KfpApi, pipeline_id: str, name: str, file: Any) -> models.V2beta1PipelineVersion:
    if not isinstance(file, bytes):
        raise Refusal(400, "Failed to read pipeline from file")
    if len(file) > api.largest_upload:
        raise Refusal(400, "File size too large. Maximum supported file size: 32MB")
    if any((v.display_name, v.pipeline_id) == (name, pipeline_id) for v in api.versions.values()):
        raise Refusal(409, "Failed to create a pipeline version")
    documents = list(yaml.load_all(file, Loader=yaml.CSafeLoader))
    json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
    for document in documents[1:]:
        json_format.ParseDict(document, pipeline_spec_pb2.PlatformSpec())
    limits = documents[1]["platforms"]["kubernetes"].get("pipelineConfig", {}) if documents[1:] else {}
    understood = documents[1:] and (api.version >= (2, 17, 0) or set(limits) <= {"resourceTtl", "workspace"})
    spec = {"pipeline_spec": documents[0], "platform_spec": documents[1]} if understood else documents[0]
    version = models.V2beta1PipelineVersion(
        pipeline_id=pipeline_id,
        pipeline_version_id=_id(),
        name=name,
        display_name=name,
        created_at=api.now(),
        pipeline_spec=spec,
    )
    return api.versions.setdefault(version.pipeline_version_id, version)


def _page(api: KfpApi, query: dict[str, str], items: list, response: type, key: str) -> Any:
    """The part of a list that is asked for; an empty one has no items, as in protobuf's JSON."""
    for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
        predicate["string_value"] = predicate.pop("stringValue", predicate.get("string_value"))
        if predicate["operation"] not in (1, "EQUALS") or predicate["key"] not in _keys(items):
            raise Refusal(400, f"invalid filter: {predicate}")
        items = [item for item in items if getattr(item, predicate["key"]) == predicate["string_value"]]
    start, size = int(query.get("page_token") or 0), min(int(query.get("page_size") or 20), api.page)
    rest = str(start + size) if len(items) > start + size else None
    return response(**{key: items[start : start + size] or None}, total_size=len(items), next_page_token=rest)


def _keys(items: list) -> set[str]:
    return set(type(items[0]).openapi_types) if items else {"display_name", "name"}


def _get(items: dict, key: str, what: str) -> Any:
    if key not in items:
        raise Refusal(404, f"{what} {key} not found.")
    return items[key]


def _id() -> str:
    return str(uuid.uuid4())


def _times() -> Iterator[datetime]:
    moment = datetime.now(UTC)
    while True:
        yield moment
        moment += timedelta(seconds=1)


def _body(content: bytes, kind: str) -> Any:
    """A JSON body, or the content of the one file of a form."""
    if not kind.startswith("multipart/form-data"):
        return json.loads(content) if content else None
    parts = MultipartDecoder(content, kind).parts
    files = [part for part in parts if b'name="uploadfile"' in part.headers[b"Content-Disposition"]]
    return files[0].content if files else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def _handle(self) -> None:
        api, url = self.server.api, urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        api.requests.append((self.command, url.path, query))
        if url.path == "/login":
            self._send(200, LOGIN, "text/html; charset=utf-8")
        elif api.cookie and self.headers.get("cookie") != api.cookie:
            self._send(302, b"", "text/html", location="/login")
        elif fault := self._fault(url.path):
            self._break(fault)
        elif text := api.text(url.path, query):
            self._send(text[0], text[1].encode(), text[2])
        else:
            self._answer(url.path, query, content)

    def _answer(self, path: str, query: dict[str, str], content: bytes) -> None:
        api = self.server.api
        try:
            if api.token and self.headers.get("authorization") != f"Bearer {api.token}":
                raise Refusal(401, "Request header error: there is no user identity header.")
            with self.server.lock:
                answer = serialise(api.answer(self.command, path, query, content, self.headers.get("content-type", "")))
            self._send(200, json.dumps(answer).encode(), "application/json")
        except (Invalid, ValueError, json_format.ParseError) as error:
            self._refuse(400, str(error), path)
        except Refusal as refusal:
            self._refuse(refusal.status, refusal.message, path)
        except ConnectionError:
            raise  # the client went away, as one that is interrupted does: for handle_error
        except Exception:
            api.crashes.append(traceback.format_exc())
            self._refuse(500, "this test server has a mistake", path)

    def _fault(self, path: str) -> Fault | None:
        for fault in self.server.api.faults:
            if fault.times and fault.method == self.command and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def _break(self, fault: Fault) -> None:
        if fault.status is None:
            self.close_connection = True
        elif fault.status == 200:
            self._send(200, LOGIN, "text/html; charset=utf-8")
        else:
            self._refuse(fault.status, fault.message, self.path)

    def _refuse(self, status: int, message: str, path: str) -> None:
        trace = f"{message}\ngithub.com/kubeflow/pipelines/backend/src/common/util.NewInvalidInputError"
        if "/upload" in path:
            body = {"error_message": message, "error_details": trace}
        else:
            detail = {"@type": "type.googleapis.com/google.rpc.Status", "error_message": message}
            body = {"error": trace, "code": GRPC_CODES.get(status, 13), "message": trace, "details": [detail]}
        self._send(status, json.dumps(body).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args) -> None:
        """Nothing: tests look at ``KfpApi.requests``."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, api: KfpApi):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api, self.lock = api, threading.Lock()

    def handle_error(self, request, client_address) -> None:
        """Nothing: a client may disconnect, or not use TLS."""


@contextmanager
def serving(api: KfpApi, certificate: Path | None = None) -> Iterator[KfpApi]:
    """Serve on a free port of this machine; ``api.url`` says where. With a certificate and its key, over TLS."""
    server = _Server(api)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    api.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not api.crashes, api.crashes[0]


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
