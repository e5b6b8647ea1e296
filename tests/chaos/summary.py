"""Reports for people: one run as lines, several as the tables of docs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Document = dict[str, Any]


def told(report: Document) -> str:
    """One run. report: tests.chaos.run.Report as a dict, here and below."""
    settings = report["settings"]
    recoveries = sorted(report["recoveries_s"])
    lines = [
        f"{report['seconds']:.0f} s, seed {settings['seed']}, {settings['nodes']} nodes, "
        f"{report['rounds']} rounds",
        "operations: " + ", ".join(f"{count} {outcome}" for outcome, count in report["operations"].items()),
        "faults: " + ", ".join(f"{count} {kind}" for kind, count in report["faults"].items()),
        f"keys judged: {report['keys']}, longest search {report['longest_search']} steps",
        f"reward intervals: {report['intervals']}; outcomes not read in time: {report['unread']}; "
        f"MongoDB: {_counts(report['documents'])}, looked at {report['mongo_looks']} times",
        f"ledger: {_counts(report['ledger'])}",
        f"requests without an answer: {report['silences']}; "
        f"slowest answer of a node that no fault held: {report['slowest_s']:.2f} s",
    ]
    if recoveries:
        middle, worst = recoveries[len(recoveries) // 2], recoveries[-1]
        lines.append(f"first write acknowledged after healing: median {middle:.2f} s, longest {worst:.2f} s")
    lines.append(f"what nodes made of it: {_counts(report['tally'])}")
    lines += [f"node {n}: at most {usage}" for n, usage in report["usage"].items()]
    if growth := report["growth"]:
        lines.append(f"after the first round: {_counts(growth[0])}; after the last: {_counts(growth[-1])}")
    lines.append(f"VIOLATIONS: {len(report['violations'])}" if report["violations"] else "violations: none")
    lines += [f"  {text}" for text in report["violations"][:20]]
    return "\n".join(lines)


def _counts(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {count:g}" for name, count in counts.items()) or "-"


def tables(reports: Sequence[Document]) -> str:
    """Markdown: runs, then faults."""
    return "\n".join((_runs(reports), _growth(reports), _faults(reports), _tally(reports)))


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def _head(*cells: str) -> str:
    return _row(cells) + _row(["---"] * len(cells))


def _name(report: Document) -> str:
    settings = report["settings"]
    return settings["mix"] or f"{settings['nodes']} nodes, {', '.join(settings['kinds'])}"


def _what(report: Document) -> str:
    settings = report["settings"]
    more = ", lease reads" * settings["lease_reads"] + ", power loss" * settings["power"]
    return f"{settings['nodes']} nodes{more}, seed {settings['seed']}"


def _operations(counts: dict[str, int]) -> str:
    return " / ".join(f"{counts.get(outcome, 0):,}" for outcome in ("ok", "failed", "unknown"))


def _runs(reports: Sequence[Document]) -> str:
    text = _head(
        "mix", "cluster", "time, rounds", "operations ok / refused / unknown", "faults",
        "keys judged, longest search", "intervals, outcomes audited",
        "longest wait for a write after healing", "slowest answer", "violations",
    )  # fmt: skip
    for r in reports:
        text += _row([
            _name(r), _what(r), f"{r['seconds']:.0f} s, {r['rounds']}", _operations(r["operations"]),
            sum(r["faults"].values()), f"{r['keys']:,}, {r['longest_search']:,}",
            f"{r['intervals']:,}, {r['documents'].get('intervals', 0):,}",
            f"{max(r['recoveries_s'], default=0):.2f} s", f"{r['slowest_s']:.2f} s", len(r["violations"]),
        ])  # fmt: skip
    together: dict[str, int] = {}
    for r in reports:
        for outcome, count in r["operations"].items():
            together[outcome] = together.get(outcome, 0) + count
    text += _row([
        "together", "", f"{sum(r['seconds'] for r in reports):.0f} s, {sum(r['rounds'] for r in reports)}",
        _operations(together), f"{sum(sum(r['faults'].values()) for r in reports):,}",
        f"{sum(r['keys'] for r in reports):,}", f"{sum(r['intervals'] for r in reports):,}",
        f"{max((max(r['recoveries_s'], default=0) for r in reports), default=0):.2f} s",
        f"{max((r['slowest_s'] for r in reports), default=0):.2f} s",
        sum(len(r["violations"]) for r in reports),
    ])  # fmt: skip
    return text


def _growth(reports: Sequence[Document]) -> str:
    text = _head("mix", "after", "largest node", "descriptors", "threads", "MongoDB", "harness")
    for r in reports:
        shown = r["growth"]
        for each in [shown[i] for i in sorted({0, len(shown) // 2, len(shown) - 1})] if shown else []:
            text += _row([
                _name(r), f"{each['at_s']} s", f"{each['node_mb']:.0f} MB", each["descriptors"],
                each["threads"], f"{each['mongo_mb']:.0f} MB", f"{each['harness_mb']:.0f} MB",
            ])  # fmt: skip
    return text


def _faults(reports: Sequence[Document]) -> str:
    """Times, by mix; a violation cannot be laid at one fault's door, so they are counted by mix."""
    text = _head("fault", *map(_name, reports), "together")
    for kind in sorted({kind for r in reports for kind in r["faults"]}):
        times = [r["faults"].get(kind, 0) for r in reports]
        text += _row([f"`{kind}`", *(n or "" for n in times), sum(times)])
    wrong = [len(r["violations"]) for r in reports]
    return text + _row(["violations", *wrong, sum(wrong)])


def _tally(reports: Sequence[Document]) -> str:
    text = _head("fault: what the node did", *map(_name, reports))
    for what in sorted({what for r in reports for what in r["tally"]}):
        text += _row([what, *(r["tally"].get(what, "") for r in reports)])
    return text
