"""The command table and how requests find their row."""

from __future__ import annotations

from typing import Any

import pytest
from machine_support import RealRedis

from raft.machine.commands import (
    COMMANDS,
    CONTAINERS,
    CommandSpec,
    Kind,
    help_lines,
    lookup,
    word_bounds,
)
from raft.replies import Error

CONTRACT = (
    "PING ECHO HELLO AUTH SELECT QUIT RESET INFO TIME COMMAND MULTI EXEC DISCARD WATCH UNWATCH ONCE "
    "GET SET GETDEL GETEX DEL EXISTS MGET MSET MSETNX INCR DECR INCRBY DECRBY APPEND STRLEN TYPE "
    "EXPIRE PEXPIRE TTL PTTL PERSIST SCAN KEYS DBSIZE FLUSHALL "
    "SUBSCRIBE PSUBSCRIBE UNSUBSCRIBE PUNSUBSCRIBE READONLY READWRITE ASKING"
)
CONTRACT_CONTAINERS = {
    "CLIENT": "ID SETNAME GETNAME SETINFO LIST INFO",
    "COMMAND": "COUNT DOCS INFO LIST",
    "CONFIG": "GET",
    "RAFT": "INFO LEADER MEMBERS ADD PROMOTE REMOVE TRANSFER SNAPSHOT BACKUP DIGEST",
    "CLUSTER": "SLOTS SHARDS NODES INFO MYID KEYSLOT",
    "FOLLOWER": "JOIN REPORT LEAVE INFO LIST PARDON",
    "REWARD": "BALANCE CLAIM TOP HISTORY",
    "INTERVAL": "CURRENT SHOW",
}


def request(spec: CommandSpec, words: int) -> list[bytes]:
    name = spec.name.split(b" ")
    return name + [b"x"] * (words - len(name))


@pytest.mark.parametrize("name", CONTRACT.split())
def test_every_command_of_the_contract_is_known(name: str) -> None:
    assert COMMANDS[name.encode()].name == name.encode()


@pytest.mark.parametrize(
    "name", [f"{container} {sub}" for container, subs in CONTRACT_CONTAINERS.items() for sub in subs.split()]
)
def test_every_subcommand_of_the_contract_is_known(name: str) -> None:
    assert COMMANDS[name.encode()].container == name.split()[0].encode()


@pytest.mark.parametrize("spec", COMMANDS.values(), ids=lambda spec: spec.name.decode())
def test_each_row_is_found_in_any_case_with_its_fewest_words(spec: CommandSpec) -> None:
    words = request(spec, word_bounds(spec)[0])
    assert lookup(words) is spec
    assert lookup([word.lower() for word in words]) is spec
    assert lookup([word.capitalize() for word in words]) is spec


@pytest.mark.parametrize("spec", COMMANDS.values(), ids=lambda spec: spec.name.decode())
def test_each_row_refuses_too_few_and_too_many_words(spec: CommandSpec) -> None:
    fewest, most, _ = word_bounds(spec)
    wrong = Error(f"ERR wrong number of arguments for '{spec.shown_name}' command")
    if fewest > len(spec.name.split()):
        assert lookup(request(spec, fewest - 1)) == wrong
    too_many = lookup(request(spec, fewest + 1))
    if most == fewest:
        assert too_many == wrong
    elif spec.name != b"COMMAND":  # there another word is a subcommand
        assert too_many is spec


@pytest.mark.parametrize("container", sorted(CONTAINERS))
def test_containers_explain_themselves(container: bytes) -> None:
    found = lookup([container, b"help"])
    assert isinstance(found, CommandSpec)
    assert found.kind is Kind.LOCAL
    lines = help_lines(container)
    for spec in CONTAINERS[container]:
        assert spec.name.split()[1].decode() in lines


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([b"FOO"], "ERR unknown command 'FOO', with args beginning with: "),
        ([b"foo", b"a", b"b'c"], "ERR unknown command 'foo', with args beginning with: 'a' 'b'c' "),
        ([b"FOO\r\nBAR", b"a"], "ERR unknown command 'FOO  BAR', with args beginning with: 'a' "),
        ([b"\xff"], "ERR unknown command '\\xff', with args beginning with: "),
        ([b"~OPEN", b"1"], "ERR unknown command '~OPEN', with args beginning with: '1' "),
        ([b"FOLLOWER JOIN", b"a"], "ERR unknown command 'FOLLOWER JOIN', with args beginning with: 'a' "),
        ([b""], "ERR unknown command '', with args beginning with: "),
        ([], "ERR empty command"),
        ([b"follower", b"foo"], "ERR unknown subcommand 'foo'. Try FOLLOWER HELP."),
        ([b"Client"], "ERR wrong number of arguments for 'client' command"),
        ([b"config", b"get"], "ERR wrong number of arguments for 'config|get' command"),
    ],
)
def test_errors_are_worded_as_in_redis(words: list[bytes], error: str) -> None:
    found = lookup(words)
    assert isinstance(found, Error)
    assert found == error


def test_long_words_are_cut_in_errors() -> None:
    found = lookup([b"x" * 200, b"y" * 300, b"z"])
    assert found == f"ERR unknown command '{'x' * 128}', with args beginning with: '{'y' * 128}' "


def test_arity_and_keys_are_those_of_redis(real_redis: RealRedis) -> None:
    ours = [spec for name, spec in COMMANDS.items() if spec.container is None and name != b"ONCE"]
    described: Any = real_redis("COMMAND", "INFO", *[spec.name for spec in ours])
    assert {spec.name: (spec.arity, spec.first_key, spec.last_key, spec.step) for spec in ours} == {
        row[0].upper(): (row[1], row[3], row[4], row[5]) for row in described
    }
