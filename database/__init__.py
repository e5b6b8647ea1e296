"""MongoDB: the client, the documents, the projection of the ledger, and a stand-in server for demo and tests.

client.py       new_client: a bounded, lazily connecting pymongo client; what is wrong with a URI
documents.py    pure: ledger rows to the documents that people read in mongosh
indexes.py      the two indexes of `intervals`; the TTL follows the settings
writer.py       the fenced, idempotent writes of one leader
projection.py   Projector: the thread that brings the ledger's outcomes to MongoDB
embedded.py     a MongoDB-compatible server as a subprocess, where no MongoDB is at hand
"""
