"""Who may do what in the store: an S3 policy for the server's key, and one for each client's.

Policies are AWS IAM documents as MinIO, SeaweedFS and AWS take them. They follow the keys of
:mod:`perfit_storage.layout`. Four things about them are easy to get wrong:

- A ``*`` also matches slashes. ``rounds/*/plan.json`` would let every client read ``rounds/1/updates/plan.json``,
  the record of a client named ``plan``; a statement of denials excludes such keys, and those that would put an object
  below another one's key, where a store on a file system could no longer write that one.
- A client called ``masks``, ``rounds`` or ``clients`` would be denied its own: :class:`ClusterSpec` refuses these ids.
- A run can be given another method than the file's; its directory is then ``<name>.<method>``, for the same roles. No
  federation's name has a dot, so ``<name>.*`` is nobody else's; that its ``*`` matches slashes too is what the denials
  of deeper directories are for.
- The steps ask for objects that may be missing. MinIO and SeaweedFS answer "not found" to a role that may read the key;
  AWS itself does so only for keys that may list the whole bucket, which these policies do not allow.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from perfit.cluster_spec import ClusterClient, ClusterSpec
from perfit.errors import PerfitError
from perfit.locations import check_store_uri, federation_file_problem
from perfit_components.steps.client import ADAPTER_DIRECTORY

Policy = dict[str, Any]
"""An IAM policy document."""

_HASH = "?" * 64
_READ, _WRITE, _DELETE, _LIST = "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"
_EXCHANGED = ("exchanged.safetensors", "exchanged.*.safetensors")
_GLOBAL = ("global.safetensors", "global.*.safetensors")
_STATE = ("state.safetensors", "state.*.safetensors")
_SUMMARY = ("summary.json", "summary.*.json")
_WILD = ("*", "?", "${")


class Bucket:
    """Where federations are kept: a bucket, and the prefix of every key in it.

    Args:
        uri: Of the store, ``s3://bucket/prefix``; the prefix may be missing.

    Raises:
        PerfitError: The URI is of another kind, or contains what a policy would take for a wildcard.
    """

    def __init__(self, uri: str):
        parts = urlsplit(check_store_uri(uri))
        if parts.scheme != "s3" or not parts.netloc or _is_wild(uri):
            raise PerfitError(
                f"{uri!r} is not a store that has keys of its own for each role",
                "give s3://bucket/prefix, without wildcards, in the federation file (store) or with --store",
            )
        self.name = parts.netloc
        self.prefix = f"{parts.path.strip('/')}/".lstrip("/")

    def keys(self, spec: ClusterSpec, *paths: str) -> list[str]:
        """Return keys in the bucket of paths in a federation's directory, and in those of its runs by other methods."""
        names = (spec.name, f"{spec.name}.*")
        return [f"{self.prefix}federations/{name}/{path}" for name in names for path in paths]

    def arns(self, spec: ClusterSpec, *paths: str) -> list[str]:
        """Return the resource names of :meth:`keys`."""
        return [f"arn:aws:s3:::{self.name}/{key}" for key in self.keys(spec, *paths)]


def server_policy(spec: ClusterSpec, store: str) -> Policy:
    """Return what Prepare and Aggregate may do: read all but ``clients/`` of this federation, write the server's own.

    Raises:
        PerfitError: The store is not of S3.
    """
    bucket = Bucket(store)
    written = ["spec.yaml", "model.json", "head.json", f"files/{_HASH}.yaml"]
    read = [*written, "masks/*", "rounds/*"]
    vectors = (*_EXCHANGED, *_GLOBAL, *_STATE, "downloads/*", "ranks/*")
    written += [f"rounds/*/{name}" for name in ("plan.json", "served.json", *vectors, *_SUMMARY, "report.html")]
    return _policy(
        _allow([_READ], bucket.arns(spec, *read)),
        _allow([_WRITE], bucket.arns(spec, *written)),
        _allow_list(bucket, bucket.keys(spec, "rounds/", "rounds/*/updates/", "masks/")),
        _statement("Deny", [_WRITE], bucket.arns(spec, "masks/*", "rounds/*/updates/*")),
        _statement("Deny", [_READ, _WRITE], bucket.arns(spec, "clients/*")),
    )


