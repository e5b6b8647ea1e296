"""Who did their work: followers, intervals, rewards. Pure rules, no clock, config, random or I/O.

Everything in here is a function of the sequence of (context, command) alone, so that every node that has
applied the same log entries holds the same ledger, byte for byte. `ledger.ledger.Ledger` is the door.
"""
