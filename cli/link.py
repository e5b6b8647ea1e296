"""A client's view of one node: commands in pipelines, published messages, errors as the contract has them.

A thin layer over redis-py: no retries of its own, every wait bounded. A Link belongs to one thread.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from raft.config import Member

Address = tuple[str, int]

_WHOLE = re.compile(r"-?[0-9]{1,18}")
# redis-py takes these codes off the text of an error and keeps them as a class.
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (redis.exceptions.ClusterDownError, "CLUSTERDOWN"),
    (redis.exceptions.NoPermissionError, "NOPERM"),
    (redis.exceptions.ReadOnlyError, "READONLY"),
    (redis.exceptions.TryAgainError, "TRYAGAIN"),
)


class LinkLost(Exception):
    """The node cannot be reached, or does not answer in time."""


class Link:
    """A connection for commands and, after `subscribe`, one for messages. timeout_s bounds each wait.

    text=False: strings in answers come as bytes, for data that is no text.
    """

    def __init__(self, address: Address, timeout_s: float, *, text: bool = True) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._client: Any = redis.Redis(
            host=address[0],
            port=address[1],
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            decode_responses=text,
            encoding_errors="replace",  # a server that sends no UTF-8 shall not end who reads it
        )
        self._pubsub: Any = None

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes both connections; never raises."""
        for closing in (self._pubsub, self._client):
            if closing is not None:
                try:
                    closing.close()
                except (redis.RedisError, OSError):
                    continue  # it is gone: that was the aim

    def ask(self, *words: str) -> Any:
        """The answer to one command; an error answer comes as a redis.ResponseError. Raises LinkLost."""
        return self.ask_all([words])[0]

    def ask_all(self, commands: Sequence[Sequence[str]]) -> list[Any]:
        """The answers to several commands sent at once, in order. Raises LinkLost: then any may have run."""
        pipeline = self._client.pipeline(transaction=False)
        for words in commands:
            pipeline.execute_command(*words)
        try:
            answers: list[Any] = pipeline.execute(raise_on_error=False)
        except (redis.RedisError, OSError) as error:
            raise LinkLost(_reason(error)) from error
        for answer in answers:
            if isinstance(answer, redis.ConnectionError):
                raise LinkLost(_reason(answer))
        return answers

    def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribes, and returns when the node confirmed it. Raises LinkLost."""
        self._pubsub = self._client.pubsub()
        try:
            self._pubsub.subscribe(*channels)
            deadline = time.monotonic() + self._timeout_s
            confirmed = 0
            while confirmed < len(channels):
                message = self._heard(max(0.0, deadline - time.monotonic()))
                if message is None:
                    raise LinkLost("did not confirm the subscription")
                confirmed += message["type"] == "subscribe"
        except (redis.RedisError, OSError) as error:
            raise LinkLost(_reason(error)) from error

    def next_message(self, timeout_s: float) -> tuple[str, str] | None:
        """The next (channel, payload), or None after timeout_s without one. Raises LinkLost."""
        try:
            message = self._heard(timeout_s, ignore_subscribe_messages=True)
        except (redis.RedisError, OSError) as error:
            raise LinkLost(_reason(error)) from error
        if message is None or message["type"] != "message":
            return None
        return message["channel"], message["data"]

    def _heard(self, timeout_s: float, **options: bool) -> Any:
        try:
            return self._pubsub.get_message(timeout=timeout_s, **options)
        except (TypeError, LookupError, AttributeError, ValueError) as error:  # what redis-py makes of it
            raise LinkLost("sent what is no message") from error


def error_text(answer: Any) -> str | None:
    """`CODE text` when the answer is an error, else None."""
    if not isinstance(answer, Exception):
        return None
    for kind, code in _CODES:
        if isinstance(answer, kind):
            return f"{code} {answer}"
    return str(answer) or type(answer).__name__


def fields(answer: Any) -> dict[str, Any]:
    """An answer with named fields as a dict, whether it came as a map or as field, value, field, value."""
    if isinstance(answer, dict):
        return {str(name): value for name, value in answer.items()}
    if isinstance(answer, list):
        return {str(name): value for name, value in zip(answer[::2], answer[1::2], strict=False)}
    return {}


def whole_number(text: str) -> int | None:
    """A number of at most 18 digits; None for anything else that a server may have sent in its place."""
    return int(text) if _WHOLE.fullmatch(text) else None


def client_address(member: Member) -> Address:
    """Where clients reach a node."""
    return member.host, member.client_port


def _reason(error: Exception) -> str:
    """Why a connection failed, in a few words: redis-py's own are long, and repeat the address."""
    if isinstance(error, redis.TimeoutError):
        return "no answer in time"
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(error) or type(error).__name__
