"""Which arms of a run learnt: gates that a network at chance closes save nothing, and two at chance are no draw."""

from typing import Any

from shrinkbook.evidence.samples import at_chance


def learnt(run: dict[str, Any]) -> dict[str, float]:
    """Accuracy in percent of the arms of a run that left chance; older runs do not note it, but their status tells."""
    measured = run["measurements"]
    if "learnt" in measured or run["status"] != "collapsed":
        return measured.get("learnt", measured["accuracy"])
    return {name: accuracy for name, accuracy in measured["accuracy"].items() if not at_chance(run, accuracy)}


def counted(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was counted of the arms that learnt and did not diverge: zeros, savings and layers, by arm."""
    return {name: arm for name, arm in run["measurements"]["arms"].items() if name in learnt(run)}


def fate(run: dict[str, Any], arm: str) -> str:
    """``diverged``, ``collapsed``, or empty if the arm learnt and was counted."""
    if arm in run["measurements"].get("diverged", {}):
        return "diverged"
    return "" if arm in learnt(run) else "collapsed"
