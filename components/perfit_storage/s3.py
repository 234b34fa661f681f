"""Objects in an S3 bucket (MinIO, AWS, SeaweedFS, any compatible server), through the MinIO client.

Settings come from the environment, under the names that AWS's own tools use::

    AWS_ENDPOINT_URL        http(s)://host:port; without it AWS itself
    AWS_ACCESS_KEY_ID       required
    AWS_SECRET_ACCESS_KEY   required
    AWS_SESSION_TOKEN       for temporary credentials
    AWS_REGION              us-east-1 by default
    AWS_CA_BUNDLE           PEM file of the authorities to trust; by default those of certifi
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

import certifi
import urllib3
from minio import Minio
from minio.datatypes import Object
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError, SSLError

from perfit_storage.errors import (
    AccessDenied,
    ObjectNotFound,
    ObjectTooLarge,
    StoreError,
    StoreUnreachable,
    UnreadableObject,
    UnsafeStore,
)
from perfit_storage.objects import (
    PIECE_BYTES,
    UNREADABLE_FIX,
    Data,
    Fill,
    StoredObject,
    T,
    Write,
    bounded,
    check_key,
    check_prefix,
    too_large,
)

_AWS_ENDPOINT = "https://s3.amazonaws.com"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_TYPE = "application/octet-stream"
_GET_ATTEMPTS = 3
_CONFLICT_PAUSES_S = (0.1, 0.4, 1.6)

# An unreachable server costs four connection attempts and 1.8 s of pauses, about 10 s at most.
# A store's own Retry-After (MinIO asks for two minutes) would exceed that.
_TIMEOUT = urllib3.Timeout(connect=2.0, read=30.0)
_RETRIES = urllib3.Retry(
    total=3,
    read=2,
    backoff_factor=0.3,
    status_forcelist=(500, 502, 503, 504),
    raise_on_status=False,
    respect_retry_after_header=False,
)

_TRANSIENT_STATUS = {408, 425, 429}
_DAMAGED_ON_THE_WAY = {"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"}
"""Error codes for bytes that were damaged or lost on the way: a retry may succeed."""

_DENIED_FIXES = {
    "AccessDenied": "allow this access key to do so in the store's policy, and check the AWS_* credentials",
    "InvalidAccessKeyId": "correct AWS_ACCESS_KEY_ID, or AWS_ENDPOINT_URL if the key belongs to another store",
    "SignatureDoesNotMatch": "correct AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "renew the temporary credentials: AWS_SESSION_TOKEN has expired",
    "InvalidToken": "correct AWS_SESSION_TOKEN, or unset it if the credentials are not temporary",
}
_OTHER_FIXES = {
    "NoSuchBucket": "create the bucket, or correct the bucket in the store URI",
    "RequestTimeTooSkewed": "set this machine's clock",
    "AuthorizationHeaderMalformed": "set AWS_REGION to the bucket's region",
    "PermanentRedirect": "set AWS_REGION to the bucket's region",
    "NotImplemented": "use an S3 server that has conditional writes (If-None-Match and If-Match)",
}
_API_FIX = "set AWS_ENDPOINT_URL to the store's S3 API, not its web console; check proxies on the way"


class _RawPool(urllib3.PoolManager):
    """Returns bodies undecoded.

    The writer of an object sets its ``Content-Encoding``. urllib3 would decode it, repeatedly if it is listed
    repeatedly: two kilobytes could become gigabytes.
    """

    def urlopen(self, method: str, url: str, redirect: bool = True, **options) -> urllib3.BaseHTTPResponse:
        return super().urlopen(method, url, redirect, decode_content=False, **options)


@dataclass(frozen=True)
class S3Settings:
    """How to reach an S3 server. TLS follows the endpoint's scheme."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    region: str = "us-east-1"
    ca_bundle: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> S3Settings:
        """Reads the AWS_* variables; an empty one counts as missing. Raises ``StoreError``."""
        # Secrets made from files often end in a newline, which no HTTP header may contain.
        values = {name: value.strip() for name, value in environment.items() if name.startswith("AWS_")}
        needed = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        missing = [name for name in needed if not values.get(name)]
        if missing:
            raise StoreError(
                f"no credentials for the S3 store: {' and '.join(missing)} not set",
                f"set {' and '.join(missing)} in the environment (on Kubernetes: from a Secret)",
            )
        return cls(
            endpoint=_checked_endpoint(values.get("AWS_ENDPOINT_URL") or _AWS_ENDPOINT),
            access_key=values["AWS_ACCESS_KEY_ID"],
            secret_key=values["AWS_SECRET_ACCESS_KEY"],
            session_token=values.get("AWS_SESSION_TOKEN") or None,
            region=values.get("AWS_REGION") or "us-east-1",
            ca_bundle=_checked_bundle(values.get("AWS_CA_BUNDLE") or None),
        )

    def connect(self, timeout: urllib3.Timeout = _TIMEOUT, retries: urllib3.Retry | bool = _RETRIES) -> Minio:
        """Returns a client; nothing is sent yet."""
        parts = urlsplit(self.endpoint)
        return Minio(
            endpoint=parts.netloc,
            access_key=self.access_key,
            secret_key=self.secret_key,
            session_token=self.session_token,
            secure=parts.scheme == "https",
            region=self.region,
            http_client=_RawPool(
                maxsize=32,
                timeout=timeout,
                retries=retries,
                cert_reqs="CERT_REQUIRED",
                ca_certs=self.ca_bundle or certifi.where(),
            ),
        )


