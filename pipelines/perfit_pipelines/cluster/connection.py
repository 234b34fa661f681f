"""The connection to Kubeflow Pipelines, through KFP's own client, which is imported when it connects."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from perfit.errors import PerfitError

if TYPE_CHECKING:
    import kfp
    from kfp_server_api import V2beta1GetHealthzResponse, V2beta1Run

_SECONDS_TO_ANSWER = 60
_PAGE = 100


@dataclass(frozen=True)
class Endpoint:
    """How to reach Kubeflow Pipelines, and with which credentials.

    Args:
        host: URL of its UI or API. Without it, KFP's client finds the API itself: in a pod by the service's name and
            the pod's service account, elsewhere through the kubeconfig's API server.
        namespace: Of the user's profile, where Kubeflow serves several users.
        token: Bearer token.
        cookies: A ``Cookie`` header.
        ui_host: URL of the UI for links, where ``host`` is the bare API.
        ca_cert: Certificate of the authority that signed the server's.
        verify_ssl: Whether to check the server's certificate.
    """

    host: str | None = None
    namespace: str | None = None
    token: str | None = field(default=None, repr=False)
    cookies: str | None = field(default=None, repr=False)
    ui_host: str | None = None
    ca_cert: Path | None = None
    verify_ssl: bool = True


@dataclass(frozen=True)
class Kubeflow:
    """A connected Kubeflow Pipelines.

    Args:
        client: KFP's client.
        where: Its URL, for messages.
        ui: URL of the UI, if it is known.
        namespace: To use in every call; None where Kubeflow serves one user.
        version: Of the server, if it gives one.
    """

    client: kfp.Client
    where: str
    ui: str | None
    namespace: str | None
    version: tuple[int, int, int] | None = None

    @contextmanager
    def calling(self, doing: str) -> Iterator[None]:
        """Call the client without its output, and with errors that a user can act on.

        Raises:
            PerfitError: The server refused or did not answer.
        """
        from perfit_pipelines.cluster.errors import CallError, explain

        try:
            with _quiet(), redirect_stdout(io.StringIO()):
                yield
        except CallError as error:
            raise explain(error, doing, self.where) from error

    def read_run(self, run_id: str) -> V2beta1Run:
        """Read a run with its tasks, within a minute.

        Raises:
            ApiException, HTTPError: The server refused or did not answer.
            PerfitError: It answered with a login page.
        """
        from perfit_pipelines.cluster.errors import login_page

        with _quiet():
            run = self.client.runs.run_service_get_run(run_id, _request_timeout=_SECONDS_TO_ANSWER)
        if run.run_id is None:
            raise login_page(self.where)
        return run

    def read_text(self, path: str, limit: int, **query: str) -> str | None:
        """Read what the host has under a path of its own; None if it has nothing there, or a web page.

        Args:
            path: From the host on.
            limit: How many bytes to keep, of the end.
            query: Of the URL.
        """
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError

        try:
            with _quiet():
                answer = self.client.runs.api_client.call_api(
                    path,
                    "GET",
                    query_params=list(query.items()),
                    auth_settings=["Bearer"],
                    _preload_content=False,
                    _request_timeout=_SECONDS_TO_ANSWER,
                )
                tail = b""
                for piece in answer.stream(limit):
                    tail = (tail + piece)[-limit:]
        except (ApiException, HTTPError):
            return None
        kind = answer.headers.get("content-type", "")
        return None if "html" in kind else tail.decode(errors="replace")

    def link(self, page: str) -> str | None:
        """Return the URL of a page of the UI, such as ``runs/details/ID``."""
        return f"{self.ui}/#/{page}" if self.ui else None


def connect(endpoint: Endpoint) -> Kubeflow:
    """Connect, and make sure that Kubeflow Pipelines answers.

    Raises:
        PerfitError: It cannot be reached, requires a login, or serves several users and no namespace is known.
    """
    from perfit_pipelines.cluster.errors import NAMESPACE_FIX, CallError, explain, login_page

    host = endpoint.host or None
    where = _without_credentials(host) if host else "its default address (in a pod, else by your kubeconfig)"
    try:
        with _quiet(), redirect_stdout(io.StringIO()):
            client = _client_class()(
                host=host,
                existing_token=endpoint.token,
                cookies=endpoint.cookies,
                ssl_ca_cert=str(endpoint.ca_cert) if endpoint.ca_cert else None,
                verify_ssl=endpoint.verify_ssl,
            )
            health = client.get_kfp_healthz()
    except CallError as error:
        raise explain(error, "answer", where) from error
    except _NotJson as error:
        raise login_page(where) from error
    namespace = endpoint.namespace or client.get_user_namespace() or None
    if health.multi_user and not namespace:
        raise PerfitError(f"Kubeflow at {where} serves several users, and no namespace was given", NAMESPACE_FIX)
    ui = endpoint.ui_host or host
    return Kubeflow(
        client,
        where,
        _without_credentials(ui).rstrip("/") if ui else None,
        namespace if health.multi_user else None,
        client.version,
    )


def server_tag(health: dict[str, Any]) -> str:
    """Return the version in an answer to a health check, as the server writes it; empty if it gives none."""
    # The API server calls it tag_name; the UI, which passes requests on to it, apiServerTagName.
    return str(health.get("tag_name") or health.get("apiServerTagName") or "")


def parse_version(tag: str | None) -> tuple[int, int, int] | None:
    """Return the numbers of a version such as ``v2.17.0`` or ``2.17.0-rc.1``, or None if it is not a version."""
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", tag or "")
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def list_all(list_page: Callable[..., Any], items: str, **filters: Any) -> Iterator[Any]:
    """Yield all items of a list that the API gives in pages."""
    token = ""
    while True:
        page = list_page(page_token=token, page_size=_PAGE, **filters)
        yield from getattr(page, items) or []
        token = page.next_page_token
        if not token:
            return


def name_filter(name: str) -> str:
    """Return the API's filter for a display name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


class _NotJson(Exception):
    """The server answered, but not with JSON."""


def _client_class() -> type[kfp.Client]:
    import kfp
    from kfp_server_api import V2beta1GetHealthzResponse

    class Client(kfp.Client):
        """KFP's client, whose own health check repeats a refused request for 25 seconds and logs a trace of each."""

        version: tuple[int, int, int] | None = None

        def get_kfp_healthz(self, sleep_duration: int = 0) -> V2beta1GetHealthzResponse:
            # The generated code reads any answer as an empty record, so a login page would pass for a server.
            answer = self.healthzs.healthz_service_get_healthz(
                _preload_content=False, _request_timeout=_SECONDS_TO_ANSWER
            )
            try:
                health = json.loads(answer.data)
                multi_user, self.version = bool(health.get("multi_user")), parse_version(server_tag(health))
            except (ValueError, AttributeError):
                raise _NotJson from None
            return V2beta1GetHealthzResponse(multi_user=multi_user)

    return Client


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress KFP's warnings and urllib3's notes on retries, which would hide the actual error."""
    log = logging.getLogger("urllib3")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.netloc else url
