"""From a command's words to the rules: arity, arguments, options. Every refusal becomes an Error reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ledger import admission, arguments, queries, rewards, turns
from ledger.arguments import RefusedError, integer
from ledger.context import Context
from ledger.followers import ACTIVE, BANNED, LEFT
from ledger.history import KEPT
from ledger.policy import Policy
from ledger.state import LedgerState
from raft.replies import OK, Error, Reply

Words = list[bytes]
Handler = Callable[[LedgerState, Context, Words], Reply]

_CONTAINERS: Final = frozenset((b"FOLLOWER", b"REWARD", b"INTERVAL"))
_STATES: Final = {state.encode(): state for state in (ACTIVE, BANNED, LEFT)}
_LIST_COUNT, _MAX_LIST_COUNT = 100, 10_000
_TOP_COUNT, _MAX_TOP_COUNT = 10, 1000
_HISTORY_COUNT = 10


def _join(state: LedgerState, context: Context, words: Words) -> Reply:
    name = arguments.worker_id(words[0])
    address = None
    if len(words) == 3:
        address = arguments.line(words[2], "address", arguments.MAX_ADDRESS_BYTES)
    return admission.join(state, context, name, words[1], address)


def _report(state: LedgerState, context: Context, words: Words) -> Reply:
    name = arguments.worker_id(words[0])
    number = integer(words[1], "interval")
    if len(words[2]) > arguments.MAX_DATA_BYTES:
        raise RefusedError(f"ERR data is longer than {arguments.MAX_DATA_BYTES} bytes")
    return turns.report(state, context, name, number, words[2])


def _leave(state: LedgerState, context: Context, words: Words) -> Reply:
    return admission.leave(state, context, arguments.worker_id(words[0]))


def _pardon(state: LedgerState, context: Context, words: Words) -> Reply:
    reason = arguments.line(words[1], "reason", arguments.MAX_REASON_BYTES)
    return admission.pardon(state, context, arguments.follower_id(words[0]), reason)


def _info(state: LedgerState, _context: Context, words: Words) -> Reply:
    return queries.follower_info(state, arguments.follower_id(words[0]))


def _list(state: LedgerState, _context: Context, words: Words) -> Reply:
    cursor, count, wanted_state = 0, _LIST_COUNT, None
    if words:
        try:
            cursor = integer(words[0], "cursor", low=0)
        except RefusedError:
            raise RefusedError("ERR invalid cursor") from None
    for name, value in _options(words[1:]):
        if name == b"COUNT":
            count = min(integer(value, "count", low=1), _MAX_LIST_COUNT)
        elif name == b"STATE" and value.lower() in _STATES:
            wanted_state = _STATES[value.lower()]
        else:
            raise RefusedError(
                "ERR syntax error: FOLLOWER LIST [cursor [COUNT n] [STATE active|banned|left]]"
            )
    return queries.list_followers(state, cursor, count, wanted_state)


def _options(words: Words) -> list[tuple[bytes, bytes]]:
    """NAME value pairs. Raises RefusedError on an odd number of words."""
    if len(words) % 2:
        raise RefusedError("ERR syntax error")
    return [(name.upper(), value) for name, value in zip(words[::2], words[1::2], strict=True)]


def _claim(state: LedgerState, context: Context, words: Words) -> Reply:
    name = arguments.follower_id(words[0])
    amount = integer(words[1], "amount")
    if amount <= 0:
        raise RefusedError("ERR amount must be positive")
    return rewards.claim(state, context, name, amount, arguments.claim_id(words[2]))


def _balance(state: LedgerState, _context: Context, words: Words) -> Reply:
    return queries.balance(state, arguments.follower_id(words[0]))


def _top(state: LedgerState, _context: Context, words: Words) -> Reply:
    count = integer(words[0], "count", low=1) if words else _TOP_COUNT
    return rewards.top(state, min(count, _MAX_TOP_COUNT))


def _history(state: LedgerState, _context: Context, words: Words) -> Reply:
    name, count = arguments.follower_id(words[0]), _HISTORY_COUNT
    for option, value in _options(words[1:]):
        if option != b"COUNT":
            raise RefusedError("ERR syntax error: REWARD HISTORY id [COUNT n]")
        count = integer(value, "count", low=1)
    return queries.history(state, name, min(count, KEPT))


def _current(state: LedgerState, _context: Context, _words: Words) -> Reply:
    return queries.current_interval(state)


def _show(state: LedgerState, _context: Context, words: Words) -> Reply:
    return queries.show_interval(state, integer(words[0], "interval"))


def _policy(data: bytes) -> Policy:
    try:
        return Policy.decode(data)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"ERR invalid policy: {arguments.shown(str(error).encode())}") from None


def _system_term(state: LedgerState, context: Context, words: Words) -> Reply:
    """~TERM leader_id policy_json members_json: a leader takes office; open turns are excused."""
    leader = integer(words[0], "leader", low=1)
    policy = _policy(words[1])
    members = admission.decode_members(words[2])
    if state.intervals.open is not None:
        turns.close_interval(state, context, leader, excused=True, answered_members=())
    state.policy = policy
    admission.set_members(state, context, members)
    return OK


def _system_members(state: LedgerState, context: Context, words: Words) -> Reply:
    """~MEMBERS members_json: the cluster's members changed while a leader is in office. Nothing is opened,
    closed or excused: who has left with a turn open is judged like a worker that has left."""
    admission.set_members(state, context, admission.decode_members(words[0]))
    return OK


def _system_open(state: LedgerState, context: Context, words: Words) -> Reply:
    """~OPEN n due_at_ms leader_id policy_json."""
    number, due_at = integer(words[0], "interval", low=1), integer(words[1], "due_at", low=0)
    leader, policy = integer(words[2], "leader", low=1), _policy(words[3])
    return turns.open_interval(state, context, number, due_at, leader, policy)


def _system_close(state: LedgerState, context: Context, words: Words) -> Reply:
    """~CLOSE n leader_id excused member_id…"""
    number, leader = integer(words[0], "interval", low=1), integer(words[1], "leader", low=1)
    excused = bool(integer(words[2], "excused", low=0, high=1))
    answered = frozenset(arguments.follower_id(word) for word in words[3:])
    interval = state.intervals.open
    if interval is None or interval.number != number:
        raise RefusedError(f"ERR interval {number} is not open")
    return turns.close_interval(state, context, leader, excused, answered)


def _system_projected(state: LedgerState, context: Context, words: Words) -> Reply:
    """~PROJECTED index. Only what was applied before this entry can be in MongoDB."""
    index = integer(words[0], "index", low=0, high=max(context.index - 1, 0))
    state.outbox.trim(index)
    return OK


_MANY = 2**31
# name -> (least words after it, most, handler)
_TABLE: Final[dict[bytes, tuple[int, int, Handler]]] = {
    b"FOLLOWER JOIN": (2, 3, _join),
    b"FOLLOWER REPORT": (3, 3, _report),
    b"FOLLOWER LEAVE": (1, 1, _leave),
    b"FOLLOWER INFO": (1, 1, _info),
    b"FOLLOWER LIST": (0, 5, _list),
    b"FOLLOWER PARDON": (2, 2, _pardon),
    b"REWARD BALANCE": (1, 1, _balance),
    b"REWARD CLAIM": (3, 3, _claim),
    b"REWARD TOP": (0, 1, _top),
    b"REWARD HISTORY": (1, 3, _history),
    b"INTERVAL CURRENT": (0, 0, _current),
    b"INTERVAL SHOW": (1, 1, _show),
    b"~TERM": (3, 3, _system_term),
    b"~MEMBERS": (1, 1, _system_members),
    b"~OPEN": (4, 4, _system_open),
    b"~CLOSE": (3, _MANY, _system_close),
    b"~PROJECTED": (1, 1, _system_projected),
}


def execute(state: LedgerState, args: Words, context: Context) -> Reply:
    """Carry out one command; args as sent, name first. Whatever the words are, the answer is a Reply."""
    name, words = (args[0].upper(), args[1:]) if args else (b"", [])
    if name in _CONTAINERS:
        name, words = (name + b" " + words[0].upper(), words[1:]) if words else (name, words)
    known = _TABLE.get(name)
    if known is None:
        return Error(f"ERR unknown command '{arguments.shown(name)}'")
    least, most, handler = known
    if not least <= len(words) <= most:
        return Error(f"ERR wrong number of arguments for '{name.decode().lower()}' command")
    try:
        return handler(state, context, words)
    except RefusedError as refused:
        return refused.error
