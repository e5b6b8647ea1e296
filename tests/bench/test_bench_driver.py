"""The benchmarks' driver: arguments, what is left to measure, failures; the smallest runs of its parts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import __main__ as driver
from bench import etcd_client
from bench.cases import failover, followers, scale, speed
from bench.context import Case, Context, Group, Options
from bench.fleet import Fleet
from bench.results import OURS, Results

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "sped"), "there is no case sped; there are set-1, set-50,"),
        (("--rounds", "0"), "rounds wants 1 or more, got 0"),
        (("--seconds", "0"), "seconds wants 0.05 or more"),
        (("--kills", "many"), "--kills"),
        (("--quick", "--only", "speed"), "leave --only out"),
        (("--quick", "--render"), "not allowed with"),
        (("--dance",), "--dance"),
    ],
)
def test_wrong_arguments_are_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    with pytest.raises(SystemExit) as left:
        driver.main(arguments)
    assert left.value.code == 2
    assert words in capsys.readouterr().err


def test_the_usual_run_and_the_quick_one_stay_in_their_time() -> None:
    def seconds(options: Options, wanted: frozenset[str]) -> float:
        return sum(g.seconds(options, names) for g, names in driver.plan_of(wanted, frozenset(), options))

    assert seconds(Options(), driver.select([])) <= 75 * 60
    assert seconds(Options(**driver.QUICK), frozenset(speed.FIRST_FOUR)) <= 170  # type: ignore[arg-type]


def test_what_is_done_is_left_out() -> None:
    plan = driver.plan_of(driver.select(["nodes", "set-1"]), frozenset({"nodes-3", "set-1"}), Options())
    assert plan == [(scale.NODES_GROUP, frozenset({"nodes-5", "nodes-7"}))]


def test_no_more_keys_than_asked_for() -> None:
    plan = driver.plan_of(driver.select(["keys"]), frozenset(), Options(most_keys=10_000))
    assert plan == [(scale.KEYS_GROUP, frozenset({"keys-1000", "keys-10000"}))]


def group(name: str, run: Callable[[Context, frozenset[str]], None]) -> Group:
    return Group(name, (Case(name, name),), run, lambda *_: 1.0, lambda *_: 1)


def test_one_group_that_fails_does_not_lose_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def good(context: Context, _names: frozenset[str]) -> None:
        context.tell("measuring")
        context.results.add("good", 1, OURS, rate=1.0)
        context.step()

    def bad(context: Context, _names: frozenset[str]) -> None:
        (context.directory / "node-1.log").write_text("hello\nit burns\n")
        raise RuntimeError("nobody leads")

    results = Results(tmp_path / "raw.json")
    plan = [(group(name, run), frozenset({name})) for name, run in (("bad", bad), ("good", good))]
    assert not driver.run(plan, Options(), results, str(tmp_path))
    told = capsys.readouterr().err
    assert "bad: RuntimeError: nobody leads" in told and "node-1.log: it burns" in told
    assert set(Results.load(tmp_path / "raw.json").done) == {"good"}
    assert [path.name for path in tmp_path.iterdir()] == ["raw.json"]


def test_rendering_and_recording_measure_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path / "raw.json", {})
    results.add("set-50", 1, OURS, rate=1.0, p50_ms=1.0, p99_ms=1.0)
    results.finish("set-50", 1.0)
    monkeypatch.setattr(driver, "RECORDED", tmp_path / "results" / "recorded.json")  # the first one ever
    words = ["--results", str(tmp_path / "raw.json"), "--page", str(tmp_path / "b.md")]
    words += ["--plots", str(tmp_path / "plots")]
    assert driver.main([*words, "--render"]) == 0
    assert "SET 50 clients" in (tmp_path / "b.md").read_text()
    assert driver.main([*words, "--record"]) == 0
    assert (tmp_path / "results" / "recorded.json").read_bytes() == (tmp_path / "raw.json").read_bytes()
    assert driver.main(["--render", "--results", str(tmp_path / "none.json")]) == 1


# --- etcd's frames


def test_a_put_as_it_goes_out() -> None:
    assert etcd_client.put_request(b"k", b"v") == b"\0\0\0\0\x06" + b"\x0a\x01k" + b"\x12\x01v"
    assert etcd_client.put_request(b"k", b"v" * 300)[8:11] == b"\x12\xac\x02"
    assert etcd_client.frame(0, 1, 3, b"ab") == b"\0\0\x02\0\x01\0\0\0\x03ab"


@pytest.mark.process
@pytest.mark.timeout(300)
@pytest.mark.needs_tool("etcd")
@pytest.mark.needs_tool("etcdctl")
def test_etcd_has_what_was_put(tmp_path: Path) -> None:
    from bench.cluster import etcd_members

    with etcd_members(tmp_path, 1) as (server, urls):
        outcome = etcd_client.load(server.port, 3, 0.3, keys=1_000_000)
        command = ["etcdctl", "--endpoints", urls[0], "get", "--prefix", "key:", "--keys-only"]
        environ = {"ETCDCTL_API": "3", "PATH": "/usr/local/bin:/usr/bin:/bin"}
        listed = subprocess.run(command, capture_output=True, text=True, env=environ, check=True).stdout
    keys = [line for line in listed.splitlines() if line]
    assert outcome.total.count > 0 and outcome.total.count * 0.99 <= len(keys) <= outcome.total.count


# --- the smallest runs


def small(path: Path, results: Results, **options: float) -> Context:
    return Context(Options(**options), path, results, lambda _text: None, lambda: None)  # type: ignore[arg-type]


@pytest.mark.process
@pytest.mark.timeout(300)
@pytest.mark.needs_tool("redis-server")
@pytest.mark.needs_tool("redis-benchmark")
def test_loads_of_every_kind_against_both(tmp_path: Path) -> None:
    results = Results(None)
    names = frozenset({"set-50-p16", "mixed-90-10", "once-incr", "multi-5", "get-50-follower"})
    speed.run(small(tmp_path, results, rounds=1, seconds=0.1), names)
    for name in names:
        for system in (OURS, speed.REDIS):
            assert results.median(name, system, "rate"), (name, system)


@pytest.mark.process
@pytest.mark.timeout(300)
def test_a_killed_leader(tmp_path: Path) -> None:
    results = Results(None)
    failover.run(small(tmp_path, results, kills=1), frozenset({"failover-150"}))
    (gap,) = results.series("failover-150", "gap_ms")
    assert 0 < gap < 1000 * failover.PATIENCE_S


@pytest.mark.process
@pytest.mark.timeout(300)
def test_followers_are_paid_for_every_acknowledged_turn(tmp_path: Path) -> None:
    results = Results(None)
    followers.run(
        small(tmp_path, results, followers=40, interval_s=1.5, intervals=1), frozenset({"followers"})
    )
    figures = results.records[0]["figures"]
    assert figures["acknowledged"] > 40
    assert (figures["lost"], figures["wrong_in_mongodb"]) == (0, 0)
    assert figures["close_ms"] and all(each > 0 for each in figures["close_ms"])


@pytest.mark.parametrize("closing", ["~CLOSE 1 1 0 node-1", "~TERM 2 {policy} {members}"])
def test_the_timed_node_closes_as_any_other(tmp_path: Path, closing: str) -> None:
    """~TERM of another leader closes what is open, too. In a process of its own: the wrapping is for good."""
    program = f"""
