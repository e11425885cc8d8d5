"""fsspec's filesystems, as dinowds sets them up."""

from __future__ import annotations

from typing import Any

from dinowds.errors import StorageError
from dinowds.remote.urls import HTTP, has_user, scheme_of, shown

_ONE_FOR_ALL_HOSTS = (*HTTP, "s3", "s3a", "gs", "gcs", "memory")
WITH_BUCKETS = ("s3", "s3a", "gs", "gcs")
_PACKAGES = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
} | dict.fromkeys(HTTP, ("aiohttp and requests", "http"))


def place_of(url: str) -> str:
    """URLs with the same place share a filesystem."""
    scheme = scheme_of(url)
    return scheme if scheme in _ONE_FOR_ALL_HOSTS else url[: (url.find("/", len(scheme) + 3) + 1) or None]


def check_bucket(url: str) -> None:
    """StorageError for a URL that has a key in it, or no bucket."""
    if scheme_of(url) not in WITH_BUCKETS:
        return
    if has_user(url):
        raise StorageError(
            f"{shown(url)}: has a user or a key before '@'; give credentials by the environment or a profile, "
            "not in the URL"
        )
    if not url.split("/")[2]:
        raise StorageError(f"{url}: names no bucket; give a URL like s3://bucket/prefix")


def make_filesystem(url: str, patient: bool) -> Any:
    """A new filesystem for `url`. A patient one has retries of its own. StorageError where there is none."""
    scheme = scheme_of(url)
    import fsspec  # here: the command line asks is_remote before it needs more

    # The instance cache would hand out one that was made before a fork; listings would hide what others write.
    options: dict[str, Any] = {"skip_instance_cache": True}
    if scheme in _ONE_FOR_ALL_HOSTS:
        options["use_listings_cache"] = False
    if scheme in HTTP:
        options["client_kwargs"] = {"trust_env": True}  # many clusters reach the web through a proxy only
    if scheme in ("s3", "s3a") and not patient:
        configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {**configured, "retries": {"total_max_attempts": 1}}
    try:
        filesystem = fsspec.core.url_to_fs(url, **options)[0]
    except ImportError as error:
        if scheme not in _PACKAGES:
            raise StorageError(f"{scheme}:// needs another package ({error}); install it") from None
        packages, extra = _PACKAGES[scheme]
        raise StorageError(f"{scheme}:// needs {packages}; pip install 'dinowds[{extra}]'") from None
    except ValueError as error:
        raise StorageError(f"{shown(url)}: {error}; give an s3://, gs:// or https:// URL") from None
    if scheme in ("s3", "s3a") and not patient:
        filesystem.retries = 1
    return filesystem
