"""Followers from outside, judged by a real cluster: rules 1 to 8 of the contract, word for word."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
import redis
from cluster import Cluster, code_of, eventually, running
from node_support import ask_all, check_rule_8, follower_info, interval, replay

pytestmark = pytest.mark.process

REWARDS = {
    "interval_ms": 400,
    "reward": 10,
    "penalty": 5,
    "ban_threshold": 3,
    "ban_cooldown_s": 3,
    "max_spam": 4,
}
PATIENT = {"election_timeout_ms": [2000, 4000]}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """For the tests that kill nobody: no election, so no turn is excused."""
    with running(tmp_path_factory.mktemp("ledger"), raft=PATIENT, rewards=REWARDS) as calm:
        calm.leader()
        yield calm
        check_rule_8(calm)
        calm.agree()


def refusal(cluster: Cluster, node: int, *words: str | int) -> str:
    """The error that a command is answered with, to the letter."""
    ((reply, _),) = ask_all([(cluster.client_ports[node], words)], 10)
    assert isinstance(reply, hiredis.ReplyError), reply
    return str(reply)


def history(cluster: Cluster, node: int, name: str) -> dict[int, list[Any]]:
    """REWARD HISTORY by interval: [outcome, delta, balance, closed_at]."""
    rows = cluster.execute(node, "REWARD", "HISTORY", name, "COUNT", 32)
    assert [row[0] for row in rows] == sorted({row[0] for row in rows}, reverse=True), "twice or out of order"
    return {row[0]: row[1:] for row in rows}


def outcome(cluster: Cluster, name: str, number: int, timeout_s: float = 15.0) -> list[Any]:
    """What an interval brought to a follower, once it is closed."""
    return eventually(
        lambda: history(cluster, 1, name).get(number, []), timeout_s, f"outcome of {number} for {name}"
    )


@contextlib.contextmanager
def listening(cluster: Cluster, node: int, *channels: str) -> Iterator[Any]:
    """Confirmed subscriptions on a node."""
    client: Any = redis.Redis(port=cluster.client_ports[node], decode_responses=True)
    subscriber = client.pubsub()
    subscriber.subscribe(*channels)
    for _ in channels:
        assert subscriber.get_message(timeout=10)["type"] == "subscribe"
    try:
        yield subscriber
    finally:
        subscriber.close()
        client.close()


def heard(subscriber: Any, channel: str, timeout_s: float = 15.0) -> str:
    """The next message on a channel; those on others are dropped."""

    def next_one() -> str | None:
        message = subscriber.get_message(timeout=0.2)
        return message["data"] if message and message["channel"] == channel else None

    return eventually(next_one, timeout_s, f"a message on {channel}")  # type: ignore[return-value]


def answer_turn(cluster: Cluster, node: int, name: str, data: str = "done") -> int:
    """Answer turns as they come until one answer is OK; the interval's number."""
    with listening(cluster, node, "turns") as turns:
        while True:
            number = int(heard(turns, "turns").split()[0])
            try:
                assert cluster.execute(node, "FOLLOWER", "REPORT", name, number, data) == "OK"
                return number
            except redis.ResponseError as error:  # a slow machine: the turn was over
                assert code_of(error) == "NOTURN", error


def join(cluster: Cluster, node: int, name: str) -> None:
    assert cluster.execute(node, "FOLLOWER", "JOIN", name, "1.0", f"{name}:1") == "OK"


def test_rule_1_one_entry_opens_an_interval_and_every_node_tells(cluster: Cluster) -> None:
    opened = interval(cluster, 1)["interval"]
    join(cluster, 1, "watcher")
    with contextlib.ExitStack() as stack:
        ears = [stack.enter_context(listening(cluster, node, "turns")) for node in cluster.ids]
        said = [{heard(ear, "turns") for _ in range(3)} for ear in ears]
    for number, due_at in (line.split() for line in set.union(*said)):
        shown = [interval(cluster, node, number) for node in cluster.ids]
        for each in shown:
            assert (each["interval"], each["due_at"]) == (int(number), int(due_at))
            assert each["due_at"] - each["opened_at"] == 400
            # The members, and the silent worker until it is banned.
            assert each["expected"] >= (4 if opened + 2 <= each["interval"] <= opened + 3 else 3), each
    assert set.intersection(*said), "the nodes told of different intervals"
    cluster.execute(1, "FOLLOWER", "LEAVE", "watcher")


