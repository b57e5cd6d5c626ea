"""The scoreboard, and the folder `results/<profile>` with its check.

Everything under `results/<profile>` is generated from run files and paper data; `check_results` renders it again and
lists what differs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from shrinkbook.evidence import store, verdicts
from shrinkbook.evidence.paper import Paper
from shrinkbook.evidence.rules import Verdict
from shrinkbook.evidence.samples import Run, seeds_text
from shrinkbook.evidence.tables import NOTHING, format_like, markdown, side_by_side, wide

__all__ = [
    "agreement",
    "check_results",
    "format_like",
    "front_markdown",
    "markdown",
    "readme_block",
    "scoreboard",
    "scoreboard_markdown",
    "side_by_side",
    "wide",
    "write_results",
]

BEGIN, END = "<!-- scoreboard:begin -->", "<!-- scoreboard:end -->"


# --- the scoreboard -----------------------------------------------------------------------------------------------


def scoreboard(results: Sequence[Verdict]) -> pd.DataFrame:
    """Claim, text, printed, ours, n, interval, verdict, scope: one line a claim, as a person reads it."""
    columns = ["claim", "text", "printed", "ours", "n", "interval", "verdict", "scope"]
    return pd.DataFrame([_line(result) for result in results], columns=columns)


def scoreboard_markdown(results: Sequence[Verdict]) -> str:
    """The scoreboard as Markdown: how often each word occurs, then one table a paper."""
    counts = ", ".join(f"{count} {word}" for word, count in verdicts.words(results).items() if count)
    parts = [f"{len(results)} claims: {counts or 'none judged'}.\n"]
    for key in dict.fromkeys(result["paper"] for result in results):
        parts.append(f"### {key}\n\n" + markdown(scoreboard([r for r in results if r["paper"] == key])))
    return "\n".join(parts)


def front_markdown(profiles: Mapping[str, Sequence[Verdict]]) -> str:
    """For the README: how often each word occurs, a line a paper and profile, and what is not as the paper says."""
    rows, against = [], []
    for profile, results in profiles.items():
        for key in dict.fromkeys(result["paper"] for result in results):
            own = [result for result in results if result["paper"] == key]
            counts = verdicts.words(own)
            rows.append([key, f"[{profile}](results/{profile}/README.md)", *(count or "" for count in counts.values())])
            for result in own:
                if result["verdict"] in ("differs", "contradicted"):
                    scope = f" ({result['scope']})" if result["scope"] else ""
                    word = result["verdict"] + (f", {result['direction']}" if result["direction"] else "")
                    against.append(f"- {result['claim']}, {profile}, **{word}**{scope}: {result['text']}")
    table = markdown(pd.DataFrame(rows, columns=["paper", "profile", *verdicts.WORDS]))
    return "\n".join([table, "Not as the paper says:\n", *against]) if against else table


def _line(result: Verdict) -> list[str]:
    word = result["verdict"] + (f" ({result['direction']})" if result["direction"] else "")
    ours, printed = NOTHING, result["printed"]
    cells = result["cells"]
    if cells and len(cells) > 1:
        done = sum(cell["word"] == "reproduced" for cell in cells)
        ours = f"{done} of {len(cells)} cells" if any(cell["ours"] is not None for cell in cells) else NOTHING
        printed = f"{len(cells)} cells"
    elif result["ours"] is not None:
        ours = format_like(result["ours"], printed if cells else "")
    if result["source_status"] != "verified":
        printed += f" [{result['source_status']}]"
    if result["unit"] and ours != NOTHING and not (cells and len(cells) > 1):
        ours += f" {result['unit']}"
    interval = "[{:.3g}, {:.3g}]".format(*result["interval"]) if result["interval"] else NOTHING
    count = NOTHING if result["n"] is None else str(result["n"])
    return [result["claim"], result["text"], printed, ours, count, interval, word, result["scope"] or ""]


def readme_block(readme_text: str, markdown: str) -> str:
    """Replace what stands between the two scoreboard markers of a README.

    Raises:
        ValueError: a marker is missing, or the end stands before the beginning.
    """
    head, begin, rest = readme_text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README has no scoreboard markers; put {BEGIN} and {END} on lines of their own")
    return f"{head}{BEGIN}\n{markdown.strip()}\n{END}{tail}"


# --- the folder of a profile --------------------------------------------------------------------------------------


def write_results(
    profile: str,
    papers: Sequence[Paper],
    runs: Sequence[Run],
    record: Sequence[Run],
    source: str,
    seeds: Sequence[int] | None = None,
) -> Path:
    """Write tables, verdicts.json and README.md of a profile.

    Args:
        profile: quick, standard or paper; runs of other profiles are ignored.
        papers: the papers to report; those left out are not in verdicts.json afterwards.
        runs: what the verdicts judge.
        record: the committed runs, shown beside them.
        source: `build` or `record`, where `runs` come from.
        seeds: those asked for, None for the profile's own; kept, so that the check can choose the same runs.

    Returns:
        The profile's folder.

    Raises:
        StoreError: a file cannot be written.
    """
    folder = store.results_dir(profile)
    files = _render(profile, papers, runs, record, source, seeds)
    for name, text in files.items():
        store.write_text(folder / name, text)
    for name in _stale(folder, papers, files):
        (folder / name).unlink()
    return folder


def check_results(profile: str, papers: Sequence[Paper], runs: Sequence[Run], record: Sequence[Run]) -> list[str]:
    """Compare the files of a profile with what `runs` and `record` give now; one line a difference."""
    folder = store.results_dir(profile)
    try:
        listing = json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))
        source, seeds = listing["source"], listing["seeds"]
    except FileNotFoundError:
        return ["verdicts.json: is missing; run `make reproduce`"]
    except (ValueError, KeyError, TypeError):
        return ["verdicts.json: is not JSON with a 'source' and 'seeds'; run `make reproduce`"]
    files = _render(profile, papers, runs, record, source, seeds)
    found = []
    for name, text in files.items():
        try:
            stored = (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            found.append(f"{name}: is missing")
            continue
        for number, (here, there) in enumerate(_zip_lines(stored, text), 1):
            if here != there:
                found.append(f"{name}, line {number}: stored '{here.strip()}', recomputed '{there.strip()}'")
    return found + [f"{name}: stored, but no paper has this table" for name in _stale(folder, papers, files)]


def agreement(results: Sequence[Verdict], record_results: Sequence[Verdict]) -> str:
    """How a computation agrees with the record: first line the counts, then one line a disagreement.

    Structural claims are counted by cell (our values equal), stable orders and trends by the word. What the record has
    not attempted, and claims outside `results`, are not counted.
    """
    here = {result["claim"]: result for result in results}
    pairs = [(here[there["claim"]], there) for there in record_results if there["claim"] in here]
    same = {"structural": 0, "stable mechanism": 0}
    total, lines = dict(same), []
    for ours, theirs in pairs:
        if theirs["kind"] == "structural":
            mine = {cell["cell"]: cell["ours"] for cell in ours["cells"]}
            checks = [
                ("structural", cell["cell"], mine.get(cell["cell"]), cell["ours"])
                for cell in theirs["cells"]
                if cell["ours"] is not None
            ]
        elif theirs["stable"] and theirs["kind"] in verdicts.MECHANISM and theirs["verdict"] != "not attempted":
            checks = [("stable mechanism", "", ours["verdict"], theirs["verdict"])]
        else:
            checks = []
        for kind, place, mine_value, record_value in checks:
            total[kind] += 1
            if _equal(mine_value, record_value):
                same[kind] += 1
            else:
                name = f"{theirs['claim']} {place}".strip()
                lines.append(f"  {name}: {mine_value} here, {record_value} in the record")
    if not any(total.values()):
        return "the record holds nothing to compare with"
    counts = (
        f"{same['structural']}/{total['structural']} structural, {same['stable mechanism']}/{total['stable mechanism']}"
    )
    verb = "disagrees" if lines else "agrees"
    return "\n".join([f"{verb} with the record: {counts} stable mechanism claims", *lines])


def _equal(ours: Any, theirs: Any) -> bool:
    """Equal words, or numbers that differ by rounding of the last bits only."""
    if isinstance(ours, (int, float)) and isinstance(theirs, (int, float)):
        return math.isclose(ours, theirs, rel_tol=1e-9)
    return bool(ours == theirs)


def _render(
    profile: str,
    papers: Sequence[Paper],
    runs: Sequence[Run],
    record: Sequence[Run],
    source: str,
    seeds: Sequence[int] | None,
) -> dict[str, str]:
    """Relative path to text of every generated file."""
    files: dict[str, str] = {}
    results: list[Verdict] = []
    runs, record = ([run for run in group if run["profile"] == profile] for group in (runs, record))
    for paper in papers:
        results += verdicts.judge_paper(paper, runs, profile)
        digits = {cell.address for claim in paper.claims if claim.kind == "structural" for cell in paper.cells(claim)}
        own, stored = ([run for run in group if _belongs(run, paper.key)] for group in (runs, record))
        for table in paper.tables.values():
            stem = f"tables/{paper.key}_{table.id}"
            files[f"{stem}.csv"] = side_by_side(table, stored, own, digits).to_csv(index=False, lineterminator="\n")
            shape = markdown(wide(table, stored, own).reset_index())
            files[f"{stem}.md"] = f"{table.caption}\n\nEach cell: paper | record | ours.\n\n{shape}"
    keys = [paper.key for paper in papers]
    listing = {"profile": profile, "source": source, "seeds": seeds, "papers": keys, "verdicts": results}
    files["verdicts.json"] = json.dumps(listing, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    used = {run_id for result in results for run_id in result["runs"]}
    files["README.md"] = _readme(profile, source, papers, results, [run for run in runs if run["run_id"] in used])
    return files


def _readme(profile: str, source: str, papers: Sequence[Paper], results: Sequence[Verdict], used: Sequence[Run]) -> str:
    origin = {"build": "runs computed on this machine", "record": "the committed record"}[source]
    lines = [
        f"# Results of profile {profile}\n",
        f"Generated by `make reproduce PROFILE={profile}` from {len(used)} runs ({origin}); do not edit.",
        "How each word is decided: `verdicts.py` and `rules.py` in `lib/shrinkbook/evidence`.\n",
        scoreboard_markdown(results),
        "## Why\n",
        *(f"- {result['claim']}, {result['verdict']}: {result['reason']}." for result in results),
        "\n## Deviations\n",
        *(f"- {paper.key} {item.id}: {item.text}" for paper in papers for item in paper.deviations),
        "\n## Machines\n",
        *([f"- {one}: {_computed(own)}" for one, own in by_machine(used).items()] or ["- none: no run was used"]),
    ]
    return "\n".join(lines) + "\n"


def by_machine(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by the machine that computed them; an experiment's seeds need not share one."""
    return _grouped(runs, machine)


