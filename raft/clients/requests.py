"""What clients send, from bytes to commands: RESP arrays of bulk strings and inline commands. Sans-I/O.

Two ways through the same bytes, with the same result:

* `parse_request` reads one command: strict, aware of every size before it arrives, able to say how many bytes
  are missing. It is the reference and judges everything unusual.
* `FastReader` cuts a whole pipeline at its line breaks, takes the pieces for words, and writes the commands
  down again: if that gives the bytes that came, they were well-formed, else it declines. So a word with a
  line break in it goes the other way. (hiredis, made for replies, needed three guards against what it takes
  for a request, and all of it took twice as long.)

`RequestParser` joins them for one connection. It holds at most max_request_bytes plus one read.
"""

from __future__ import annotations

import re

from raft.breathe import breathe

MAX_INLINE_BYTES = 65536  # as Redis: PROTO_INLINE_MAX_SIZE
_MAX_HEADER_BYTES = 32  # "*1048576\r\n" needs 10
_SMALLEST_ARGUMENT = 6  # "$0\r\n\r\n"
_SHORT_BYTES = 1024
_ARRAY, _BULK = ord("*"), ord("$")
_WORDS = {b"*%d" % words: words for words in range(1, 129)}  # of a command, for FastReader
_TWO = b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
_THREE = b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
_USUAL_PIECES = 7  # of a command with three words; of longer ones FastReader reads fewer than it might


class ProtocolError(Exception):
    """The bytes are no RESP: the text is for the client, in Redis' words. The connection must be closed."""


class RequestParser:
    """Turns one connection's bytes into commands. Not thread-safe: its handler thread alone uses it.

    After `error` is set (what came before it has been handed out) nothing more is parsed.
    """

    __slots__ = ("_fast", "_max_bytes", "_missing", "_parts", "_size", "error")

    def __init__(self, max_request_bytes: int, fast: FastReader) -> None:
        """max_request_bytes bounds one command with its framing; a thread's parsers may share `fast`."""
        self._max_bytes = max_request_bytes
        self._fast = fast
        self._parts: list[bytes] = []
        self._size = 0  # bytes in _parts
        self._missing = 0  # bytes that must be there before another try makes sense; 0: no command has begun
        self.error: ProtocolError | None = None

    @property
    def buffered(self) -> int:
        """Bytes that wait to be parsed or completed."""
        return self._size

    @property
    def empty(self) -> bool:
        """Whether what is fed next begins a new command."""
        return not self._size and self.error is None

    @property
    def ready(self) -> bool:
        """Whether take() or error may have something new without more input."""
        return self.error is not None or (self._size > 0 and self._size >= self._missing)

    def feed(self, data: bytes) -> None:
        """Adds what was read from the socket."""
        if self.error is None:
            self._parts.append(data)
            self._size += len(data)

    def take(self, limit: int) -> list[list[bytes]]:
        """Up to `limit` complete commands, each a non-empty list of words; fewer: more input is needed."""
        if not self._size or self._size < self._missing:
            return []
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        commands: list[list[bytes]] = []
        position = 0
        if not self._missing:  # at the start of a command
            commands, position = self._fast.read(data, limit, self._max_bytes)
            if position == self._size:
                self._parts, self._size = [], 0
                return commands
        try:
            position = self._take_exactly(data, position, commands, limit)
        except ProtocolError as error:
            self.error = error
            position = len(data)
        self._keep(data, position)
        return commands

    def _take_exactly(self, data: bytes, position: int, commands: list[list[bytes]], limit: int) -> int:
        """Goes on from `position` in plain Python; a finished partial command hands over to `fast` again."""
        size = len(data)
        while position < size and len(commands) < limit:
            args, end = parse_request(data, position, self._max_bytes)
            if args is None:
                self._missing = end
                return position
            was_partial, self._missing = self._missing, 0
            position = end
            if args:
                commands.append(args)
            if was_partial and position < size and len(commands) < limit:
                more, used = self._fast.read(data[position:], limit - len(commands), self._max_bytes)
                commands += more
                position += used
        return position

    def _keep(self, data: bytes, position: int) -> None:
        if position == len(data):
            self._parts = []
            self._size = 0
        else:
            self._parts = [data[position:]] if position else [data]
            self._size = len(data) - position


class FastReader:
    """The common case: see the module's docstring. Keeps nothing between calls."""

    def read(self, data: bytes, limit: int, max_bytes: int) -> tuple[list[list[bytes]], int]:
        """Up to `limit` commands from the start of `data`, and how many bytes they took.

        ([], 0) when the bytes need a closer look. The rest may need it, too, or is an unfinished command, or
        beyond the limit.
        """
        commands: list[list[bytes]] = []
        if len(data) > max_bytes or data[:1] != b"*":
            return commands, 0
        pieces = data.split(b"\r\n", limit * _USUAL_PIECES)  # no more: the next call would cut them again
        end = len(pieces) - 1  # the last one is what follows the last line break
        begin = 0
        while begin < end and len(commands) < limit:
            words = _WORDS.get(pieces[begin], 0)
            after = begin + 1 + 2 * words  # a length and a word each
            if not words or after > end:
                break
            commands.append(pieces[begin + 2 : after : 2])
            begin = after
        written = b"".join([encoded(args) for args in commands])
        return (commands, len(written)) if data.startswith(written) else ([], 0)


def encoded(args: list[bytes]) -> bytes:
    """A command as an array of bulk strings. What is written again from the words that were taken for a
    command, and gives the bytes that came, was well-formed."""
    if len(args) == 3:  # SET and GET: a third of the time of the line below
        first, second, third = args
        return _THREE % (len(first), first, len(second), second, len(third), third)
    if len(args) == 2:
        first, second = args
        return _TWO % (len(first), first, len(second), second)
    return b"*%d\r\n" % len(args) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in args])