def test_rule_2_and_3_an_answer_in_turn_is_a_hit_whichever_node_takes_it(cluster: Cluster) -> None:
    for node in cluster.ids:
        name = f"good-{node}"
        with listening(cluster, node % 3 + 1, f"rewards:{name}") as rewards:
            join(cluster, node, name)
            join(cluster, node % 3 + 1, name)  # again, elsewhere: OK and no change
            number = answer_turn(cluster, node, name, f"data of {name}")
            # A retry through each node is OK and counts once.
            for other in cluster.ids:
                assert cluster.execute(other, "FOLLOWER", "REPORT", name, number, "again") == "OK"
            result, delta, balance, _ = outcome(cluster, name, number)
            assert (result, delta) == ("hit", 10)
            for other in cluster.ids:  # long after it, still
                assert cluster.execute(other, "FOLLOWER", "REPORT", name, number, "late") == "OK"
            told = eventually(
                lambda rewards=rewards, number=number, name=name: (  # type: ignore[misc]
                    line if (line := heard(rewards, f"rewards:{name}")).startswith(f"{number} ") else None
                ),
                what="the outcome on its channel",
            )
            assert told == f"{number} hit 10 {balance}"
        it = follower_info(cluster, node, name)
        assert (it["spam"], it["earned"], it["address"]) == (0, 10, f"{name}:1")
        cluster.execute(node, "FOLLOWER", "LEAVE", name)


def test_rule_3_silence_is_missed_and_rule_4_too_much_of_it_banned(cluster: Cluster) -> None:
    with listening(cluster, 2, "rewards:silent", "cluster") as ear:
        join(cluster, 1, "silent")
        lines = [heard(ear, "rewards:silent").split() for _ in range(3)]
        assert [words[1:] for words in lines] == [
            ["missed", "-5", "-5"], ["missed", "-5", "-10"], ["missed", "-5", "-15"],
        ]  # fmt: skip
        first = int(lines[0][0])
        assert [int(words[0]) for words in lines] == [first, first + 1, first + 2]
        news = eventually(
            lambda: line if "silent" in (line := heard(ear, "cluster")) and "banned" in line else None
        )
    it = follower_info(cluster, 3, "silent")
    assert it["state"] == "banned" and it["misses_in_row"] == 3 and it["balance"] == -15
    assert news == f"banned silent until {it['banned_until']} misses"
    for node in cluster.ids:
        for words in (("JOIN", "silent", "1.0"), ("REPORT", "silent", first + 3, "sorry")):
            said = refusal(cluster, node, "FOLLOWER", *words)
            assert said.startswith("BANNED ") and 1 <= int(said.split()[1]) <= 3, said
    # Banned means no turns: nothing more is taken off it.
    assert follower_info(cluster, 1, "silent")["balance"] == -15

    def admitted() -> bool:
        try:
            return bool(cluster.execute(2, "FOLLOWER", "JOIN", "silent", "1.0") == "OK")
        except redis.ResponseError as error:
            assert code_of(error) == "BANNED"
            return False

    eventually(admitted, 15, "the ban being over")
    it = follower_info(cluster, 1, "silent")
    assert (it["state"], it["misses_in_row"] <= 1, it["spam"]) == ("active", True, 0)
    number = answer_turn(cluster, 3, "silent")
    assert outcome(cluster, "silent", number)[0] == "hit"
    assert follower_info(cluster, 1, "silent")["misses_in_row"] <= 1, "a hit ends the row"
    cluster.execute(1, "FOLLOWER", "LEAVE", "silent")


def test_rule_4_answers_out_of_turn_and_a_pardon(cluster: Cluster) -> None:
    join(cluster, 1, "spammer")
    wrong = [0, 10**9, -3, 10**9 + 1]
    said = [refusal(cluster, n % 3 + 1, "FOLLOWER", "REPORT", "spammer", i, "x") for n, i in enumerate(wrong)]
    assert [line.split()[0] for line in said] == ["NOTURN"] * 4
    assert follower_info(cluster, 2, "spammer")["state"] == "banned"
    assert refusal(cluster, 2, "FOLLOWER", "JOIN", "spammer", "1.0").startswith("BANNED")
    assert cluster.execute(3, "FOLLOWER", "PARDON", "spammer", "it was the network") == "OK"
    it = follower_info(cluster, 1, "spammer")
    assert (it["state"], it["spam"], it["pardon_reason"]) == ("active", 0, "it was the network")
    assert refusal(cluster, 1, "FOLLOWER", "PARDON", "spammer", "again").startswith("ERR")
    number = answer_turn(cluster, 1, "spammer")
    assert outcome(cluster, "spammer", number)[0] == "hit"
    cluster.execute(1, "FOLLOWER", "LEAVE", "spammer")