def _computed(runs: Iterable[Run]) -> str:
    by_experiment = _grouped(runs, lambda run: run["experiment"])
    return "; ".join(f"{name} seed {seeds_text(own)}" for name, own in by_experiment.items())


def _grouped(runs: Iterable[Run], name: Callable[[Run], str]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(name(run), []).append(run)
    return dict(sorted(found.items()))


def machine(run: Run) -> str:
    """Card, processor, instruction set and version of PyTorch."""
    where = run["provenance"]
    libraries = where.get("libraries") or {}
    torch = f"torch {libraries['torch']}" if "torch" in libraries else None
    parts = [where.get("gpu"), where.get("cpu"), where.get("isa"), torch]
    return ", ".join(str(part) for part in parts if part) or "not recorded"


def _belongs(run: Run, key: str) -> bool:
    return bool(run["experiment"].startswith(f"{key}."))


def _stale(folder: Path, papers: Sequence[Paper], files: Collection[str]) -> list[str]:
    """Stored tables of these papers that are not among `files`."""
    names = (f"tables/{path.name}" for key in papers for path in (folder / "tables").glob(f"{key.key}_*.*"))
    return sorted(name for name in names if name not in files)


def _zip_lines(stored: str, text: str) -> Iterable[tuple[str, str]]:
    here, there = stored.splitlines(), text.splitlines()
    longest = max(len(here), len(there))
    return zip(here + [""] * (longest - len(here)), there + [""] * (longest - len(there)), strict=True)
