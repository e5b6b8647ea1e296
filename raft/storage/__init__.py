"""The durable side of a node. node_storage.py opens it all; the disk format is at the top of record.py."""
