"""Bugs of threads, resources and clients (BUGS 3, 7, 45 to 58) put back into the node around the core."""

from __future__ import annotations

from tests.mutants.core_mutants import Mutant

MUTANTS = (
    Mutant(
        3,
        "raft/node.py",
        "        if threading.get_ident() == self._worker_ident:\n",
        "        if True:\n",
        "term and log are changed by whichever thread calls",
    ),
    Mutant(
        7,
        "raft/node.py",
        'rng or random.Random(hashlib.sha256(os.urandom(32) + b"%d" % node_id).digest())',
        "rng or random.Random(1)",
        "the same random seed on every node",
    ),
    Mutant(
        45,
        "raft/node.py",
        "            if hangs is not None:\n",
        "            if False:\n",
        "nobody notices that the disk hangs",
    ),
    Mutant(
        54,
        "raft/transport/dialer.py",
        "        except OSError as error:\n            if error.errno",
        "        except ConnectionRefusedError as error:\n            if error.errno",
        "an address that cannot be dialed ends the node",
    ),
    Mutant(
        54,
        "raft/transport/dialer.py",
        "        except (ValueError, OverflowError) as error:",
        "        except ZeroDivisionError as error:",
        "an impossible address ends the node",
    ),
    Mutant(
        55,
        "raft/transport/links.py",
        "        if self._waiting_bytes and self._waiting_bytes + len(frame) > self._outbox_bytes:\n",
        "        if False:\n",
        "what a peer does not read is kept without bound",
    ),
    Mutant(
        55,
        "raft/clients/connection.py",
        "        if len(self._out) > limit and self.failure is None:\n",
        "        if False:\n",
        "what a client does not read is kept without bound",
    ),
    Mutant(
        56,
        "raft/runtime/load.py",
        "            self._taken -= operations\n",
        "            self._taken -= operations - 1\n",
        "answered commands are counted as pending: in the end all are refused",
    ),
    Mutant(
        57,
        "raft/transport/dialer.py",
        "        except BaseException:\n            sock.close()\n            raise\n",
        "        except BaseException:\n"
        "            socket.leaked = [*getattr(socket, 'leaked', ()), sock]\n"
        "            raise\n",
        "each failed dial costs a descriptor",
    ),
    Mutant(
        0,
        "raft/runtime/load.py",
        "            if self._taken and self._taken + operations > self.limit:\n",
        "            if False:\n",
        "no BUSY: pending commands have no bound",
    ),
)
