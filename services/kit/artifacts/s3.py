"""Artifacts in an S3 bucket, with the `minio` client in threads. Works with MinIO, AWS and anything that speaks S3."""

from __future__ import annotations

import asyncio
import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error
from urllib3.exceptions import HTTPError

from services.kit.artifacts.port import StoreError, check_digest, copy_hashing, object_name
from services.kit.errors import SettingsError
from services.kit.settings import StoreSettings

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
RETRIES = 2
_CONNECTIONS = 16
_DENIED = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"})
_MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "NoSuchObject", "ResourceNotFound", "NotFound"})
_CODE = re.compile(r"<Code>([A-Za-z]{1,64})</Code>")


class S3Store:
    """The adapter for an object store; makes the bucket at the first write if it is missing."""

    def __init__(self, client: Minio, endpoint: str, bucket: str) -> None:
        self._client = client
        self._place = f"{endpoint}/{bucket}"
        self._bucket = bucket
        self._ensured = False
        self._ensuring = threading.Lock()

    @classmethod
    def from_settings(cls, settings: StoreSettings) -> S3Store:
        """Build from settings; does not connect.

        Raises:
            SettingsError: if the credentials file is missing or not two lines.
        """
        if settings.credentials is None:
            raise SettingsError(
                "open artifact store: store.kind is s3, so set store.credentials to a file of two lines"
            )
        try:
            access, secret = settings.credentials.read_text().split()
        except OSError as error:
            raise SettingsError(f"read {settings.credentials}: {error.strerror}; it holds the S3 access key") from error
        except ValueError as error:
            raise SettingsError(
                f"read {settings.credentials}: expected the access key on one line and the secret on the next"
            ) from error
        pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            maxsize=_CONNECTIONS,
            retries=urllib3.Retry(total=RETRIES, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
        )
        # Only AWS has regions; asking others for theirs is a request that some answer in a form minio cannot read.
        region = None if settings.endpoint.endswith("amazonaws.com") else "us-east-1"
        client = Minio(settings.endpoint, access, secret, secure=settings.secure, region=region, http_client=pool)
        return cls(client, settings.endpoint, settings.bucket)

    async def put_file(self, path: Path) -> str:
        """Store a file."""
        return await asyncio.to_thread(self._put_file, path)

    async def put(self, data: bytes) -> str:
        """Store bytes."""
        return await asyncio.to_thread(self._put, io.BytesIO(data), f"of {len(data)} bytes")

    async def length(self, sha256: str) -> int | None:
        """Size, or None."""
        return await asyncio.to_thread(self._length, sha256)

    async def open_range(self, sha256: str, offset: int, length: int) -> bytes:
        """Read a part."""
        return await asyncio.to_thread(self._read, sha256, offset, length)

    async def fetch(self, sha256: str, destination: Path) -> None:
        """Download to a file, verifying."""
        await asyncio.to_thread(self._fetch, sha256, destination)

    def _put_file(self, path: Path) -> str:
        try:
            with path.open("rb") as source:
                return self._put(source, str(path))
        except OSError as error:
            reason = "not_found" if isinstance(error, FileNotFoundError) else "failed"
            raise StoreError("put", str(path), reason, f"{error.strerror}") from error

    def _put(self, source: BinaryIO, what: str) -> str:
        digest, length = copy_hashing(source, None)
        source.seek(0)
        with _explained("put", what, self._place):
            self._ensure_bucket()
            self._client.put_object(self._bucket, object_name(digest), source, length)
        return digest

    def _length(self, sha256: str) -> int | None:
        name = object_name(sha256)
        try:
            with _explained("look up", sha256, self._place):
                return cast(int, self._client.stat_object(self._bucket, name).size)
        except StoreError as error:
            if error.reason == "not_found":
                return None
            raise

    def _read(self, sha256: str, offset: int, length: int) -> bytes:
        size = self._length(sha256) if length <= 0 or offset < 0 else None
        if size is not None:
            raise StoreError("read", sha256, "out_of_range", f"ask for a part of its {size} bytes")
        with _explained("read", sha256, self._place):
            response = self._client.get_object(self._bucket, object_name(sha256), offset=offset, length=length)
            try:
                data = response.read(length + 1)
            finally:
                response.close()
                response.release_conn()
        if len(data) != length:
            raise StoreError("read", sha256, "out_of_range", f"it has no {length} bytes at {offset}; is it damaged?")
        return data

    def _fetch(self, sha256: str, destination: Path) -> None:
        with _explained("fetch", sha256, self._place):
            response = self._client.get_object(self._bucket, object_name(sha256))
            try:
                with destination.open("wb") as file:
                    check_digest(sha256, copy_hashing(response, file)[0])
            except BaseException:
                destination.unlink(missing_ok=True)
                raise
            finally:
                response.close()
                response.release_conn()

    def _ensure_bucket(self) -> None:
        with self._ensuring:
            if not self._ensured and not self._client.bucket_exists(self._bucket):
                self._client.make_bucket(self._bucket)
            self._ensured = True


@contextmanager
def _explained(operation: str, artifact: str, place: str) -> Iterator[None]:
    try:
        yield
    except (S3Error, InvalidResponseError) as error:
        raise _refusal(operation, artifact, place, error) from error
    except HTTPError as error:
        step = f"{place} does not answer ({error}); is store.endpoint right and the server up?"
        raise StoreError(operation, artifact, "unreachable", step) from error
    except (MinioException, OSError, ValueError) as error:
        raise StoreError(operation, artifact, "failed", f"{place}: {error}") from error


def _refusal(operation: str, artifact: str, place: str, error: S3Error | InvalidResponseError) -> StoreError:
    # Some servers label their XML as text/xml, which minio does not read: the code is in it all the same.
    match = _CODE.search(str(error))
    code = str(error.code) if isinstance(error, S3Error) else match[1] if match else ""
    if code in _DENIED:
        step = f"{place} says {code}; check the file that store.credentials names"
        return StoreError(operation, artifact, "access_denied", step)
    if code in _MISSING:
        return StoreError(operation, artifact, "not_found", f"store it first (looked in {place})")
    if code == "InvalidRange":
        return StoreError(operation, artifact, "out_of_range", f"{place} has no such part of it; is it damaged?")
    if not code:
        step = f"{place} does not answer as S3 does; is store.endpoint right?"
        return StoreError(operation, artifact, "unreachable", step)
    return StoreError(operation, artifact, "failed", f"{place} says {code}: {error}")
