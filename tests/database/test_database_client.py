"""new_client: bounded, acknowledged, lazy; a bad URI is a clear error that keeps the password."""

from __future__ import annotations

import time

import pytest
from database_support import Address, free_port
from pymongo.errors import ServerSelectionTimeoutError
from pymongo.write_concern import WriteConcern

from database.client import DatabaseConfigError, new_client, redact


def client_of(uri: str):
    return new_client(Address(uri))


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "127.0.0.1:27017",
        "http://127.0.0.1",
        "mongodb://",
        "mongodb://h:port",
        "mongodb://h:99999",
        "mongodb://[::1",
        "mongodb://h/a b",
        "mongodb://h/?w=0",
        "mongodb://h/?nosuchoption=1",
        "mongodb://h/?serverSelectionTimeoutMS=soon",
        "mongodb://h/?journal=perhaps",
        "mongodb://h/?retryWrites",
        "mongodb://h/?tls=true&tlsCAFile=/nonexistent/ca.pem",
        "mongodb://joe:Pa55@word@h",
        "mongodb://joe:Pa55/word@h/db",
        "mongodb://joe:Pa55word@h:port",
        "mongodb://joe:Pa55word@h/?nosuchoption=1",
        "mongodb://joe:Pa55word@h/?w=0",
        "mongodb://h/?tlsCertificateKeyFilePassword=Pa55word&x=1",
        "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:Pa55word&journal=7",
        "mongodb+srv://joe:Pa55word@nodots:port",
    ],
)
def test_a_bad_uri_is_one_line_that_names_the_key_and_keeps_the_secret(uri: str) -> None:
    with pytest.raises(DatabaseConfigError) as caught:
        client_of(uri)
    message = str(caught.value)
    assert message.startswith("database.uri: ")
    assert "\n" not in message
    assert "Pa55" not in message
    assert "5word" not in message
    assert "5/word" not in message
    # Nor may a traceback show pymongo's words.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("mongodb://h:1/db?w=1", "mongodb://h:1/db?w=1"),
        ("mongodb://joe:secret@h/db", "mongodb://joe:***@h/db"),
        ("mongodb://joe@h/db", "mongodb://joe@h/db"),
        ("mongodb://joe:se@cr/et@h", "mongodb://joe:***@h"),
        ("mongodb+srv://joe:%40%2F@h.example.org", "mongodb+srv://joe:***@h.example.org"),
        ("joe:secret@h", "joe:***@h"),
        ("mongodb://h/?proxyPassword=secret&w=1", "mongodb://h/?proxyPassword=***&w=1"),
        (
            "mongodb://h/?TLSCERTIFICATEKEYFILEPASSWORD=secret",
            "mongodb://h/?TLSCERTIFICATEKEYFILEPASSWORD=***",
        ),
        ("", ""),
    ],
)
def test_redact(uri: str, shown: str) -> None:
    assert redact(uri) == shown


def test_writes_wait_for_a_majority_and_its_journal_unless_the_uri_says_otherwise() -> None:
    assert client_of("mongodb://h").write_concern == WriteConcern("majority", 10_000, j=True)
    assert client_of("mongodb://h/?w=1").write_concern == WriteConcern(1, 10_000, j=True)
    asked = client_of("mongodb://h/?w=2&journal=false&wtimeoutMS=50").write_concern
    assert asked == WriteConcern(2, 50, j=False)


def test_every_wait_is_bounded_and_dates_are_aware() -> None:
    options = client_of("mongodb://h").options
    assert options.server_selection_timeout == 2
    assert options.pool_options.connect_timeout == 2
    assert options.pool_options.socket_timeout == 20
    assert options.codec_options.tz_aware
    assert client_of("mongodb://h/?socketTimeoutMS=7000").options.pool_options.socket_timeout == 7


def test_it_connects_at_the_first_operation_and_gives_up_in_time() -> None:
    started_s = time.monotonic()
    with new_client(Address(f"mongodb://127.0.0.1:{free_port()}"), timeout_ms=200) as client:
        assert time.monotonic() - started_s < 0.2
        with pytest.raises(ServerSelectionTimeoutError):
            client.admin.command("ping")
    assert time.monotonic() - started_s < 5


def test_a_name_that_dns_does_not_know_is_an_outage_and_no_config_error() -> None:
    client_of("mongodb+srv://joe:pw@cluster0.invalid/").close()


@pytest.mark.parametrize("options", ["", "?directConnection=true&retryWrites=false", "?w=1&journal=true"])
def test_the_write_concern_works_with_the_server(server, name: str, options: str) -> None:
    with client_of(f"mongodb://127.0.0.1:{server.port}/{options}") as client:
        assert client[name]["c"].insert_one({"_id": 1}).acknowledged
