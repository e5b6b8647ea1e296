"""SUBSCRIBE and its kin: who of one handler thread's clients hears which channel.

Each handler thread has its own `Subscriptions` and is the only one to touch it; a publisher on any thread
hands the message to every handler (ClientServer.publish), which writes it to its own clients.
"""

from __future__ import annotations

from raft.clients.connection import Connection
from raft.clients.resp import encode_push
from raft.machine.glob import LONGEST_PATTERN, Matcher, glob_matcher
from raft.replies import Reply

MAX_SUBSCRIPTIONS = 10_000  # of one connection
_MAX_NAME_BYTES = LONGEST_PATTERN  # of a channel or pattern: they are kept


class SubscriptionError(Exception):
    """A subscription that is refused; the text is the error reply."""


class Subscriptions:
    """Channels and patterns with their subscribers. Owned by one handler thread."""

    def __init__(self) -> None:
        self._channels: dict[bytes, set[Connection]] = {}
        self._patterns: dict[bytes, tuple[Matcher, set[Connection]]] = {}

    def wants(self, channel: bytes) -> bool:
        """Whether a message on this channel may have a listener here. Any thread may
        ask: an answer a moment old is good enough."""
        return channel in self._channels or bool(self._patterns)

    def counts(self) -> tuple[int, int]:
        """How many (channels, patterns) have subscribers. Any thread."""
        return len(self._channels), len(self._patterns)

    def subscribe(self, connection: Connection, names: list[bytes], pattern: bool) -> bytes:
        """Adds channels (or patterns): the confirmations, encoded. SubscriptionError: nothing was done."""
        held = len(connection.channels) + len(connection.patterns)
        if held + len(names) > MAX_SUBSCRIPTIONS:
            raise SubscriptionError(f"ERR a client may have at most {MAX_SUBSCRIPTIONS} subscriptions")
        if any(len(name) > _MAX_NAME_BYTES for name in names):
            raise SubscriptionError(f"ERR a channel's name may have at most {_MAX_NAME_BYTES} bytes")
        confirmations = []
        for name in names:
            if pattern:
                connection.patterns.add(name)
                if name not in self._patterns:
                    self._patterns[name] = (glob_matcher(name), set())
                self._patterns[name][1].add(connection)
            else:
                connection.channels.add(name)
                self._channels.setdefault(name, set()).add(connection)
            confirmations.append(_confirm(connection, b"psubscribe" if pattern else b"subscribe", name))
        return b"".join(confirmations)

    def unsubscribe(self, connection: Connection, names: list[bytes], pattern: bool) -> bytes:
        """Removes channels (or patterns), all when none is named: the confirmations, encoded."""
        word = b"punsubscribe" if pattern else b"unsubscribe"
        held = connection.patterns if pattern else connection.channels
        wanted: list[bytes | None] = [*(names or sorted(held))] or [None]
        confirmations = []
        for name in wanted:
            if name is not None and name in held:
                held.discard(name)
                self._forget(connection, name, pattern)
            confirmations.append(_confirm(connection, word, name))
        return b"".join(confirmations)

    def remove(self, connection: Connection) -> None:
        """Ends all of a connection's subscriptions, without a word to it."""
        for name in connection.channels:
            self._forget(connection, name, pattern=False)
        for name in connection.patterns:
            self._forget(connection, name, pattern=True)
        connection.channels.clear()
        connection.patterns.clear()

    def subscribers(self) -> set[Connection]:
        """Every connection that listens to anything."""
        found: set[Connection] = set()
        return found.union(*self._channels.values(), *(members for _, members in self._patterns.values()))

    def _forget(self, connection: Connection, name: bytes, pattern: bool) -> None:
        members = self._patterns[name][1] if pattern else self._channels[name]
        members.discard(connection)
        if not members:
            if pattern:
                del self._patterns[name]
            else:
                del self._channels[name]

    def deliver(self, channel: bytes, payload: bytes) -> None:
        """Writes one message to everybody here who hears the channel, once per matching subscription."""
        listeners = self._channels.get(channel)
        if listeners:
            _push(listeners, [b"message", channel, payload])
        for pattern, (matches, members) in self._patterns.items():
            if matches(channel):
                _push(members, [b"pmessage", pattern, channel, payload])


def _confirm(connection: Connection, word: bytes, name: bytes | None) -> bytes:
    count = len(connection.channels) + len(connection.patterns)
    return encode_push([word, name, count], connection.protocol)


def _push(listeners: set[Connection], message: list[Reply]) -> None:
    encoded: dict[int, bytes] = {}
    for connection in listeners:
        data = encoded.get(connection.protocol)
        if data is None:
            data = encoded[connection.protocol] = encode_push(message, connection.protocol)
        connection.send(data)
