"""URLs as text: which are remote, and how they are shown to people."""

from __future__ import annotations

import re

HTTP = ("http", "https")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HOST = re.compile(r"(\[[^\]@/?#]*\]|[^:@/?#]*)(:[0-9]*)?(?=[/?#]|$)")
_END_OF_HOST = re.compile(r"[/?#]")
_URL_IN_TEXT = re.compile(_SCHEME.pattern + r"\S+")


def scheme_of(url: str) -> str:
    """'s3' of 's3://b/k', lower case; 'file' of a path."""
    scheme = _SCHEME.match(url)
    return scheme[1].lower() if scheme else "file"


def is_remote(url: str) -> bool:
    """Whether `url` is read over the network ('s3://…', 'https://…', 'memory://…'); not a local path or 'file://…'."""
    return scheme_of(url) not in ("file", "local")


def shown(url: str) -> str:
    """A URL for people, without what may be a secret: user and password, and the query, which may be a signature.

    Paths and file:// URLs stay as they are. Where a password is not told from the host, neither is shown.
    """
    if not is_remote(url):
        return url
    scheme, _, rest = url.partition("://")
    place = rest.partition("?")[0]
    if has_user(url):
        place = place.rpartition("@")[2] if "@" in _END_OF_HOST.split(rest, maxsplit=1)[0] else "…"
    return f"{scheme}://{place}"


def shown_in(text: str) -> str:
    """A text of others, its URLs as `shown`."""
    return _URL_IN_TEXT.sub(lambda url: shown(url[0]), text)


def has_user(url: str) -> bool:
    """Whether a remote URL has a user's name, or a password, before its host."""
    rest = url.partition("://")[2]
    return is_remote(url) and "@" in rest and _HOST.match(rest) is None