class S3Store:
    """An ``ObjectStore`` under a prefix of an S3 bucket.

    Args:
        settings: Where the server is, and the credentials.
        bucket: A bucket that exists.
        prefix: What every key begins with, without slashes at its ends; may be empty.
    """

    def __init__(self, settings: S3Settings, bucket: str, prefix: str = ""):
        if not _BUCKET.fullmatch(bucket):
            raise StoreError(
                f"{bucket!r} cannot be the name of a bucket",
                "use 3 to 63 lower-case letters, digits, dots and hyphens",
            )
        self._root = f"{check_key(prefix)}/" if prefix else ""
        self._bucket = bucket
        self._endpoint = settings.endpoint
        self._client = settings.connect()

    @property
    def uri(self) -> str:
        """The bucket and prefix as an S3 URI."""
        return f"s3://{self._bucket}/{self._root}".rstrip("/")

    def get(self, key: str, limit: int | None = None) -> StoredObject:
        """See ``ObjectStore.get``. The version is empty if the store gave none."""
        path = self._path(key)
        with self._errors("read", key, one_object=True):
            return self._read(path, lambda response, problem: _stored(response, problem, limit))

    def copy(self, key: str, write: Write, limit: int) -> int:
        """See ``ObjectStore.copy``."""
        path = self._path(key)
        with self._errors("read", key, one_object=True):
            return self._read(path, lambda response, problem: _copied(response, problem, write, limit))

    @contextmanager
    def stream(self, key: str, limit: int) -> Iterator[Fill]:
        """See ``ObjectStore.stream``."""
        path = self._path(key)
        with self._errors("read", key, one_object=True):
            response = self._client.get_object(bucket_name=self._bucket, object_name=path)
            try:
                if (response.length_remaining or 0) > limit:
                    raise too_large(f"cannot read s3://{self._bucket}/{path}", limit)
                yield response.readinto
            finally:
                response.close()
                response.release_conn()

    def put(self, key: str, data: Data) -> None:
        """See ``ObjectStore.put``. One request, so that nothing is left of an upload that breaks off."""
        path = self._path(key)
        with self._errors("write", key):
            self._write(path, data, {})

    def create(self, key: str, data: Data) -> bool:
        """See ``ObjectStore.create``."""
        return self._put_if("create", key, data, {"If-None-Match": "*"})

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """See ``ObjectStore.replace``."""
        if not version or version.startswith("W/"):
            # If-Match never matches a weak tag: every writer would think it has lost, and try again.
            raise UnsafeStore(
                f"cannot replace {self.uri}/{key} at {self._endpoint}: the store gave "
                f"{f'the weak ETag {version}' if version else 'no ETag'} for it",
                "make proxies on the way pass on ETag headers unchanged (no compression, no rewriting), "
                "or use another store: without strong ETags writers cannot tell that an object has changed",
            )
        return self._put_if("replace", key, data, {"If-Match": version})

    def exists(self, key: str) -> bool:
        """See ``ObjectStore.exists``. S3's answer is the same for a missing bucket and a missing object."""
        try:
            self.size(key)
        except ObjectNotFound:
            return False
        return True

    def size(self, key: str) -> int:
        """See ``ObjectStore.size``."""
        return self._stat(key).size

    def modified(self, key: str) -> float:
        """See ``ObjectStore.modified``."""
        return self._stat(key).last_modified.timestamp()

    def list(self, prefix: str) -> Iterator[str]:
        """See ``ObjectStore.list``."""
        return iter(sorted(self._names(prefix, directories=False)))

    def directories(self, prefix: str) -> Iterator[str]:
        """See ``ObjectStore.directories``."""
        names = self._names(prefix, directories=True)
        return iter(sorted(name.removeprefix(prefix).removesuffix("/") for name in names))

    def delete(self, key: str) -> None:
        """See ``ObjectStore.delete``."""
        path = self._path(key)
        with self._errors("delete", key):
            self._client.remove_object(bucket_name=self._bucket, object_name=path)

    def reconnect(self) -> None:
        """See ``ObjectStore.reconnect``."""
        self._client._http.clear()

    def sweep(self, prefix: str) -> int:
        """See ``ObjectStore.sweep``. Uploads are single requests: one that breaks off leaves nothing."""
        return 0

    def _stat(self, key: str) -> Object:
        path = self._path(key)
        with self._errors("look up", key, one_object=True):
            return self._client.stat_object(bucket_name=self._bucket, object_name=path)

    def _names(self, prefix: str, directories: bool) -> list[str]:
        """The directories in this one, or the objects whose keys begin so. Not every server sorts them."""
        path = self._root + check_prefix(prefix)
        with self._errors("list", prefix):
            found = self._client.list_objects(bucket_name=self._bucket, prefix=path, recursive=not directories)
            items = bounded(found, f"{self.uri}/{prefix}")
            return [item.object_name.removeprefix(self._root) for item in items if item.is_dir == directories]

    def _path(self, key: str) -> str:
        return self._root + check_key(key)

    def _read(self, path: str, take: Callable[[urllib3.BaseHTTPResponse, str], T]) -> T:
        """Returns what ``take`` makes of an answer, and of the text for errors about it."""
        for attempt in range(1, _GET_ATTEMPTS + 1):
            response = self._client.get_object(bucket_name=self._bucket, object_name=path)
            try:
                return take(response, f"cannot read s3://{self._bucket}/{path}")
            except ProtocolError:  # The pool repeats requests without an answer, but not answers that break off.
                if attempt == _GET_ATTEMPTS:
                    raise
            finally:
                response.close()
                response.release_conn()
        raise AssertionError("the last attempt returns or raises")

    def _write(self, path: str, data: Data, condition: dict[str, str]) -> None:
        """Sends an object, with a sum that the store compares: of the one in the signature SeaweedFS takes no notice.

        The client's public ``put_object`` takes no such headers. A presigned URL would, but urllib3 logs the
        URLs of the requests it repeats, and a presigned one carries the session token and a signature.
        """
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        self._client._put_object(self._bucket, path, data, {"Content-Type": _TYPE, "Content-MD5": md5, **condition})

    def _put_if(self, action: str, key: str, data: Data, condition: dict[str, str]) -> bool:
        """Writes under a condition; True if the key holds these bytes afterwards."""
        path = self._path(key)
        with self._errors(action, key):
            for pause in (*_CONFLICT_PAUSES_S, None):
                try:
                    self._write(path, data, condition)
                    return True
                except S3Error as error:
                    if error.code in {"PreconditionFailed", "NoSuchKey"}:
                        break
                    # AWS asks clients to repeat a write that conflicted with a concurrent one.
                    if error.code != "ConditionalRequestConflict" or pause is None:
                        raise
                    time.sleep(pause)
        try:
            return self.get(key, limit=len(data)).data == data
        except (ObjectNotFound, ObjectTooLarge):
            return False

    @contextmanager
    def _errors(self, action: str, key: str, one_object: bool = False) -> Iterator[None]:
        """Converts errors to ``StoreError``; ``one_object``: the object that is read may be the cause."""
        problem = f"cannot {action} {self.uri}/{key} at {self._endpoint}"
        try:
            yield
        except S3Error as error:
            raise _store_error(problem, error, one_object) from error
        except (InvalidResponseError, ServerError) as error:
            raise _foreign_answer(problem, error, one_object) from error
        except (UnicodeDecodeError, ParseError) as error:
            raise StoreUnreachable(f"{problem}: it answered with an error that is not S3's", _API_FIX) from error
        except (MinioException, HTTPError) as error:
            if one_object and _is_about_headers(error):
                problem = f"{problem}: it has more metadata than an answer may have"
                raise UnreadableObject(problem, UNREADABLE_FIX) from error
            raise _unreachable(problem, error) from error


