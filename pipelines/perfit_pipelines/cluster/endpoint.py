"""Where Kubeflow Pipelines is, and who calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Endpoint:
    """How to reach Kubeflow Pipelines, and as whom.

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