def encoded_length(args: list[bytes]) -> int:
    """How many bytes a command takes as an array of bulk strings."""
    total = 3 + len(str(len(args)))
    for word in args:
        length = len(word)
        total += length + (6 if length < 10 else 7 if length < 100 else 5 + len(str(length)))
    return total


def parse_request(data: bytes, start: int, max_bytes: int) -> tuple[list[bytes] | None, int]:
    """One command from data[start:], which must not be empty: (words, where it ends).

    No words ([]) for an empty line and an empty array, which Redis skips too. (None, n) when it is unfinished
    and cannot be finished with fewer than n bytes from `start` on. Raises ProtocolError, also for a declared
    size beyond max_bytes, before those bytes come.
    """
    if data[start] != _ARRAY:
        return _parse_inline(data, start, min(max_bytes, MAX_INLINE_BYTES))
    count, position = _read_header(data, start, "multibulk length")
    if position < 0:
        return None, len(data) - start + 1
    if count <= 0:
        return [], position
    budget = start + max_bytes  # where the command must have ended
    if position + count * _SMALLEST_ARGUMENT > budget:
        raise _too_big("invalid multibulk length", max_bytes)
    args: list[bytes] = []
    size = len(data)
    for others in range(count - 1, -1, -1):  # how many arguments follow this one
        if position >= size:
            return None, position - start + _least(position - start, others + 1)
        if data[position] != _BULK:
            raise ProtocolError(f"Protocol error: expected '$', got '{_shown(data[position])}'")
        length, body = _read_header(data, position, "bulk length")
        if body < 0:
            return None, size - start + 1
        if length < 0:
            raise ProtocolError("Protocol error: invalid bulk length")
        end = body + length + 2
        if end + others * _SMALLEST_ARGUMENT > budget:
            raise _too_big("invalid bulk length", max_bytes)
        if end > size:
            return None, end - start + _least(end - start, others)
        args.append(data[body : end - 2])
        position = end
        if not others & 1023:
            breathe()
    return args, position


def _least(so_far: int, arguments: int) -> int:
    """How many bytes to wait for when so many arguments are still to come and `so_far` bytes are there.

    All they need at least, so that a long command that trickles in is not looked at for every byte; of a
    short one, which costs nothing to look at, one byte: it may be a wrong one.
    """
    if not arguments:
        return 0
    return 1 if so_far < _SHORT_BYTES else arguments * _SMALLEST_ARGUMENT


def _read_header(data: bytes, start: int, what: str) -> tuple[int, int]:
    """The number in a "*3" or "$3" line, and where the next line starts (-1: not yet)."""
    end = data.find(b"\r\n", start, start + _MAX_HEADER_BYTES)
    if end < 0:
        if len(data) - start >= _MAX_HEADER_BYTES:
            raise ProtocolError(f"Protocol error: invalid {what}")
        return 0, -1
    digits = data[start + 1 : end]
    if digits.isdigit() and (digits[0] != 48 or len(digits) == 1):
        return int(digits), end + 2
    if digits == b"-1":
        return -1, end + 2
    raise ProtocolError(f"Protocol error: invalid {what}")


def _too_big(problem: str, max_bytes: int) -> ProtocolError:
    return ProtocolError(f"Protocol error: {problem}: a request may have at most {max_bytes} bytes")


def _shown(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"


def _parse_inline(data: bytes, start: int, max_bytes: int) -> tuple[list[bytes] | None, int]:
    end = data.find(b"\n", start, start + max_bytes)
    if end < 0:
        if len(data) - start >= max_bytes:
            raise ProtocolError("Protocol error: too big inline request")
        return None, len(data) - start + 1
    args = split_inline(data[start:end])
    if args and args[0].lower() in (b"post", b"host:"):
        # A web page can make a browser send this here: nothing in the body may be taken for commands.
        raise ProtocolError("Protocol error: this port does not speak HTTP")
    return args, end + 1


_SPACE = b" \t\r\n\v\f\0"
_PLAIN = re.compile(rb"[^\"' \t\r\n\v\f\0]+")
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\\'|\\(?!\'))*)\'', re.DOTALL)
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


def split_inline(line: bytes) -> list[bytes]:
    """The words of an inline command, with quotes as in redis-cli: "a\\x20b\\n" and 'it\\'s'.

    Raises ProtocolError when a quote is not closed or something sticks to the closing one.
    """
    words: list[bytes] = []
    position = 0
    line = line.rstrip(_SPACE)
    while position < len(line):
        if line[position] in _SPACE:
            position += 1
            continue
        word, position = _read_word(line, position)
        words.append(word)
    return words


def _read_word(line: bytes, position: int) -> tuple[bytes, int]:
    word = b""
    plain = _PLAIN.match(line, position)
    if plain:
        word, position = plain.group(), plain.end()
    if position < len(line) and line[position] in b"\"'":
        quoted = _QUOTED.match(line, position)
        if quoted is None or line[quoted.end() : quoted.end() + 1].strip(_SPACE):
            raise ProtocolError("Protocol error: unbalanced quotes in request")
        double, single = quoted.groups()
        word += _ESCAPE.sub(_unescape, double) if double is not None else single.replace(b"\\'", b"'")
        position = quoted.end()
    return word, position


def _unescape(match: re.Match[bytes]) -> bytes:
    code, letter = match.groups()
    if code is not None:
        return bytes([int(code, 16)])
    return _ESCAPED.get(letter, letter)