def _stored(response: urllib3.BaseHTTPResponse, problem: str, limit: int | None) -> StoredObject:
    return StoredObject(_body(response, problem, limit), response.headers.get("ETag", ""))


def _copied(response: urllib3.BaseHTTPResponse, problem: str, write: Write, limit: int) -> int:
    if (response.length_remaining or 0) > limit:
        raise too_large(problem, limit)
    start = 0
    while data := response.read(min(PIECE_BYTES, limit + 1 - start)):
        write(start, memoryview(data))
        start += len(data)
        if start > limit:
            raise too_large(problem, limit)
    return start


def _body(response: urllib3.BaseHTTPResponse, problem: str, limit: int | None) -> bytes:
    if limit is None:
        return response.read()
    if (response.length_remaining or 0) > limit:
        raise too_large(problem, limit)
    data = response.read(limit + 1)
    if len(data) > limit:
        raise too_large(problem, limit)
    response.read(1)  # Raises if the body broke off, which a read with a size does not notice.
    return data


def _store_error(problem: str, error: S3Error, one_object: bool) -> StoreError:
    problem = f"{problem}: {error.message or error.code} ({error.code})"
    if error.code == "NoSuchKey":
        return ObjectNotFound(problem, "check the store URI")
    if error.code in _DENIED_FIXES:
        return AccessDenied(problem, _DENIED_FIXES[error.code])
    if error.code in _OTHER_FIXES:
        return StoreError(problem, _OTHER_FIXES[error.code])
    if _is_transient(error.response.status) or error.code in _DAMAGED_ON_THE_WAY:
        return StoreUnreachable(problem, "try again when the store is less busy, or look at its log")
    if one_object:
        return UnreadableObject(problem, UNREADABLE_FIX)
    return StoreError(problem, "look the error's code up in the documentation of the store's S3 API")


