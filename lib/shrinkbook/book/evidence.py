"""The book's generated pages: the scoreboard, and for each paper its verdicts, its tables cell by cell and its runs.

Verdicts are read from ``results/<profile>/verdicts.json``; nothing is judged here. Every run file that decided a
verdict or gave a number is copied into the book and linked where it is used.
"""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from shrinkbook.book.cells import title
from shrinkbook.evidence import claims, report, store, tables, verdicts
from shrinkbook.evidence.paper import Cell, Claim, Paper, Table
from shrinkbook.evidence.samples import seeds_text
from shrinkbook.experiments import catalogue, profiles
from shrinkbook.experiments.run import seeds_of, stored_runs, unit

Run = dict[str, Any]
Verdict = dict[str, Any]
AGAINST = ("differs", "contradicted")


@dataclass(frozen=True)
class Evidence:
    """What results/ holds, and the run files behind it.

    Args:
        folder: of the book's source; run files are copied to its folder ``runs``.
    """

    folder: Path

    @cached_property
    def boards(self) -> dict[str, dict[str, Any]]:
        """verdicts.json of every profile that has one, in the order of the profiles."""
        paths = {name: store.results_dir(name) / "verdicts.json" for name in profiles.PROFILES}
        return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}

    @cached_property
    def files(self) -> dict[str, Path]:
        """Run file by run id: this machine's where results/ were made from them, else the record's before its."""
        folders = [store.runs_dir(), store.record_dir()]
        if any(board["source"] == "build" for board in self.boards.values()):
            folders.reverse()
        return {path.stem: path for folder in folders for path in sorted(folder.glob("*/*.json"))}

    def runs(self, name: str) -> list[Run]:
        """The stored runs that today's code plans for this paper (or group of experiments) in any profile."""
        known = [one for one in catalogue.EXPERIMENTS.values() if group(one.name) == name]
        found = []
        for profile, board in self.boards.items():
            folder = store.record_dir() if board["source"] == "record" else store.runs_dir()
            wanted = [(one, seed) for one in known if profile in one.configs for seed in seeds_of(one, profile)]
            units = [unit(catalogue.EXPERIMENTS, one.name, profile, seed) for one, seed in wanted]
            found += stored_runs(units, folder)
        return found

    def link(self, run_id: str) -> str:
        """A link that downloads the run file; the bare id where no file of that name is kept."""
        path = self.files.get(run_id)
        if path is None:
            return f"`{run_id[:8]}` (not kept)"
        target = self.folder / "runs" / path.parent.name / path.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return f"[`{run_id[:8]}`](/runs/{path.parent.name}/{path.name})"

    def of(self, key: str) -> dict[str, list[Verdict]]:
        """The verdicts on one paper, by profile."""
        return {
            profile: [verdict for verdict in board["verdicts"] if verdict["paper"] == key]
            for profile, board in self.boards.items()
            if key in board["papers"]
        }


def group(experiment: str) -> str:
    """The paper's key, or what stands in its place, in front of an experiment's name."""
    return experiment.partition(".")[0]


def papers() -> list[str]:
    """The papers of the catalogue, in its order; what else has experiments there has no claims."""
    return [key for key in catalogue.papers() if key in claims.papers()]


def groups() -> list[str]:
    """Everything that has experiments: the papers first, in the order of the catalogue."""
    return list(dict.fromkeys([*catalogue.papers(), *map(group, catalogue.EXPERIMENTS)]))


def plain(text: str) -> str:
    """A sentence of the data as MyST that says exactly that."""
    return re.sub(r"([\\`*_{}\[\]<>$|#~^@])", r"\\\1", text)


