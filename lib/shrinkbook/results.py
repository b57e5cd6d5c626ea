"""results/ of a profile: judged by runs of the record or of this machine, written, and the README's scoreboard."""

from collections.abc import Callable, Sequence
from typing import Any

from shrinkbook.evidence import claims, report, store, verdicts
from shrinkbook.evidence.rules import Verdict
from shrinkbook.experiments import catalogue, profiles, run


def front() -> str:
    """The README's scoreboard, from the record."""
    boards = {name: judge(catalogue.papers(), name, None, "record") for name in profiles.PROFILES}
    return report.front_markdown({name: board for name, board in boards.items() if attempted(board)})


def attempted(board: Sequence[Verdict]) -> bool:
    """Whether anything but arithmetic was done in a profile."""
    return any(verdict["kind"] != "structural" and verdict["verdict"] != "not attempted" for verdict in board)


def runs_of(keys: Sequence[str] | None, profile: str, seeds: Sequence[int] | None, source: str) -> list[dict[str, Any]]:
    """The runs the profile plans for today's code, as far as the build folder or the record holds them."""
    folder = store.record_dir() if source == "record" else store.runs_dir()
    return run.stored_runs(catalogue.units(keys, profile, seeds), folder)


def judge(keys: Sequence[str], profile: str, seeds: Sequence[int] | None, source: str) -> list[Verdict]:
    """Verdicts on every claim of these papers."""
    runs = runs_of(keys, profile, seeds, source)
    return [verdict for key in keys for verdict in verdicts.judge_paper(claims.load(key), runs, profile)]


def write(
    keys: Sequence[str], profile: str, seeds: Sequence[int] | None, source: str, say: Callable[[str], None]
) -> list[Verdict]:
    """Write results/<profile>; papers reported there before stay reported if their runs are where these are."""
    before = store.results(profile) or {"source": None, "seeds": None, "papers": []}
    stay = before["papers"] if (before["source"], before["seeds"]) == (source, seeds) else []
    if left := [key for key in before["papers"] if key not in (*keys, *stay)]:
        place = store.results_dir(profile)
        say(f"no longer in {place}: {', '.join(left)}, whose runs are from the {before['source']}")
    keys = [key for key in catalogue.papers() if key in keys or key in stay]
    papers = [claims.load(key) for key in keys]
    runs, record = runs_of(keys, profile, seeds, source), runs_of(keys, profile, None, "record")
    report.write_results(profile, papers, runs, record, source, seeds)
    return [verdict for paper in papers for verdict in verdicts.judge_paper(paper, runs, profile)]
