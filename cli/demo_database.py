"""The demo's database: the MongoDB that answers at database.uri, or an embedded server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pymongo.errors import PyMongoError

from cli.demo_plan import CLUSTER_NAME, DemoError, embedded_place
from database.client import DatabaseConfigError, new_client
from database.embedded import EmbeddedServer, EmbeddedServerError, answers
from raft.config import DatabaseSettings, redact_uri

COLLECTIONS = ("rewards", "intervals", "claims", "projection")


class DemoDatabase:
    """Found or started by `start`. `uri` and `name` say where the demo's documents go. Main thread only."""

    def __init__(self, settings: DatabaseSettings, data_dir: Path, keep: bool) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._keep = keep
        self._server: EmbeddedServer | None = None
        self.uri = settings.uri
        self.name = settings.name

    @property
    def shell_uri(self) -> str:
        """What to give mongosh: the URI with the database's name in its path."""
        head, question, options = self.uri.partition("?")
        scheme, _, rest = head.partition("://")
        hosts = rest.split("/")[0]
        # directConnection is mongosh's own default; retryWrites matters to writers only.
        shown = "" if self._server is not None else f"{question}{options}"
        return f"{scheme}://{hosts}/{self.name}{shown}"

    def start(self) -> str:
        """Finds or starts the database; what it did, in words. Raises DemoError."""
        try:
            if answers(self.uri, 1.0):
                self.name = self._own_name()
                return f"MongoDB answers at {redact_uri(self.uri)}; the demo uses its database {self.name}"
            host, port = embedded_place(self.uri)
            self._server = EmbeddedServer(
                self._data_dir / "mongodb", host, port, log_path=self._data_dir / "logs" / "mongodb.log"
            )
            self._server.start()
        except (DatabaseConfigError, EmbeddedServerError) as error:
            raise DemoError(str(error)) from None
        except PyMongoError as error:
            # Its own words may quote the URI.
            raise DemoError(f"MongoDB at {redact_uri(self.uri)} refused: {type(error).__name__}") from None
        missing = redact_uri(self.uri)
        self.uri = self._server.uri
        return f"no MongoDB at {missing}: an embedded server runs at {host}:{port}"

    def stop(self) -> None:
        """Stops the embedded server, if there is one."""
        if self._server is not None:
            self._server.stop()

    def _own_name(self) -> str:
        """The name of a database that is the demo's to use, emptied unless the last demo is kept.

        Somebody else's documents are never touched: where database.name holds some, it is <name>_demo.
        """
        client = new_client(self._settings)
        try:
            for name in (self._settings.name, f"{self._settings.name}_demo"):
                database = client[name]
                if self._is_ours(database):
                    if not self._keep:
                        for collection in COLLECTIONS:
                            database[collection].drop()
                    return name
        finally:
            client.close()
        raise DemoError(
            f"the databases {self._settings.name} and {self._settings.name}_demo at {redact_uri(self.uri)} "
            "belong to other clusters; choose a name with SUPER_NODE_DATABASE__NAME"
        )

    def _is_ours(self, database: Any) -> bool:
        """Whether all that is in the database was written by a demo, or there is nothing in it."""
        owners = {document["_id"] for document in database["projection"].find({}, {"_id": 1}).limit(10)}
        if owners:
            return owners == {CLUSTER_NAME}
        return all(database[name].find_one({}, {"_id": 1}) is None for name in COLLECTIONS)