def test_rule_5_another_version_is_not_admitted(cluster: Cluster) -> None:
    for node in cluster.ids:
        assert refusal(cluster, node, "FOLLOWER", "JOIN", "old", "0.9").startswith("VERSION ")
    assert refusal(cluster, 1, "FOLLOWER", "INFO", "old").startswith("NOFOLLOWER ")
    assert refusal(cluster, 2, "FOLLOWER", "REPORT", "old", 1, "x").startswith("NOFOLLOWER ")
    assert refusal(cluster, 3, "FOLLOWER", "JOIN", "node-1", "1.0").startswith("ERR "), "a member's name"


def test_rule_6_claims_are_paid_once(cluster: Cluster) -> None:
    join(cluster, 1, "claimer")
    number = answer_turn(cluster, 2, "claimer")
    outcome(cluster, "claimer", number)
    cluster.execute(1, "FOLLOWER", "LEAVE", "claimer")

    def settled() -> int | None:  # its last turn may still be open
        open_now = interval(cluster, 1)["interval"]
        return None if open_now <= number + 1 else int(cluster.execute(2, "REWARD", "BALANCE", "claimer"))

    eventually(lambda: settled() is not None, what="its last turn being judged")
    before = int(cluster.execute(2, "REWARD", "BALANCE", "claimer"))
    assert before >= -15
    if before > 0:
        for node in cluster.ids:
            assert cluster.execute(node, "REWARD", "CLAIM", "claimer", 1, "first") == before - 1
    else:
        before += 1  # as if it had been paid: nothing to claim on a slow machine
    over = [refusal(cluster, node, "REWARD", "CLAIM", "claimer", 10_000, "over") for node in cluster.ids]
    assert len(set(over)) == 1 and over[0].startswith("OVERCLAIM ")
    for node in cluster.ids:
        assert cluster.execute(node, "REWARD", "BALANCE", "claimer") == before - 1 - 5
        it = follower_info(cluster, node, "claimer")
        assert it["balance"] == it["earned"] - it["penalties"] - it["claimed"] == before - 6
    assert refusal(cluster, 1, "REWARD", "CLAIM", "claimer", 2, "over").startswith("ERR "), "another amount"
    assert refusal(cluster, 1, "REWARD", "CLAIM", "nobody", 2, "x").startswith("NOFOLLOWER ")


def test_a_follower_that_left_has_no_turns(cluster: Cluster) -> None:
    join(cluster, 1, "leaver")
    assert cluster.execute(2, "FOLLOWER", "LEAVE", "leaver") == "OK"
    assert cluster.execute(3, "FOLLOWER", "LEAVE", "leaver") == "OK"
    number = interval(cluster, 1)["interval"]
    eventually(lambda: interval(cluster, 1)["interval"] >= number + 3, what="some intervals")
    assert set(history(cluster, 1, "leaver")) <= {number}
    assert refusal(cluster, 1, "FOLLOWER", "REPORT", "leaver", number + 2, "x").startswith("NOFOLLOWER ")


def test_balances_are_the_same_everywhere(cluster: Cluster) -> None:
    """REWARD TOP with RAFT DIGEST in one pipeline: at one index there is one truth."""
    by_index: dict[int, set[str]] = {}

    def met() -> bool:
        for node in cluster.ids:
            pipeline = cluster.client(node).pipeline(transaction=False)
            for words in (
                ("RAFT", "DIGEST"),
                ("REWARD", "TOP", 100),
                ("INTERVAL", "CURRENT"),
                ("RAFT", "DIGEST"),
            ):
                pipeline.execute_command(*words)
            first, top, current, last = pipeline.execute()
            if first == last:
                by_index.setdefault(first[0], set()).add(repr((top, current, first)))
        assert all(len(said) == 1 for said in by_index.values()), by_index
        return len(by_index) > 8

    eventually(met, 30, "some indexes compared")