def client_policy(spec: ClusterSpec, client: ClusterClient, store: str) -> Policy:
    """Return what a client's pods may do: read plans and its own downloads, and write what is the client's own.

    Without a search, all clients of a rank download the same. The client's own records may be read too, if they are
    in S3.

    Raises:
        PerfitError: The store is not of S3, or the client's records are among a federation's files, or their URI holds
            wildcards.
    """
    bucket, name = Bucket(store), client.id
    updates = [f"rounds/*/updates/{name}.{end}" for end in ("json", "safetensors", "*.safetensors")]
    own = [f"masks/{name}/{_HASH}", *updates, f"clients/{name}/*"]
    shared = ["spec.yaml", "model.json", "head.json", "rounds/*/plan.json"]
    downloads = (f"downloads/{name}", f"ranks/{spec.rank_of(client)}")
    shared += [f"rounds/*/{download}.{end}" for download in downloads for end in ("safetensors", "*.safetensors")]
    return _policy(
        _allow([_READ, _WRITE], bucket.arns(spec, *own)),
        _allow([_READ], bucket.arns(spec, *shared) + _record_arns(client, store)),
        _allow_list(bucket, bucket.keys(spec, f"masks/{name}/", f"clients/{name}/")),
        _statement("Deny", [_READ, _WRITE], bucket.arns(spec, *_matched_by_accident(name), *_deeper())),
    )


def serving_policy(spec: ClusterSpec, store: str) -> Policy:
    """Return what a server of the personal adapters may do: read the adapters of all clients, nothing else of them.

    Raises:
        PerfitError: The store is not of S3.
    """
    bucket, adapters = Bucket(store), f"clients/*/{ADAPTER_DIRECTORY}/*"
    return _policy(
        _allow([_READ], bucket.arns(spec, "spec.yaml", "model.json", "head.json", adapters)),
        _allow_list(bucket, bucket.keys(spec, f"clients/*/{ADAPTER_DIRECTORY}*")),
    )


def bench_policy(name: str, store: str) -> Policy:
    """Return what the pods of a bench may do, and the machine that submits them: everything below its directory.

    Raises:
        PerfitError: The store is not of S3.
    """
    bucket = Bucket(store)
    files = f"{bucket.prefix}benches/{name}/*"
    return _policy(
        _allow([_READ, _WRITE, _DELETE], [f"arn:aws:s3:::{bucket.name}/{files}"]), _allow_list(bucket, [files])
    )


def policy_text(policy: Policy) -> str:
    """Return a policy as one line of JSON: stores limit its length."""
    return json.dumps(policy, separators=(",", ":"))


def _deeper() -> list[str]:
    """The layout of a federation below one of its directories, where nothing of it is."""
    return [f"*/{path}" for path in ("spec.yaml", "model.json", "head.json", "masks/*", "rounds/*", "clients/*")]


def _matched_by_accident(client: str) -> list[str]:
    """What the ``*`` of a round's number or an update's hash also matches, but does not belong to this client."""
    of_plan = [] if client == "plan" else ["rounds/*/updates/plan.json"]
    return ["rounds/*/updates/*/*", "rounds/*/*/updates/*", *of_plan]


def _record_arns(client: ClusterClient, store: str) -> list[str]:
    uris = [uri for uri in (client.data, client.held_out) if uri and uri.startswith("s3://")]
    for uri in uris:
        if problem := federation_file_problem(uri, store):
            raise PerfitError(f"client {client.id!r}: {problem}", "correct data and held_out in the federation file")
    for uri in filter(_is_wild, uris):
        raise PerfitError(
            f"client {client.id!r}: {uri!r} holds what a policy of the store takes for a wildcard",
            "give its records a name without *, ? and ${",
        )
    return [f"arn:aws:s3:::{uri.removeprefix('s3://')}" for uri in uris]


def _is_wild(text: str) -> bool:
    return any(mark in text for mark in _WILD)


def _policy(*statements: Policy) -> Policy:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(actions: list[str], resources: list[str]) -> Policy:
    return _statement("Allow", actions, resources)


def _allow_list(bucket: Bucket, prefixes: list[str]) -> Policy:
    statement = _allow([_LIST], [f"arn:aws:s3:::{bucket.name}"])
    return statement | {"Condition": {"StringLike": {"s3:prefix": prefixes}}}


def _statement(effect: str, actions: list[str], resources: list[str]) -> Policy:
    return {"Effect": effect, "Action": actions, "Resource": resources}
