"""The kinds of blob store. A new one is a module in this folder and an entry in `_BACKENDS`."""

from collections.abc import Callable
from dataclasses import dataclass

from app.blobs.protocol import BlobStore
from app.blobs.sql import SqlBlobStore
from app.settings import PREFIX, Settings, SettingsError
from app.store.engine import Store


@dataclass(frozen=True)
class _Backend:
    """A kind of blob store.

    Attributes:
        open: makes the store from the URL of the setting `blobs` and the database, which holds the
            blobs' rows.
        secret_variables: environment variables with its credentials. Child processes that handle
            clients' data do not inherit them.
    """

    open: Callable[[str, Store], BlobStore]
    secret_variables: frozenset[str] = frozenset()


_BACKENDS = {"sql": _Backend(lambda _url, store: SqlBlobStore(store))}


def open_blob_store(settings: Settings, store: Store) -> BlobStore:
    """The blob store that the setting `blobs` names by its URL's scheme.

    Raises:
        SettingsError: there is no such kind of blob store.
    """
    return _backend(settings).open(settings.blobs, store)


def check_blobs_setting(settings: Settings) -> None:
    """Check the setting `blobs` without opening anything.

    Raises:
        SettingsError: there is no such kind of blob store.
    """
    _backend(settings)


def _backend(settings: Settings) -> _Backend:
    scheme = settings.blobs.partition(":")[0]
    backend = _BACKENDS.get(scheme)
    if backend is None:
        kinds = ", ".join(f"{name}:" for name in _BACKENDS)
        raise SettingsError(f"{PREFIX}BLOBS: {scheme}: is not supported; it may be {kinds}")
    return backend


def secret_variables() -> frozenset[str]:
    """Environment variables with credentials of any kind of blob store."""
    return frozenset().union(*(backend.secret_variables for backend in _BACKENDS.values()))
