"""S3 policies evaluated, as IAM does it, and a store that holds to one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from perfit_storage import AccessDenied, ObjectStore, StoredObject
from perfit_storage.objects import Write

Policy = dict[str, Any]
"""A policy document."""


def evaluate(policies: Sequence[Policy], action: str, resource: str, prefix: str | None = None) -> bool:
    """Decide a request: a matching denial counts for all, else one matching permission is needed.

    Args:
        policies: Of the user.
        action: Such as ``s3:GetObject``.
        resource: ``bucket/key``, or the bucket alone.
        prefix: What a listing asks for.
    """
    statements = [statement for policy in policies for statement in policy["Statement"]]
    effects = {item["Effect"] for item in statements if _applies(item, action, f"arn:aws:s3:::{resource}", prefix)}
    return effects == {"Allow"}


def _applies(statement: Policy, action: str, resource: str, prefix: str | None) -> bool:
    # MinIO's administrative statements name no resource: they are about the whole server.
    resources = statement.get("Resource", ["*"])
    return (
        any(_matches(pattern, action) for pattern in statement["Action"])
        and any(_matches(pattern, resource) for pattern in resources)
        and _holds(statement.get("Condition"), prefix)
    )


def _holds(condition: Policy | None, prefix: str | None) -> bool:
    """The one kind of condition that is used here; a request without a prefix does not meet it."""
    if condition is None:
        return True
    ((operator, keys),) = condition.items()
    ((name, patterns),) = keys.items()
    assert (operator, name) == ("StringLike", "s3:prefix")
    return prefix is not None and any(_matches(pattern, prefix) for pattern in patterns)


def _matches(pattern: str, text: str) -> bool:
    """``*`` is any text and ``?`` any character, slashes included."""
    parts = {"*": ".*", "?": "."}
    return re.fullmatch("".join(parts.get(mark) or re.escape(mark) for mark in pattern), text, re.DOTALL) is not None


@dataclass(frozen=True)
class PolicedStore:
    """An ``ObjectStore`` that refuses what a user's policies do, request by request."""

    objects: ObjectStore
    policies: Sequence[Policy]
    bucket: str

    @property
    def uri(self) -> str:
        return self.objects.uri

    def get(self, key: str, limit: int | None = None) -> StoredObject:
        self._check("s3:GetObject", key)
        return self.objects.get(key, limit)

    def copy(self, key: str, write: Write, limit: int) -> int:
        self._check("s3:GetObject", key)
        return self.objects.copy(key, write, limit)

    def put(self, key: str, data: bytes) -> None:
        self._check("s3:PutObject", key)
        self.objects.put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        self._check("s3:PutObject", key)
        return self.objects.create(key, data)

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """AWS asks for both rights where a write depends on what is there."""
        self._check("s3:GetObject", key)
        self._check("s3:PutObject", key)
        return self.objects.replace(key, data, version)

    def exists(self, key: str) -> bool:
        self._check("s3:GetObject", key)
        return self.objects.exists(key)

    def size(self, key: str) -> int:
        self._check("s3:GetObject", key)
        return self.objects.size(key)

    def modified(self, key: str) -> float:
        self._check("s3:GetObject", key)
        return self.objects.modified(key)

    def list(self, prefix: str) -> Iterator[str]:
        if not evaluate(self.policies, "s3:ListBucket", self.bucket, prefix):
            raise AccessDenied(f"list {prefix}", "")
        return self.objects.list(prefix)

    def directories(self, prefix: str) -> Iterator[str]:
        if not evaluate(self.policies, "s3:ListBucket", self.bucket, prefix):
            raise AccessDenied(f"list {prefix}", "")
        return self.objects.directories(prefix)

    def delete(self, key: str) -> None:
        self._check("s3:DeleteObject", key)
        self.objects.delete(key)

    def _check(self, action: str, key: str) -> None:
        if not evaluate(self.policies, action, f"{self.bucket}/{key}"):
            raise AccessDenied(f"{action} {key}", "")
