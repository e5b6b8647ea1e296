"""The way to MongoDB: a client whose every wait is bounded, and clear words when the URI is wrong.

A projection that loses outcomes would be worse than none, so writes wait for a majority and its journal
unless the URI says otherwise; unacknowledged writes (w=0) are refused. Passwords never get into messages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl

from pymongo import MongoClient
from pymongo.errors import PyMongoError
from pymongo.uri_parser import split_options

Document = dict[str, Any]

# What holds unless the URI says otherwise.
_DEFAULTS: dict[str, Any] = {
    "appname": "super-node",
    "serverSelectionTimeoutMS": 2_000,
    "connectTimeoutMS": 2_000,
    "socketTimeoutMS": 20_000,  # one chunk of writes must fit in, on a slow disk too
    "wTimeoutMS": 10_000,  # a majority that does not come is reported before the socket gives up
    "w": "majority",
    "journal": True,
}

_SECRET_OPTION = re.compile(
    r"(?i)\b(tlsCertificateKeyFilePassword|authMechanismProperties|proxyPassword)=[^&]*"
)
_SCHEMES = ("mongodb://", "mongodb+srv://")


class DatabaseConfigError(ValueError):
    """`database.uri` cannot be used. One line, which names the key and never shows a password."""


class DatabaseAddress(Protocol):
    """What is needed of the settings' `database` section."""

    @property
    def uri(self) -> str: ...


def redact(uri: str) -> str:
    """The URI fit for logs: the password and secret options replaced by ***. Pure; never raises.

    A raw @ or / in a password makes a URI invalid, yet it must not leak: everything up to the last @ counts
    as the credentials.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "", uri
    credentials, at, address = rest.rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        rest = f"{user}{':***' if colon else ''}@{address}"
    shown = _SECRET_OPTION.sub(r"\1=***", f"{scheme}{separator}{rest}")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)  # one line


def new_client(
    settings: DatabaseAddress, *, timeout_ms: int | None = None, event_listeners: Sequence[Any] = ()
) -> MongoClient[Document]:
    """A client for `settings.uri`. It connects at the first operation, in the thread that asks for it.

    timeout_ms: instead of the default and the URI's time to find, connect to and hear from a server.
    event_listeners: pymongo.monitoring listeners, for tests.
    Raises DatabaseConfigError when the URI cannot be used. Any thread may call; clients are thread-safe.
    """
    uri = settings.uri
    given = _check(uri)
    options = {name: value for name, value in _DEFAULTS.items() if name.lower() not in given}
    if timeout_ms is not None:
        names = ("serverSelectionTimeoutMS", "connectTimeoutMS", "socketTimeoutMS")
        options |= dict.fromkeys(names, timeout_ms)
    options |= {"tz_aware": True, "connect": False, "event_listeners": list(event_listeners)}
    try:
        return MongoClient(uri, **options)
    except (PyMongoError, ValueError, TypeError, OSError) as problem:
        raise DatabaseConfigError(_explain(uri, problem)) from None


def _check(uri: str) -> set[str]:
    """The names of the options in the URI, in lower case; raises DatabaseConfigError if one is wrong."""
    if not isinstance(uri, str) or not uri.startswith(_SCHEMES):
        raise DatabaseConfigError("database.uri: must begin with mongodb:// or mongodb+srv://")
    query = uri.partition("?")[2]
    if not query:
        return set()
    try:
        # pymongo would only warn about a wrong option and go on without it.
        split_options(query, validate=True, warn=False)
    except (PyMongoError, ValueError, TypeError, OSError) as problem:
        raise DatabaseConfigError(_explain(uri, problem)) from None
    given = {name.lower(): value for name, value in parse_qsl(query, keep_blank_values=True)}
    if given.get("w") == "0":
        raise DatabaseConfigError(
            f"database.uri: w=0 (unacknowledged writes) would lose outcomes; leave w out: {redact(uri)}"
        )
    return set(given)


def _explain(uri: str, problem: Exception) -> str:
    """One line about a bad URI. pymongo quotes pieces of it: with secrets inside, its words are not used."""
    if "@" not in uri and not _SECRET_OPTION.search(uri):
        reason = " ".join(str(problem).split())
    else:
        reason = (
            "not a valid MongoDB URI (user name and password must be percent-encoded, as by "
            "urllib.parse.quote_plus; the host is host or host:port)"
        )
    return f"database.uri: {reason}: {redact(uri)}"