def _foreign_answer(problem: str, error: InvalidResponseError | ServerError, one_object: bool) -> StoreError:
    """Returns the error for an answer that does not follow the S3 API."""
    status = error.status_code if isinstance(error, ServerError) else error._code
    problem = f"{problem}: {str(error).partition(', Body')[0]}"
    if status in {401, 403}:
        return AccessDenied(problem, "check proxies between here and the store: one of them refuses")
    if one_object and 400 <= status < 500 and not _is_transient(status):
        return UnreadableObject(problem, f"{UNREADABLE_FIX}; if no object can be read, {_API_FIX}")
    return StoreUnreachable(problem, _API_FIX)


def _is_transient(status: int) -> bool:
    return status >= 500 or status in _TRANSIENT_STATUS


def _is_about_headers(error: Exception) -> bool:
    """Whether Python refuses an answer because of its headers, which include the object's metadata."""
    reason = error.reason if isinstance(error, MaxRetryError) else error
    cause = reason.args[-1] if isinstance(reason, ProtocolError) and reason.args else None
    return isinstance(cause, http.client.LineTooLong) or "headers" in str(cause)


def _unreachable(problem: str, error: Exception) -> StoreUnreachable:
    reason = error.reason if isinstance(error, MaxRetryError) else error
    fix = "check AWS_ENDPOINT_URL, and that the store runs and can be reached from here"
    if isinstance(reason, SSLError):
        fix = "set AWS_CA_BUNDLE to the authority that signed the store's certificate"
    return StoreUnreachable(f"{problem}: {reason}", fix)


def _checked_endpoint(url: str) -> str:
    parts = urlsplit(url)
    fits = parts.scheme in {"http", "https"} and parts.hostname and not parts.path.strip("/")
    if not fits or parts.query or parts.fragment or "@" in parts.netloc:
        # The value is not shown: a URL of another form may contain a password.
        raise StoreError(
            "AWS_ENDPOINT_URL is not the URL of a server", "set it to http://host:port or https://host:port"
        )
    return f"{parts.scheme}://{parts.netloc}"


def _checked_bundle(path: str | None) -> str | None:
    if path is not None and not Path(path).is_file():
        raise StoreError(f"AWS_CA_BUNDLE: there is no file {path}", "name a PEM file, or unset it to trust certifi's")
    return path
