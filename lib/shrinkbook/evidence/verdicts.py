"""Compare a paper's claims with runs: one rule a kind of claim, fixed before the first run.

A verdict is a plain dict, ready for JSON, with the keys of `KEYS` (None where a key does not apply):
`interval` is the 90 % interval of (our mean - printed) for levels, deltas and ratios, the range of the gap over seeds
for orders and trends, and its 95 % bootstrap interval on one fixed network; `prediction` is the 90 % interval for one
further run and never decides; `ours` is the mean, or for orders and trends the median gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shrinkbook.evidence.paper import Claim, Paper
from shrinkbook.evidence.rules import MIN_LEVEL, MIN_ORDER, Verdict, level, mechanism, not_attempted
from shrinkbook.evidence.samples import Run, cell_value, place, schedule, usable
from shrinkbook.evidence.statistics import agree

__all__ = ["KEYS", "MECHANISM", "WORDS", "agree", "judge", "judge_paper", "words"]

WORDS = ("reproduced", "close", "differs", "contradicted", "inconclusive", "not attempted")
SEVERITY = ("reproduced", "close", "differs", "not attempted")  # of a structural cell; the worst word is the claim's
MECHANISM = ("order", "trend")
KEYS = (
    *("claim", "paper", "kind", "profile", "text", "where", "verdict", "direction", "printed", "source_status"),
    *("ours", "unit", "n", "sd", "interval", "prediction", "margin", "stable", "scope", "reason", "experiment"),
    *("runs", "cells"),
)


def judge_paper(paper: Paper, runs: Sequence[Run], profile: str) -> list[Verdict]:
    """One verdict for each claim of the paper, in the order of paper.toml."""
    return [judge(claim, paper, runs, profile) for claim in paper.claims]


def judge(claim: Claim, paper: Paper, runs: Sequence[Run], profile: str) -> Verdict:
    """Judge one claim by the runs of one profile.

    The first of the claim's experiments with enough values to decide (of runs finished or collapsed, newest version, at
    the required schedule) judges it, else the first with any; a seed counts once. A structural claim takes each cell
    from the first that holds it.

    Args:
        claim: a claim of `paper`.
        paper: where the printed numbers are.
        runs: run files, any order, any experiments and profiles.
        profile: quick, standard or paper.

    Raises:
        EvidenceError: a run holds something that is no number where the claim expects one.
    """
    if claim.kind == "structural":
        found = _structural(claim, paper, runs, profile)
    elif profile == "quick" and claim.kind not in MECHANISM:
        found = not_attempted(claim, f"profile quick never judges a {claim.kind}")
    else:
        found = _statistical(claim, paper, runs, profile)
    known = {
        "claim": claim.id,
        "paper": paper.key,
        "kind": claim.kind,
        "profile": profile,
        "text": claim.text,
        "where": list(claim.where),
        "printed": paper.printed(claim),
        "source_status": paper.source_status(claim),
        "unit": claim.unit or None,
        "margin": claim.margin,
        "stable": claim.stable,
    }
    verdict: Verdict = dict.fromkeys(KEYS) | known | found
    if verdict["source_status"] != "verified" and verdict["verdict"] != "not attempted":
        verdict["reason"] += f"; judged against a {verdict['source_status']} value"
    return verdict


def words(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How often each word occurs, in the order of `WORDS`, zeros included."""
    given = [verdict["verdict"] for verdict in verdicts]
    return {word: given.count(word) for word in WORDS}


def _structural(claim: Claim, paper: Paper, runs: Sequence[Run], profile: str) -> Verdict:
    """Printed digits, cell by cell; the worst word decides."""
    rows: list[Verdict] = []
    judges: list[Run] = []
    for cell in paper.cells(claim):
        row: Verdict = {"cell": cell.address, "printed": cell.value, "ours": None, "word": "not attempted"}
        for experiment in claim.experiments:
            finished = [run for run in usable(runs, experiment, profile) if run["status"] == "finished"]
            values = [(value, run) for run in finished if (value := cell_value(run, cell)) is not None]
            if values:
                ours, run = max(values, key=lambda pair: SEVERITY.index(agree(pair[0], cell.value)))
                row |= {"ours": ours, "word": agree(ours, cell.value)}
                judges.append(run)
                break
        rows.append(row)
    word = max((row["word"] for row in rows), key=SEVERITY.index)
    off = [row for row in rows if row["word"] == word]
    source = ", ".join(sorted({run["experiment"] for run in judges}))
    if word == "not attempted":
        named = ", ".join(row["cell"] for row in off[:3]) + (f" and {len(off) - 3} more cells" if len(off) > 3 else "")
        result = not_attempted(claim, f"no finished run gives {named}")
    elif word == "reproduced":
        what = "the cell rounds or truncates" if len(rows) == 1 else f"all {len(rows)} cells round or truncate"
        result = {"verdict": word, "reason": f"{what} to the printed digits ({source})"}
    else:
        named = "; ".join(f"{row['cell']} is {row['ours']:.8g}, printed {row['printed']}" for row in off)
        what = "one unit of the last printed place off" if word == "close" else "more than one last place off"
        result = {"verdict": word, "reason": f"{len(off)} of {len(rows)} cells {what}: {named} ({source})"}
    return result | {
        "ours": rows[0]["ours"] if len(rows) == 1 else None,
        "experiment": judges[0]["experiment"] if judges else None,
        "runs": sorted({run["run_id"] for run in judges}),
        "cells": rows,
    }


def _statistical(claim: Claim, paper: Paper, runs: Sequence[Run], profile: str) -> Verdict:
    """Find the runs that may judge the claim and apply the rule of its kind."""
    other: list[Run] = []
    few: Verdict | None = None
    for experiment in claim.experiments:
        found = usable(runs, experiment, profile)
        chosen = [run for run in found if claim.requires in (None, schedule(run))]
        if chosen:
            mechanical = claim.kind in MECHANISM
            verdict = {"experiment": experiment} | (mechanism if mechanical else level)(claim, paper, chosen)
            by_images = any(run.get("fixed_network") for run in chosen) and mechanical
            least = MIN_ORDER if mechanical else MIN_LEVEL
            enough = verdict.get("interval") if by_images else int(verdict.get("n") or 0) >= least
            if enough or verdict["verdict"] not in ("inconclusive", "not attempted"):
                return verdict
            few = verdict if few is None or few["verdict"] == "not attempted" else few
        other += found
    if few:
        return few
    if other:
        budgets = ", ".join(sorted({place(run) for run in other}))
        return not_attempted(claim, f"needs runs at schedule {claim.requires}; the stored ones are at {budgets}")
    if not claim.experiments:
        return not_attempted(claim, "no experiment covers it")
    stopped = sum(run["experiment"] in claim.experiments and run["profile"] == profile for run in runs)
    aside = f" ({stopped} interrupted)" if stopped else ""
    return not_attempted(claim, f"no finished run of {' or '.join(claim.experiments)} in profile {profile}{aside}")
