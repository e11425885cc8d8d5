"""What went wrong with a remote file: whether trying again may help, and how to say it in one line."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
from http import HTTPStatus

from dinowds.remote.urls import shown_in

_TIMEOUTS = (TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError)
_TRANSIENT_ERRNO = frozenset(
    getattr(errno, name)
    for name in ("EIO", "EBUSY", "EAGAIN", "ETIMEDOUT", "EREMOTEIO", "ENETUNREACH", "ENETDOWN", "EHOSTUNREACH", "EPIPE")
    if hasattr(errno, name)  # EREMOTEIO is Linux's alone
)
_TRANSIENT_CLASSES = frozenset(  # by name: these packages are extras
    {
        "aiohttp.client_exceptions.ClientError", "botocore.exceptions.ConnectionError",
        "botocore.exceptions.HTTPClientError", "botocore.exceptions.IncompleteReadError",
        "botocore.parsers.ResponseParserError",
        "gcsfs.retry.ChecksumError", "google.api_core.exceptions.RetryError", "google.auth.exceptions.TransportError",
        "requests.exceptions.RequestException",
    }
)  # fmt: skip
_NO_CREDENTIALS = frozenset(
    f"botocore.exceptions.{name}"
    for name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound")
)
_AGAIN = "check the network and the server, then run the same command again"


class BadStatus(Exception):
    """An HTTP answer that is no success."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class RangeIgnored(Exception):
    """More than the range came, or another one."""


class ShortBody(Exception):
    """Fewer bytes came than were asked for."""


def status_of(error: BaseException) -> int | None:
    """The HTTP status (400 … 599) behind an error, if any: ours, aiohttp's, gcsfs's, or botocore's under s3fs's."""
    found = getattr(error, "status", None)
    if found is None:  # aiohttp's have a `code` too, which warns of its end
        found = getattr(error, "code", None)
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return int(str(found)) if str(found).isdigit() and 400 <= int(str(found)) <= 599 else None


def is_transient(error: Exception) -> bool:
    """Whether trying again may help."""
    if (status := status_of(error)) is not None:
        return status >= 500 or status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
    if isinstance(error, (*_TIMEOUTS, ConnectionError, ShortBody)):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return True
    return _is_one_of(error, _TRANSIENT_CLASSES)


def words(error: Exception) -> tuple[str, str]:
    """What happened and what to do."""
    status = status_of(error)
    if status in (401, 403) or isinstance(error, PermissionError):
        return f"not allowed, or no such file: {_one_line(error)}", "check your credentials and the URL"
    if _is_one_of(error, _NO_CREDENTIALS):
        return _one_line(error), "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    advice = _AGAIN if is_transient(error) else "check the URL and the settings of the store"
    if isinstance(error, _TIMEOUTS):
        return "no answer in time", advice
    if status is not None:
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
        return f"the server answered {status} {phrase}".rstrip(), advice
    if isinstance(error, ShortBody):
        return _one_line(error), advice
    return f"{type(error).__name__}: {_one_line(error)}".removesuffix(": "), advice


def _is_one_of(error: Exception, names: frozenset[str]) -> bool:
    return not names.isdisjoint(f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)


def _one_line(error: Exception) -> str:
    return shown_in(" ".join(str(error).split()))[:300]
