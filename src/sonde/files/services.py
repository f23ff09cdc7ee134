"""What a service of object storage does for a place: head, list, ranges, put, create, delete.

The client of buckets is obstore, chosen by measurement (``docs/decisions/places.md``). It retries
throttled, cut and failed requests within the limits below; what fails after that is one sentence.
"""

import base64
import importlib.util
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, final
from urllib.error import HTTPError, URLError
from urllib.parse import unquote
from urllib.request import Request, urlopen

from sonde.core.errors import InputError, StoreError
from sonde.core.wording import install_extra

MAX_RETRIES = 8
RETRY_SECONDS = 60.0
REQUEST_SECONDS = 120.0
CHUNK_BYTES = 8 * 2**20
PARALLEL = 8
GAP_BYTES = 4096
EXTRAS = {"s3": "s3", "gs": "gcs", "az": "azure"}
SETTINGS = {
    "s3": "AWS_REGION, and AWS_ENDPOINT_URL if the service is not Amazon's",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS to a file with credentials",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and the credentials of the account",
}
ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Environment variables with the address of a service or an emulator, which obstore also reads."""
KEPT = "What was committed is kept: the same command continues from there."

_STATUS = re.compile(r"\b([45]\d\d)(?::| [A-Z])")  # milliseconds stand in the message too
_SOURCE = re.compile(r"source: (\w{1,40})")
_CODE = re.compile(r"<Code>(\w{1,40})</Code>")


@dataclass(frozen=True)
class Found:
    """Size in bytes, time in seconds since 1970, and version of an object."""

    size: int
    modified: float = 0.0
    version: str = ""


class Service(ABC):
    """A bucket, or a server of files; ``said`` is the address that messages show."""

    @abstractmethod
    def head(self, key: str, said: str) -> Found | None:
        """Return size and time of an object, or None if there is none."""

    @abstractmethod
    def below(self, key: str, said: str, recursive: bool) -> Iterator[tuple[str, Found | None]]:
        """Yield the names below a name, with None for folders."""

    @abstractmethod
    def ranges(self, key: str, spans: Sequence[tuple[int, int]], said: str) -> list[memoryview]:
        """Return the bytes of each span ``(start, stop)``."""

    def any_below(self, key: str, said: str) -> bool:
        """Return whether there is any object below a name."""
        return next(self.below(key, said, recursive=False), None) is not None

    def get(self, key: str, said: str) -> bytes:
        """Return a whole object."""
        answer = self.head(key, said)
        if answer is None:
            raise FileNotFoundError(2, "there is no such object", said)
        return bytes(self.ranges(key, [(0, answer.size)], said)[0]) if answer.size else b""

    def require_writable(self, said: str) -> None:
        """Raise if the service only reads.

        Raises
        ------
        StoreError
            If it does.
        """
        raise StoreError(
            f"{said}: expected a place that can be written, got one that is only read. Write to a "
            "local path, s3://, gs:// or az://."
        )

    def put(self, key: str, source: Path, said: str) -> None:
        """Write a local file as an object, whole or not at all."""
        self.require_writable(said)

    def create(self, key: str, content: bytes, said: str) -> bool:
        """Write an object unless it exists; return whether it was written."""
        self.require_writable(said)
        return False

    def delete(self, keys: Sequence[str], said: str) -> None:
        """Remove objects; missing ones are no error."""
        self.require_writable(said)


@final
class Bucket(Service):
    """A bucket of S3, Google Cloud Storage or Azure."""

    def __init__(self, scheme: str, name: str) -> None:
        self._library = _obstore(scheme)
        try:
            self._store = _opened(scheme, name)
        except Exception as error:  # each service has its own errors of missing settings
            cause = _SOURCE.search(str(error))
            raise StoreError(
                f"{scheme}://{name}: the settings of the service do not open it"
                f"{'' if cause is None else f' ({cause[1]})'}. Set {SETTINGS[scheme]}."
            ) from None

    def require_writable(self, said: str) -> None:
        """Do nothing: buckets are written unless their owner forbids it."""

    def head(self, key: str, said: str) -> Found | None:
        """Return size and time of an object, or None if there is none."""
        with _told(said):
            try:
                answer = self._library.head(self._store, key)
            except FileNotFoundError:
                return None
            return _found(answer)

    def below(self, key: str, said: str, recursive: bool) -> Iterator[tuple[str, Found | None]]:
        """Yield the names below a name, with None for folders."""
        prefix = f"{key}/" if key else ""
        with _told(said):
            if recursive:
                for page in self._library.list(self._store, prefix or None):
                    for each in page:
                        yield each["path"][len(prefix) :], _found(each)
                return
            page = self._library.list_with_delimiter(self._store, prefix or None)
            for each in page["common_prefixes"]:
                yield each.rstrip("/")[len(prefix) :], None
            for each in page["objects"]:
                if each["path"] != key:
                    yield each["path"][len(prefix) :], _found(each)

    def ranges(self, key: str, spans: Sequence[tuple[int, int]], said: str) -> list[memoryview]:
        """Return the bytes of each span; those less than 4 KiB apart share a request."""
        with _told(said):
            starts, ends = [a for a, _ in spans], [b for _, b in spans]
            answer = self._library.get_ranges(
                self._store, key, starts=starts, ends=ends, coalesce=GAP_BYTES
            )
            return [memoryview(each) for each in answer]

    def put(self, key: str, source: Path, said: str) -> None:
        """Write a local file as an object, in parts if it is large."""
        with _told(said):
            self._library.put(
                self._store, key, source, chunk_size=CHUNK_BYTES, max_concurrency=PARALLEL
            )

    def create(self, key: str, content: bytes, said: str) -> bool:
        """Write an object unless it exists; return whether it was written."""
        with _told(said):
            try:
                self._library.put(self._store, key, content, mode="create")
            except self._library.exceptions.AlreadyExistsError:
                return False
            return True

    def delete(self, keys: Sequence[str], said: str) -> None:
        """Remove objects; missing ones are no error."""
        with _told(said):
            try:
                self._library.delete(self._store, list(keys))
            except FileNotFoundError:
                return


@final
class Web(Service):
    """Files of HTTP servers, read only; here a key is the whole address, with its query."""

    def head(self, key: str, said: str) -> Found | None:
        """Return the size of a file, or None if there is none."""
        with _told(said), ExitStack() as stack:
            try:
                answer = stack.enter_context(_asked(key, 0, 1))
            except FileNotFoundError:
                return None
            total = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
            size = total if total.isdecimal() else answer.headers.get("Content-Length") or "0"
            return Found(int(size), version=answer.headers.get("ETag") or "")

    def below(self, key: str, said: str, recursive: bool) -> Iterator[tuple[str, Found | None]]:
        """Yield nothing: HTTP lists no folders."""
        return iter(())

    def ranges(self, key: str, spans: Sequence[tuple[int, int]], said: str) -> list[memoryview]:
        """Return the bytes of each span, several at once."""
        with _told(said), ThreadPoolExecutor(PARALLEL) as pool:
            return list(pool.map(lambda span: _part(key, *span), spans))


def _part(address: str, start: int, stop: int) -> memoryview:
    with _asked(address, start, stop) as answer:
        content = answer.read()
        return memoryview(content if answer.status == 206 else content[start:stop])


def _asked(address: str, start: int, stop: int) -> Any:
    """Send a request for a range, again if it is throttled or fails."""
    scheme, _, rest = address.partition("://")
    owner, at, host = rest.partition("/")[0].rpartition("@")
    request = Request(f"{scheme}://{host}/{rest.partition('/')[2]}")
    request.add_header("Range", f"bytes={start}-{max(stop, start + 1) - 1}")
    if at:
        word = base64.b64encode(unquote(owner).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {word}")
    for turn in range(MAX_RETRIES + 1):
        try:
            return urlopen(request, timeout=REQUEST_SECONDS)
        except HTTPError as error:
            error.close()
            if error.code in (404, 410):
                raise FileNotFoundError from None
            if error.code not in (408, 429, 500, 502, 503, 504) or turn == MAX_RETRIES:
                raise
        except (URLError, HTTPException, TimeoutError, ConnectionError):
            if turn == MAX_RETRIES:
                raise
        time.sleep(min(0.1 * 2**turn, 8.0))
    raise AssertionError("the last turn returns or raises")


@final
class Hub(Service):
    """A repository of the Hugging Face Hub, read only."""

    def __init__(self, name: str) -> None:
        from huggingface_hub import HfFileSystem

        self._name = name
        self._files: Any = HfFileSystem()

    def head(self, key: str, said: str) -> Found | None:
        """Return the size of a file, or None if there is none."""
        with _told(said):
            try:
                answer = self._files.info(f"{self._name}/{key}")
            except FileNotFoundError:
                return None
            return None if answer["type"] == "directory" else Found(int(answer["size"]))

    def below(self, key: str, said: str, recursive: bool) -> Iterator[tuple[str, Found | None]]:
        """Yield the names below a name, with None for folders."""
        home = f"{self._name}/{key}".rstrip("/")
        with _told(said):
            try:
                answer = self._files.find(home, detail=True) if recursive else None
                listed = self._files.ls(home, detail=True) if answer is None else answer.values()
            except FileNotFoundError:
                return
            for each in listed:
                is_folder = each["type"] == "directory"
                name = each["name"][len(home) + 1 :]
                yield name, None if is_folder else Found(int(each["size"]))

    def ranges(self, key: str, spans: Sequence[tuple[int, int]], said: str) -> list[memoryview]:
        """Return the bytes of each span."""
        path = f"{self._name}/{key}"
        with _told(said):
            return [memoryview(self._files.cat_file(path, start=a, end=b)) for a, b in spans]


@lru_cache(maxsize=64)
def service_of(scheme: str, name: str) -> Service:
    """Return the service of a scheme and a bucket, the same for all its places."""
    if scheme == "hf":
        return Hub(name)
    return Web() if scheme in ("http", "https") else Bucket(scheme, name)


def _obstore(scheme: str) -> Any:
    if importlib.util.find_spec("obstore") is None:
        raise InputError(
            f"{scheme}:// needs the package obstore. Run: {install_extra(EXTRAS[scheme])}"
        )
    import obstore

    return obstore


def _opened(scheme: str, name: str) -> Any:
    from obstore.store import AzureStore, GCSStore, S3Store

    retry: Any = {"max_retries": MAX_RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
    limits: Any = {"timeout": timedelta(seconds=REQUEST_SECONDS)}
    endpoint = next((os.environ[key] for key in ENDPOINTS[scheme] if os.environ.get(key)), None)
    if endpoint is not None:
        limits["allow_http"] = endpoint.startswith("http://")
    if scheme == "gs":
        return GCSStore(name, client_options=limits, retry_config=retry)
    if scheme == "az":
        return AzureStore(name, client_options=limits, retry_config=retry)
    more: Any = {} if endpoint is None else {"endpoint": endpoint}
    if "AWS_ACCESS_KEY_ID" not in os.environ and importlib.util.find_spec("boto3") is not None:
        from obstore.auth.boto3 import Boto3CredentialProvider

        # without any, obstore asks the machine for its role, or signs nothing (AWS_SKIP_SIGNATURE)
        with suppress(ValueError):
            more["credential_provider"] = Boto3CredentialProvider()
    return S3Store(name, client_options=limits, retry_config=retry, **more)


def _found(each: Any) -> Found:
    return Found(int(each["size"]), each["last_modified"].timestamp(), str(each["e_tag"] or ""))


@contextmanager
def _told(said: str) -> Iterator[None]:
    """Turn what a client raises into one sentence, without addresses, headers or bodies."""
    try:
        yield
    except (StoreError, FileNotFoundError) as error:
        if isinstance(error, StoreError):
            raise
        raise FileNotFoundError(2, "there is no such object", said) from None
    except Exception as error:
        raise _failure(said, error) from None


def _failure(said: str, error: Exception) -> StoreError:
    kind, text = type(error).__name__, str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    is_refused = status is not None and status[1] in ("401", "403")
    if is_refused or kind in ("PermissionDeniedError", "UnauthenticatedError"):
        what = f"it answered {status[1]}: " if status else ""
        reason = f"{what}access was refused, or there are no credentials. Check both"
    elif kind == "NotSupportedError" or (status is not None and status[1] == "501"):
        reason = "the service does not support a request that sonde needs"
    else:
        what = f"it answered {status[1]}" if status else "it does not answer, or cuts connections"
        what += f" ({code[1]})" if code else ""
        again = status is None or status[1] in ("408", "429") or status[1] >= "500"
        tried = f", after {MAX_RETRIES} retries within {RETRY_SECONDS:.0f} s. {KEPT}"
        reason = f"{what}{tried if again else '. Check the address'}".removesuffix(".")
    failure = StoreError(f"{said}: {reason}.")
    failure.strerror = reason
    return failure