def scoreboard(evidence: Evidence) -> str:
    """The page of all words: how often each, by paper and profile, and what is not as the paper says, with reasons."""
    parts = ["# Scoreboard\n", "```{include} /words.md\n```\n", _counts(evidence), "## Not as the paper says\n"]
    for profile in evidence.boards:
        against = [v for key in papers() for v in evidence.of(key).get(profile, ()) if v["verdict"] in AGAINST]
        if against:
            parts.append(f"### Profile {profile}\n")
            for verdict in against:
                claim = f"{{ref}}`{verdict['claim']} <{verdict['claim']}>`"
                parts.append(f"{plain(verdict['text'])}\n: {claim}, {_verdict(evidence, [verdict])}\n")
    parts.append("## Every verdict\n")
    for key in papers():
        parts.append(f"* {{ref}}`{key} <verdicts:{key}>`, {claims.load(key).title}")
    return "\n".join(parts) + "\n"


def overview(evidence: Evidence) -> str:
    """For the opening page: papers, and how often each word occurs."""
    return _counts(evidence)


def page(evidence: Evidence, name: str, shown: Sequence[str] = ()) -> str:
    """Evidence of one paper, or the runs of a group of experiments that is none.

    Args:
        shown: the paper's figures that its chapter shows.
    """
    runs = evidence.runs(name)
    if name not in claims.papers():
        return f"(evidence:{name})=\n# Runs of {name.replace('_', ' ')}\n\n{_runs(evidence, name, runs)}"
    paper = claims.load(name)
    parts = [
        f"(evidence:{name})=\n# Evidence: {name}\n",
        f"{plain(paper.authors)}. *{plain(paper.title)}* {{cite:p}}`{name}`. {_chapter(name)}\n",
        f"{plain(paper.counting)}\n",
        f"(verdicts:{name})=\n## Verdicts\n",
        *(_claim(evidence, paper, claim) for claim in paper.claims),
        "## Printed tables, cell by cell\n",
        "The paper's numbers are typed once, in a CSV file; ours are means over the run files in the last column.\n",
        *(_table(evidence, paper, table, runs) for table in paper.tables.values()),
        "## Figures\n",
        *(_figure(paper, name, name in shown) for name in paper.figures),
        "\n## Deviations\n",
        *(f"{plain(item.id)}\n: {plain(item.text)}\n" for item in paper.deviations),
        _runs(evidence, name, runs),
    ]
    return "\n".join(parts)


def _counts(evidence: Evidence) -> str:
    rows = []
    for key in papers():
        for profile, results in evidence.of(key).items():
            counts = verdicts.words(results).values()
            rows.append([f"{{ref}}`{key} <verdicts:{key}>`", profile, *(count or "" for count in counts)])
    return report.markdown(pd.DataFrame(rows, columns=["paper", "profile", *verdicts.WORDS]))


def _chapter(key: str) -> str:
    return f"The chapter: {{doc}}`/{catalogue.NOTEBOOKS[key]}`."


def _claim(evidence: Evidence, paper: Paper, claim: Claim) -> str:
    """One claim with its verdict in every profile; profiles that say the same share a line."""
    printed = paper.printed(claim) if len(paper.cells(claim)) < 7 else f"{len(paper.cells(claim))} cells"
    where = ", ".join(dict.fromkeys(place.partition("/")[0] for place in claim.where))
    status = "" if (known := paper.source_status(claim)) == "verified" else f" ({known})"
    lines = [f"({claim.id})=\n**{claim.id}** {plain(claim.text)}", ""]
    lines.append(f"{{.about}}\n{claim.kind}; {plain(where)}; printed {plain(printed)}{status}\n")
    same: dict[str, list[Verdict]] = {}
    for results in evidence.of(paper.key).values():
        for verdict in results:
            if verdict["claim"] == claim.id:
                same.setdefault(json.dumps({**verdict, "profile": None}), []).append(verdict)
    return "\n".join([*lines, *(f"* {_verdict(evidence, group)}" for group in same.values())]) + "\n"


