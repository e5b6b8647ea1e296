"""Followers against a scripted cluster: every turn answered once, whatever happens to the nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cli_fakes import FakeCluster, FakeError, FakeNode, eventually, fake_cluster

from cli.crew import Crew
from cli.follower import Behaviour, Follower, State
from cli.once import OnceSession


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster(nodes=3) as made:
        yield made


@pytest.fixture
def hire(cluster: FakeCluster) -> Iterator[Callable[..., Crew]]:
    """hire(followers…) starts a crew that is stopped at the end of the test."""
    crews: list[Crew] = []

    def start(*followers: Follower, **options: Any) -> Crew:
        options = {"timeout_s": 1.0, "patience_s": 0.5, **options}
        crew = Crew(followers, [node.address for node in cluster.nodes], **options)
        crews.append(crew)
        crew.start()
        return crew

    yield start
    for crew in crews:
        crew.stop()


def ready(*followers: Follower) -> None:
    eventually(lambda: all(f.first_turn is not None for f in followers), "all followers joined and placed")


def reports_sent(cluster: FakeCluster, name: str) -> list[int]:
    return [int(words[3]) for words in cluster.received if words[:3] == ("FOLLOWER", "REPORT", name)]


def test_answers_every_turn_once(cluster: FakeCluster, hire: Callable[..., Crew]) -> None:
    follower = Follower("a")
    hire(follower)
    ready(follower)
    for _ in range(5):
        number = cluster.open()
        eventually(lambda number=number: ("a", number) in cluster.reports, f"report for {number}")
    eventually(lambda: list(follower.acknowledged) == [1, 2, 3, 4, 5], "all acknowledgements")
    assert reports_sent(cluster, "a") == [1, 2, 3, 4, 5]


def test_one_crew_carries_many_followers(cluster: FakeCluster, hire: Callable[..., Crew]) -> None:
    followers = [Follower(f"f{n}") for n in range(200)]
    hire(*followers)
    ready(*followers)
    for _ in range(3):
        number = cluster.open()
        eventually(lambda number=number: len(cluster.reports) == 200 * number, f"all reports for {number}")
    eventually(lambda: all(list(f.acknowledged) == [1, 2, 3] for f in followers), "all acknowledgements")


def test_who_joins_during_an_interval_waits_for_the_next(
    cluster: FakeCluster, hire: Callable[..., Crew]
) -> None:
    cluster.open()
    follower = Follower("late")
    hire(follower)
    ready(follower)
    cluster.open()
    eventually(lambda: cluster.reports == [("late", 2)], "the first answer")
    assert reports_sent(cluster, "late") == [2]
    assert follower.refused_out_of_turn == 0


def test_a_follower_started_anew_answers_the_interval_that_is_open(
    cluster: FakeCluster, hire: Callable[..., Crew]
) -> None:
    cluster.joined_at["old"] = 1
    cluster.open()
    hire(Follower("old"))
    eventually(lambda: cluster.reports == [("old", 1)], "the open turn answered")


def test_goes_to_the_next_node_when_its_node_dies(cluster: FakeCluster, hire: Callable[..., Crew]) -> None:
    follower = Follower("a")
    hire(follower)
    ready(follower)
    cluster.nodes[0].kill()
    cluster.open()  # perhaps before it listens elsewhere: INTERVAL CURRENT tells it
    eventually(lambda: cluster.reports == [("a", 1)], "the answer through another node")


def test_goes_round_when_the_first_nodes_are_dead_from_the_start(
    cluster: FakeCluster, hire: Callable[..., Crew]
) -> None:
    cluster.nodes[0].kill()
    cluster.nodes[1].silent = True
    follower = Follower("a")
    hire(follower, timeout_s=0.2)
    ready(follower)
    assert cluster.nodes[2].subscribers == 1


def test_a_turn_announced_into_silence_is_still_answered(
    cluster: FakeCluster, hire: Callable[..., Crew]
) -> None:
    cluster.nodes[0].deaf_subscriptions = True
    follower = Follower("a")
    hire(follower)
    ready(follower)
    cluster.open()
    eventually(lambda: cluster.reports == [("a", 1)], "the answer after asking INTERVAL CURRENT")
    eventually(lambda: cluster.nodes[1].subscribers == 1, "the silent node left")


@pytest.mark.parametrize(
    "error",
    [
        "CLUSTERDOWN no leader",
        "INDETERMINATE the leader was lost after it took the command",
        "BUSY too many pending requests",
    ],
)
@pytest.mark.parametrize("command", ["JOIN", "REPORT"])
def test_sends_again_after(error: str, command: str, cluster: FakeCluster, hire: Callable[..., Crew]) -> None:
    refusals = [error] * 2

    def script(node: FakeNode, words: tuple[str, ...]) -> Any:
        return FakeError(refusals.pop()) if words[1] == command and refusals else ...

    cluster.script = script
    follower = Follower("a")
    hire(follower)
    ready(follower)
    cluster.open()
    eventually(lambda: list(follower.acknowledged) == [1], "the acknowledgement")
    assert not refusals
    assert cluster.reports == [("a", 1)]


def test_an_answer_lost_on_the_way_is_asked_for_again(
    cluster: FakeCluster, hire: Callable[..., Crew]
) -> None:
    """The node takes the REPORT and dies before it answers."""

    def script(node: FakeNode, words: tuple[str, ...]) -> Any:
        if words[1] == "REPORT" and node is cluster.nodes[0]:
            node.die_after_this()
            cluster.script = lambda node, words: ...
            cluster.reports.append(("a", int(words[3])))
            raise ConnectionResetError
        return ...

    follower = Follower("a")
    hire(follower, timeout_s=0.3)
    ready(follower)
    cluster.script = script
    cluster.open()
    eventually(lambda: list(follower.acknowledged) == [1], "the acknowledgement through another node")
    assert cluster.reports == [("a", 1)]


def test_joins_again_when_the_ban_is_over(cluster: FakeCluster, hire: Callable[..., Crew]) -> None:
    bans = ["BANNED 1 seconds left of the ban of a, then JOIN again"]

    def script(node: FakeNode, words: tuple[str, ...]) -> Any:
        return FakeError(bans.pop()) if words[1] == "REPORT" and bans else ...

    cluster.script = script
    follower = Follower("a")
    hire(follower)
    ready(follower)
    cluster.open()
    eventually(lambda: follower.state is State.BANNED, "the ban")
    joins = [words for words in cluster.received if words[1] == "JOIN"]
    eventually(lambda: follower.state is State.ACTIVE, "the return")
    assert len([words for words in cluster.received if words[1] == "JOIN"]) == len(joins) + 1
    assert follower.bans == 1


def test_a_follower_that_the_cluster_forgot_joins_again(
    cluster: FakeCluster, hire: Callable[..., Crew]
) -> None:
    follower = Follower("a")
    hire(follower)
    ready(follower)
    cluster.joined_at.clear()
    cluster.open()
    eventually(lambda: "a" in cluster.joined_at, "the second JOIN")
    ready(follower)
    cluster.open()
    eventually(lambda: cluster.reports == [("a", 2)], "the next answer")


def test_the_wrong_version_ends_it(cluster: FakeCluster, hire: Callable[..., Crew]) -> None:
    crew = hire(Follower("a", version="0.9"))
    eventually(lambda: crew.done, "the refusal")
    crew.stop()
    assert [words[1] for words in cluster.received if words[0] == "FOLLOWER"] == ["JOIN"]


def test_leaves_at_the_end_if_asked_to(cluster: FakeCluster, hire: Callable[..., Crew]) -> None:
    follower = Follower("a")
    crew = hire(follower, leave=True)
    ready(follower)
    cluster.nodes[0].kill()
    crew.stop()
    assert cluster.left == ["a"]


def test_misses_and_spam_as_its_character_has_it(cluster: FakeCluster, hire: Callable[..., Crew]) -> None:
    lazy, loud = (
        Follower("lazy", behaviour=Behaviour(miss=1.0)),
        Follower("loud", behaviour=Behaviour(spam=1.0)),
    )
    hire(lazy, loud)
    ready(lazy, loud)
    for turns in (1, 2):
        cluster.open()
        eventually(lambda turns=turns: loud.refused_out_of_turn == turns, "the answer out of turn")
    assert cluster.reports == [("loud", 1), ("loud", 2)]
    assert len(reports_sent(cluster, "loud")) == 4
    assert reports_sent(cluster, "lazy") == []


def test_a_character_decides_the_same_way_again() -> None:
    behaviour = Behaviour(miss=0.5, seed=7)
    first = [behaviour.misses("a", n) for n in range(200)]
    assert first == [behaviour.misses("a", n) for n in range(200)]
    assert 60 < sum(first) < 140
    assert first != [behaviour.misses("b", n) for n in range(200)]


def test_a_crew_without_nodes_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one node"):
        Crew([Follower("a")], [])


# --- exactly once ---


def test_every_join_and_report_has_its_own_number_in_the_followers_session(
    cluster: FakeCluster, hire: Callable[..., Crew]
) -> None:
    one, two = Follower("a"), Follower("b")
    hire(one, two)
    ready(one, two)
    for number in (1, 2, 3):
        cluster.open()
        eventually(lambda number=number: len(cluster.reports) == 2 * number, "the reports")
    sessions: dict[str, list[int]] = {}
    for words in cluster.numbered:
        sessions.setdefault(words[1], []).append(int(words[2]))
    assert list(sessions.values()) == [[1, 2, 3, 4]] * 2
    assert not [words for words in cluster.received if words[1] in ("JOIN", "REPORT")][8:]


@pytest.mark.parametrize("carried_out", [True, False])
def test_a_lost_answer_is_asked_for_under_the_same_number_through_another_node(
    cluster: FakeCluster, hire: Callable[..., Crew], carried_out: bool
) -> None:
    """NOTURN counts as spam: repeated in its own right it would bring a ban nearer."""
    follower = Follower("a")
    hire(follower, timeout_s=0.3)
    ready(follower)
    refusals = [FakeError("NOTURN a has no turn in interval 1")]

    def script(node: FakeNode, words: tuple[str, ...]) -> Any:
        if words[1] != "REPORT":
            return ...
        if node is cluster.nodes[0]:
            node.die_after_this()
            if carried_out:
                cluster.once[cluster.numbered[-1][1:3]] = (words, refusals.pop())
            raise ConnectionResetError
        return refusals.pop()

    cluster.script = script
    cluster.open()
    eventually(lambda: follower.refused_out_of_turn == 1, "the first answer through another node")
    sent = [words for words in cluster.numbered if words[4] == "REPORT"]
    assert len(sent) == 2 and sent[0] == sent[1]
    assert refusals == []


def test_an_expired_session_is_replaced(cluster: FakeCluster, hire: Callable[..., Crew]) -> None:
    follower = Follower("a")
    hire(follower)
    ready(follower)
    expired = {cluster.numbered[0][1]}

    def script(node: FakeNode, words: tuple[str, ...]) -> Any:
        if cluster.numbered[-1][1] in expired and words[1] in ("JOIN", "REPORT"):
            return FakeError("ERR session expired: the command is not carried out (again)")
        return ...

    cluster.script = script
    cluster.open()
    eventually(lambda: list(follower.acknowledged) == [1], "the answer under another session")
    assert len({words[1] for words in cluster.numbered}) == 2
    assert follower.state is State.ACTIVE
    expired.add(cluster.numbered[-1][1])
    follower.join_at, follower.state = 0.0, State.OUTSIDE
    eventually(lambda: follower.state is State.ACTIVE, "JOIN under a third")


def test_numbers_of_long_ago_are_not_repeated() -> None:
    session = OnceSession()
    first = session.wrap(["JOIN"])
    assert session.wrap(["JOIN"]) == first
    for number in range(100):
        session.wrap(["REPORT", str(number)])
        assert session.settle(["REPORT", str(number)], None)
    assert session.wrap(["JOIN"])[2] == "102"