import json, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "cli")!r}]
from backup_support import MEMBERS, POLICY, START_MS
from bench.timed_node import note_closes
from raft.machine.machine import Machine
note_closes(Path({str(tmp_path / "closes")!r}))
machine = Machine("bench")
words = {{"{{policy}}": POLICY, "{{members}}": MEMBERS}}
for index, line in enumerate(["~TERM 1 {{policy}} {{members}}", "~OPEN 1 9 1 {{policy}}", {closing!r}], 1):
    command = [words.get(word, word).encode() for word in line.split()]
    machine.apply_commands(index, index, START_MS + index, [command])
assert machine.ledger.open_interval is None
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_lost_turn_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two acknowledged turns, one paid: the comparison must say so."""
    fleet = Fleet([("127.0.0.1", 1)], 3, 0.0, 1.0)
    for follower, turns in zip(fleet.followers, ([1, 2], [1, 2], []), strict=True):
        follower.acknowledged = turns
    earned = {"follower-00000": 20, "follower-00001": 10, "follower-00002": 10}

    class Answers:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> Answers:
            return self

        def __exit__(self, *_: object) -> None: ...

        def ask(self, *_: str) -> list[object]:
            return ["interval", 2, "closed_at", 5]

        def ask_all(self, commands: list[list[str]]) -> list[list[object]]:
            return [["earned", earned[words[2]]] for words in commands]

    class Nodes:
        def address(self, _node: int) -> tuple[str, int]:
            return "127.0.0.1", 1

    monkeypatch.setattr(followers, "Link", Answers)
    assert followers._compare(fleet, Nodes(), 1, 1.0) == (1, 1)  # type: ignore[arg-type]


@pytest.mark.process
@pytest.mark.timeout(300)
def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    import signal
    import time

    command = [sys.executable, "-m", "bench", "--only", "failover", "--dir", str(tmp_path)]
    command += ["--results", str(tmp_path / "raw.json"), "--page", str(tmp_path / "page.md")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def nodes() -> list[str]:
        lines = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        return [line for line in lines if str(tmp_path) in line and "super_node.py" in line]

    try:
        deadline = time.monotonic() + 40
        while len(nodes()) < 3:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=40)
        assert process.returncode == 130, told
        assert "2 cases, about 6 minutes" in told and "interrupted" in told
        assert nodes() == []
    finally:
        process.kill()
        process.wait()


def test_the_json_has_no_verdict_where_there_is_none() -> None:
    rows = json.loads(driver.as_json(driver.judge(Results(None), driver.GOALS)))
    assert len(rows) == len(driver.GOALS)
    assert {row["reached"] for row in rows} == {None}