def _verdict(evidence: Evidence, same: Sequence[Verdict]) -> str:
    """Profile, word, scope, reason, our number and the run files that decided."""
    one = same[0]
    word = one["verdict"] + (f" ({one['direction']})" if one["direction"] else "")
    scope = f" ({plain(one['scope'])})" if one["scope"] else ""
    profile = " and ".join(verdict["profile"] for verdict in same)
    interval = ", interval [{:.3g}, {:.3g}]".format(*one["interval"]) if one["interval"] else ""
    ours = (
        "" if one["ours"] is None else f" Ours {one['ours']:.6g}{' ' + one['unit'] if one['unit'] else ''}{interval}."
    )
    files = ", ".join(evidence.link(run_id) for run_id in one["runs"])
    chip = f"[{word}]{{.word .{one['verdict'].replace(' ', '-')}}}"
    return f"{profile}: {chip}{scope}, {plain(one['reason'])}.{plain(ours)}" + (
        f" Run files: {files}." if files else ""
    )


def _table(evidence: Evidence, paper: Paper, table: Table, runs: Sequence[Run]) -> str:
    by_profile = {profile: [run for run in runs if run["profile"] == profile] for profile in evidence.boards}
    ours = {profile: tables.side_by_side(table, [], found)["ours"] for profile, found in by_profile.items()}
    sources = {profile: tables.sources(table, found) for profile, found in by_profile.items()}
    rows = []
    for index, cell in enumerate(table.cells):
        ids = [run["run_id"] for found in sources.values() for run in found.get(cell.address, ())]
        rows.append([cell.row, cell.column, _printed(cell), *(ours[p][index] for p in ours), list(dict.fromkeys(ids))])
    frame = [[*map(plain, map(str, row[:-1])), ", ".join(map(evidence.link, row[-1]))] for row in rows]
    columns = ["row", "column", "paper", *evidence.boards, "run files"]
    head = f"(cells:{paper.key}.{table.id})=\n### {title(table.id)}\n\n{plain(table.caption)}\n\n"
    return f"{head}{{.about}}\n`data/papers/{paper.key}`\n\n{report.markdown(pd.DataFrame(frame, columns=columns))}"


def _figure(paper: Paper, name: str, shown: bool) -> str:
    where = f"{{numref}}`Fig. %s <{paper.key}.{name}>`" if shown else "not drawn at profile quick"
    return f"* {title(name)}, {where}: {plain(paper.figures[name].caption)}"


def _printed(cell: Cell) -> str:
    unit = f" {cell.unit}" if cell.unit else ""
    return (
        tables.NOTHING
        if not cell.value
        else f"{cell.value}{unit}" + ("" if cell.status == "verified" else f" ({cell.status})")
    )


def _runs(evidence: Evidence, name: str, runs: Sequence[Run]) -> str:
    """Every experiment with its run files, those without any too."""
    parts = [f"(runs:{name})=\n## Runs\n"]
    for experiment in (one for one in catalogue.EXPERIMENTS.values() if group(one.name) == name):
        own = [run for run in runs if run["experiment"] == experiment.name]
        parts.append(f"(runs:{experiment.name})=\n### {experiment.name}\n")
        parts.append(
            _listing(evidence, own) if own else f"Budgets for {', '.join(experiment.configs)}; no run is stored.\n"
        )
    return "\n".join(parts)


def _listing(evidence: Evidence, runs: Iterable[Run]) -> str:
    rows: dict[str, list[Any]] = {}
    for run in runs:
        row = [evidence.link(run["run_id"]), run["profile"], run["config"]["schedule"], run["seed"], run["status"]]
        seconds, commit = f"{run['seconds']['total']:.3g}", str(run["provenance"].get("commit") or "")[:8]
        if run["run_id"] in rows:
            rows[run["run_id"]][1] += f", {run['profile']}"
        else:
            rows[run["run_id"]] = [*row, seconds, f"`{commit}`"]
    columns = ["run file", "profile", "budget", "seed", "status", "seconds", "commit"]
    where = "; ".join(f"seed {seeds_text(own)}: {plain(one)}" for one, own in report.by_machine(runs).items())
    return f"{{.about}}\n{where}\n\n" + report.markdown(pd.DataFrame(list(rows.values()), columns=columns))
