"""The prose of docs/benchmarks.md."""

HEAD = """\
# Benchmarks

Three nodes on loopback, `fdatasync` on, values of 64 bytes, the settings of the shipped config.yaml unless
a case says otherwise; without MongoDB (the log keeps what it would get) but for the followers. All systems
run on the same machine, are loaded in turn, and a ratio is taken within a round: the machine's moods strike
both. super node runs compiled, as everybody's nodes do after `make compile`; where a table says
"interpreted", as they do before it. This page is made by `make bench` from raw results;
[performance](performance.md) tells where the time goes.
"""
SPEED = """\
Redis is `redis-server` alone with `appendfsync always`: one process, no consensus. etcd has 3 members and
its default settings; two loads: its own `etcdctl check perf` with 500 (l) and 1,000 clients (xl), and 50
connections with one Put under way each (bench/etcd_client.py), as our 50 clients have. PySyncObj has 3
processes, its method is called inside the one that leads, 50 calls under way, and it syncs nothing.
`redis-benchmark` makes the load where it can; mixed, ONCE and MULTI come from this project's own load
(cli/load.py), which takes about as much of a core as a node: compare their ratios, not their rates, with
the others. In brackets the lowest and the highest round. CPU: the loaded node + the two others.
"""
FAILOVER = """\
SIGKILL of the leader's process until a write that began afterwards, through either of the other nodes, is
answered OK. The killed node is back and has caught up before the next kill. No other load.
"""
SCALE = """\
With more keys the processor's caches hold less of them: compare with Redis, which runs in the same rounds.
"""
FOLLOWERS = """\
Each follower has a connection of its own to one of the three nodes and answers its turn within the first
half of the interval; 2 % of them, others each time, do not. In the end `earned` of every follower is
compared with the turns that were acknowledged to it, on the leader and in MongoDB. MongoDB is the demo's
stand-in; it and the followers share the cores with the nodes. The close is timed inside the leader
(bench/timed_node.py; compiled code takes no such clocks, so these nodes run interpreted): judging every
turn, publishing the outcomes, answering. Lag: the longest time in which MongoDB lacked anything. A close
changes the balance of every follower, and 10,000 updates in one `bulk_write` take the stand-in 9 to 11 s
alone on this machine: it cannot keep up with an interval of 10 s.
"""
AGAIN = """\
```
make bench                                         # installs the peers, measures all, writes this page
make bench-quick                                   # the first four rows, beside the recorded ratios
.venv/bin/python -m bench --list                   # the cases
.venv/bin/python -m bench --only speed --rounds 9  # a part; --resume adds to what is there
.venv/bin/python -m bench --render                 # this page again, from bench/results/latest.json
.venv/bin/python -m bench --record                 # what bench-quick compares with from now on
```

A single load by hand, as the tables have it (8201: a client port):

```
redis-benchmark -h 127.0.0.1 -p 8201 -t set --csv -c 50 -P 1 -n 100000 -r 100000 -d 64
redis-server --appendonly yes --appendfsync always --save ""
etcdctl check perf --load=xl
```
"""
