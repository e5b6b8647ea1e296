"""The embedded server: survives kill -9 with its data, leaves no process behind, says what is missing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from database_support import Address, free_port, wait_until

from database import embedded
from database.client import DatabaseConfigError, new_client
from database.embedded import EmbeddedServer, EmbeddedServerError, answers

ROOT = Path(__file__).resolve().parents[2]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie waits for its parent but runs no more.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_was_acknowledged_survives_kill_9_and_a_restart(own_server: EmbeddedServer) -> None:
    own_server.start()
    with new_client(Address(own_server.uri)) as client:
        client["db"]["c"].insert_one({"_id": 1})
        own_server.kill()
        assert not own_server.running
        assert not answers(own_server.uri, 0.2)
        own_server.start()
        assert client["db"]["c"].find_one() == {"_id": 1}
        own_server.restart()
        assert client["db"]["c"].find_one() == {"_id": 1}
    pid = own_server.pid
    assert pid is not None
    own_server.stop()
    assert own_server.pid is None
    assert not alive(pid)
    own_server.stop()  # once more does nothing


def test_answers(server: EmbeddedServer) -> None:
    assert answers(server.uri)
    assert answers(f"mongodb://127.0.0.1:{server.port}")
    assert not answers(f"mongodb://127.0.0.1:{free_port()}", 0.2)
    with pytest.raises(DatabaseConfigError):
        answers("http://127.0.0.1")


def test_a_silent_port_is_no_mongodb() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not answers(f"mongodb://127.0.0.1:{silent.getsockname()[1]}", 0.3)


def test_a_port_in_use_is_told_at_once(server: EmbeddedServer, tmp_path: Path) -> None:
    second = EmbeddedServer(tmp_path, port=server.port)
    with pytest.raises(EmbeddedServerError, match=f"127.0.0.1:{server.port}: Address already in use"):
        second.start()
    assert not second.running


def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no directory")
    broken = EmbeddedServer(tmp_path, port=free_port())
    with pytest.raises(EmbeddedServerError, match=f"ended at once, see {tmp_path}/server.log: .+"):
        broken.start()
    assert not broken.running


def test_a_server_that_does_not_answer_in_time_is_killed(
    own_server: EmbeddedServer, monkeypatch: Any
) -> None:
    started: list[int] = []

    def never(*_: Any) -> bool:
        assert own_server.pid is not None
        started.append(own_server.pid)
        return False

    monkeypatch.setattr(embedded, "answers", never)
    with pytest.raises(EmbeddedServerError, match=r"did not answer within 0\.2 s"):
        own_server.start(deadline_s=0.2)
    assert not alive(started[0])


def test_a_missing_program_says_what_to_install(own_server: EmbeddedServer, monkeypatch: Any) -> None:
    monkeypatch.setattr(embedded, "PROGRAM", "no-such-server")
    with pytest.raises(EmbeddedServerError, match="pip install secantusdb"):
        own_server.start()


def test_starting_twice_is_refused(server: EmbeddedServer) -> None:
    with pytest.raises(EmbeddedServerError, match="runs already"):
        server.start()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux'")
def test_no_process_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import sys, time
        from database.embedded import EmbeddedServer
        server = EmbeddedServer({str(tmp_path)!r}, port={free_port()})
        server.start()
        print(server.pid, flush=True)
        time.sleep(60)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        # Ctrl-C in the terminal reaches the parent's process group only.
        assert os.getpgid(pid) != os.getpgid(parent.pid)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not alive(pid), "the server is gone", 5)