def test_a_leader_killed_in_mid_interval_excuses_the_silent(tmp_path: Path) -> None:
    """Rule 3: nobody pays for an interval in which the leader changed; who answered in it is paid."""
    rewards = {**REWARDS, "interval_ms": 3000, "ban_threshold": 10}
    with running(tmp_path, rewards=rewards) as cluster:
        leader = cluster.leader()
        others = cluster.followers()
        for name in ("busy", "idle"):
            join(cluster, others[0], name)
        number = answer_turn(cluster, others[0], "busy")
        assert interval(cluster, others[0])["interval"] == number
        cluster.kill(leader)
        # The same answer again through the other node: once more OK, still one outcome.
        assert cluster.execute(others[1], "FOLLOWER", "REPORT", "busy", number, "done") == "OK"
        assert outcome(cluster_view(cluster, others[0]), "busy", number)[:2] == ["hit", 10]
        assert outcome(cluster_view(cluster, others[0]), "idle", number)[:2] == ["excused", 0]
        for node in (1, 2, 3):
            assert history(cluster, others[1], f"node-{node}")[number][1] >= 0, (
                "a member paid for the failover"
            )
        assert follower_info(cluster, others[1], "idle")["balance"] == 0
        shown = interval(cluster, others[0], number)
        assert shown["leader"] != leader and shown["closed_at"] is not None
        # The dead member misses the next whole interval, and its balance shrinks.
        name, new = f"node-{leader}", interval(cluster, others[0])["interval"]
        missed = outcome(cluster_view(cluster, others[0]), name, new)
        balance = follower_info(cluster, others[0], name)["balance"]
        assert missed[:2] == ["missed", -5] and balance == missed[2]
        assert follower_info(cluster, others[1], name)["misses_in_row"] >= 1
        cluster.start(leader)
        cluster.ready(leader)

        def answers_again() -> bool:
            return any(row[0] == "hit" for i, row in history(cluster, others[0], name).items() if i > new)

        eventually(answers_again, 20, "the member being paid again")
        cluster.agree()
        check_rule_8(cluster)


def cluster_view(cluster: Cluster, node: int) -> Any:
    """The cluster as asked through one node only (others may be down)."""

    class View:
        def execute(self, _node: int, *words: str | int, **options: Any) -> Any:
            return cluster.execute(node, *words, **options)

    return View()


def test_without_a_quorum_nobody_is_punished(tmp_path: Path) -> None:
    """Rule 3: the cluster had no quorum in the interval. Both followers of the leader stop for a while."""
    with running(tmp_path, rewards={**REWARDS, "interval_ms": 1500, "ban_threshold": 50}) as cluster:
        cluster.leader()
        join(cluster, 1, "idle")
        number = eventually(lambda: max(history(cluster, 1, "idle"), default=None), what="a first outcome")
        stopped = cluster.followers()
        opened = eventually(
            lambda: (
                (now := interval(cluster, 1))["interval"] > number
                and now["closed_at"] is None
                and now["interval"]
            )
        )
        cluster.pause(*stopped)
        rest = next(n for n in cluster.ids if n not in stopped)
        eventually(lambda: cluster.info(rest)["role"] != "leader", what="the leader stepping down")
        cluster.resume(*stopped)
        cluster.leader()
        row = outcome(cluster, "idle", opened)
        assert row[:2] == ["excused", 0] or row[3] <= interval(cluster, 1, opened)["due_at"] + 400, row
        assert all(row[0] != "missed" for row in [history(cluster, 1, f"node-{n}")[opened] for n in stopped])
        cluster.agree()


def test_the_ledger_survives_kills_of_everything(tmp_path: Path) -> None:
    """Claims, joins and answers with a node killed between them; then the logs are replayed as the judge."""
    with running(tmp_path, rewards={**REWARDS, "ban_threshold": 1000}) as cluster:
        cluster.leader()
        join(cluster, 1, "w")
        answered: set[int] = set()
        paid: dict[str, Any] = {}
        for round_ in range(3):
            victim = cluster.leader() if round_ % 2 else cluster.followers()[0]
            asked = next(n for n in cluster.ids if n != victim)
            answered.add(answer_turn(cluster, asked, "w"))
            cluster.kill(victim)
            name = f"claim-{round_}"
            with contextlib.suppress(redis.ResponseError):  # OVERCLAIM is an answer as well
                paid[name] = cluster.execute(asked, "REWARD", "CLAIM", "w", 1, name)
            answered.add(answer_turn(cluster, asked, "w"))
            cluster.start(victim)
            cluster.ready(victim)
            if name in paid:
                assert cluster.execute(victim, "REWARD", "CLAIM", "w", 1, name) == paid[name]
        last = max(answered)
        eventually(lambda: interval(cluster, 1)["interval"] > last, what="the last answered interval closing")
        cluster.agree()
        cluster.kill(*cluster.ids, sig=signal.SIGTERM)
        for node in cluster.ids:
            said = replay(cluster, node, tmp_path / "replay")
            for number in answered:
                assert said.outcomes[number, "w"].outcome == "hit", number
            assert {name: row.balance for name, row in said.claims.items() if row.accepted} == paid
