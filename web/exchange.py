"""One HTTP connection without its socket: bytes in, bytes out. h11 knows the protocol, this the bounds."""

from __future__ import annotations

from collections.abc import Callable

import h11

from web.pages import TEXT, Page

MAX_HEAD_BYTES = 8 << 10  # request line and headers
MAX_BODY_BYTES = 64 << 10  # of a request; nothing here wants one
MAX_UNSENT_BYTES = 1 << 20  # answers to pipelined requests that the client does not read

Respond = Callable[[str, str], Page]


class Exchange:
    """One client's requests, one after the other. respond(method, target) gives each one's answer.

    closing: nothing more is read; the connection ends once `unsent` is sent. Owned by the server's thread.
    """

    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self._protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._request: h11.Request | None = None
        self._body_bytes = 0
        self.unsent = bytearray()
        self.closing = False
        self.answered = 0  # requests

    def receive(self, data: bytes) -> None:
        """Bytes have arrived; b"": the client has ended its side. What it must hear is in `unsent` then."""
        if self.closing:
            return
        try:
            self._protocol.receive_data(data)
            while not self.closing and self._advance():
                if len(self.unsent) > MAX_UNSENT_BYTES:
                    self.closing = True
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, str(error))

    def _advance(self) -> bool:
        """Take the next event; False when more bytes are needed first."""
        event = self._protocol.next_event()
        if event is h11.NEED_DATA:
            return False
        if isinstance(event, h11.Request):
            self._request, self._body_bytes = event, 0
        elif isinstance(event, h11.Data):
            self._body_bytes += len(event.data)
            if self._body_bytes > MAX_BODY_BYTES:
                self._refuse(413, "the request has too large a body")
        elif isinstance(event, h11.EndOfMessage):
            self._answer()
        else:  # ConnectionClosed, or PAUSED behind a request that was the last one
            self.closing = True
        return True

    def _answer(self) -> None:
        request = self._request
        assert request is not None  # h11: a message begins with its Request
        method = request.method.decode("ascii")
        page = self._respond(method, request.target.decode("latin-1"))
        self._send(page, with_body=method != "HEAD")
        self.answered += 1
        if self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE:
            self._protocol.start_next_cycle()
        else:
            self.closing = True

    def _refuse(self, code: int, reason: str) -> None:
        """The client broke the protocol or a bound: say so if it can still be said, and end."""
        self.closing = True
        if self._protocol.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(Page(code, TEXT, f"{reason}\n".encode("utf-8", "replace"), (("Connection", "close"),)))

    def _send(self, page: Page, *, with_body: bool = True) -> None:
        headers = [
            ("Content-Type", page.kind),
            ("Content-Length", str(len(page.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *page.headers,
        ]
        events: list[h11.Event] = [h11.Response(status_code=page.code, headers=headers)]
        events += [h11.Data(data=page.body)] if with_body else []
        for event in (*events, h11.EndOfMessage()):
            self.unsent += self._protocol.send(event) or b""
