"""Failed calls of Kubeflow Pipelines, as errors that a user can act on."""

from __future__ import annotations

import json
import re

from kfp_server_api import ApiException
from urllib3.exceptions import HTTPError, MaxRetryError, ResponseError, SSLError

from perfit.errors import PerfitError

LOGIN_FIX = (
    "log in: set PERFIT_KFP_TOKEN to a valid token, or PERFIT_KFP_COOKIES to the cookies of a browser session that is "
    "logged in (Dex: authservice_session=..., oauth2-proxy: oauth2_proxy_kubeflow=...)"
)
UNREACHABLE_FIX = (
    "check --host; from outside the cluster, for instance: "
    "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80, then --host http://localhost:8080"
)
NAMESPACE_FIX = "give the namespace of your profile with --namespace, or in PERFIT_KFP_NAMESPACE"
SIZE_FIX = "lower rounds and submit again for more, or schedule single rounds: perfit schedule create"
SERVER_FIX = "try again; if it stays, look at the server: kubectl -n kubeflow logs deploy/ml-pipeline"

CallError = (ApiException, HTTPError)
"""What a call of the API raises: the server refused, or did not answer."""

_LONGEST = 400


def is_transient(error: Exception) -> bool:
    """Whether the same call may succeed later: no answer, too many requests, or a failure of the server itself."""
    if isinstance(error, ApiException):
        return error.status == 429 or (error.status or 0) >= 500
    return isinstance(error, HTTPError) and not _is_final(error)


def explain(error: Exception, doing: str, where: str) -> PerfitError:
    """Return a failed call as an error that names problem and fix.

    Args:
        error: One of ``CallError``.
        doing: What was attempted, as in "would not (create the run)".
        where: The URL of the server, without credentials.
    """
    if not isinstance(error, ApiException):
        return _no_answer(error, where)
    reason = _reason(error)
    problem = f"Kubeflow at {where} would not {doing} ({error.status}): {reason}"
    return PerfitError(problem, _fix(error.status or 0, reason))


def login_page(where: str) -> PerfitError:
    """Return the error of a server that answers with a web page instead of data."""
    return PerfitError(
        f"Kubeflow at {where} answered with a web page, not with data: most likely its login page, "
        "or the address is not that of Kubeflow Pipelines",
        f"{LOGIN_FIX}; or correct --host",
    )


def _no_answer(error: Exception, where: str) -> PerfitError:
    reason = error.reason if isinstance(error, MaxRetryError) else error
    if isinstance(reason, ResponseError):
        return login_page(where)
    if isinstance(reason, SSLError):
        if "WRONG_VERSION_NUMBER" in str(reason):
            return PerfitError(f"{where} does not speak TLS", "give --host with http:// instead of https://")
        return PerfitError(
            f"the certificate of {where} cannot be verified: {_shorten(str(reason))}",
            "give the authority's certificate with --ca-cert FILE, or --no-verify-ssl where you trust the network",
        )
    return PerfitError(f"Kubeflow at {where} cannot be reached: {_shorten(str(reason))}", UNREACHABLE_FIX)


def _is_final(error: HTTPError) -> bool:
    reason = error.reason if isinstance(error, MaxRetryError) else error
    return isinstance(reason, (SSLError, ResponseError))


def _fix(status: int, reason: str) -> str:
    lower = reason.lower()
    if status == 401:
        return LOGIN_FIX
    if status == 403 and re.search(r"service[ -]?account", lower):
        return (
            "let an administrator name the account in ALLOWEDSERVICEACCOUNTS of deployment ml-pipeline, and, in a "
            "profile, give you the right to `use` it"
        )
    if status == 403:
        return "ask an administrator for the right to use pipelines there, or give another --namespace"
    if status == 413 or re.search(r"too large|too long|larger than|exceeds|size limit", lower):
        return SIZE_FIX
    if "namespace" in lower and re.search(r"empty|no namespace|required|must", lower):
        return NAMESPACE_FIX
    if status == 404:
        return "check the name and --namespace, and that --host is that of Kubeflow Pipelines (2.17; 2.16.1 with less)"
    if status == 409:
        return "someone else may be submitting the same: try again, or remove the older one in the UI"
    if status == 429 or status >= 500:
        return SERVER_FIX
    return "correct what it names; `perfit doctor FILE` checks the cluster"


def _reason(error: ApiException) -> str:
    """The server's message, without headers (they may hold cookies) and without its stack traces."""
    try:
        body = json.loads(error.body or "")
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return error.reason or "no reason given"
    details = [detail for detail in body.get("details") or [] if isinstance(detail, dict)]
    texts = [detail.get("error_message") for detail in details]
    texts += [body.get(key) for key in ("error_message", "message", "error")]
    return _shorten(next((text for text in texts if isinstance(text, str) and text.strip()), error.reason or ""))


def _shorten(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
