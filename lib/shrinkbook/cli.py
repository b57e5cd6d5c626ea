"""The command line: reproduce, plan, run, status, verify, data, notebooks, phone."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from shrinkbook import phone_cli
from shrinkbook.evidence import claims, store
from shrinkbook.experiments import profiles

STARTED = time.monotonic()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; every mistake of the user is one line on stderr and exit status 2."""
    try:
        options = _parser().parse_args(arguments)
        return int(options.function(options))
    except ValueError as error:
        print(f"shrinkbook: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nshrinkbook: stopped; finished runs are kept, the same command continues", file=sys.stderr)
        return 130


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


def reproduce(options: argparse.Namespace) -> int:
    """Compute the profile's runs, execute the notebooks, write results, compare with the record."""
    from shrinkbook import notebooks, results
    from shrinkbook.evidence import report, verdicts
    from shrinkbook.experiments import catalogue, run, work

    chosen = catalogue.papers(options.papers)
    profile = profiles.profile(options.profile)
    device = run.resolve_device(profile.name, options.device)
    units = catalogue.units(options.papers, profile.name, options.seeds, device)
    jobs = _processes(options)
    say(f"profile {profile.name}: {profile.note}")
    if profile.name == "paper" and os.environ.get("CONFIRM") != "1":
        expected = work.duration(work.expected_seconds(work.pending(units), jobs))
        say(f"this computes {len(work.pending(units))} runs, expected {expected}, and downloads what is missing")
        raise ValueError("profile paper starts only with CONFIRM=1")
    for folder in (store.runs_dir(), store.results_dir(profile.name)):  # better now than after an hour
        store.write_text(folder / ".writable", "").unlink()
    failed = work.compute(units, jobs, device, say)
    where = "host"
    if options.phone:
        try:
            _, lost, where = phone_cli.measured(options.phone, profile.name, None, say)
            failed |= dict(line.split(": ", 1) for line in lost)
        except phone_cli.PhoneError as error:
            failed["phone"] = str(error)
    if options.adopt:
        adopted = store.adopt(results.runs_of(options.papers, profile.name, options.seeds, "build"), store.record_dir())
        say(f"adopted {len(adopted)} runs into {store.record_dir()}")
    say("executing the notebooks")
    parameters: dict[str, Any] = {"seeds": options.seeds, "device": device}
    extra = list(catalogue.OTHERS) if not options.papers else ["phone"] if options.phone else []

    def execute(key: str) -> str | None:
        source = notebooks.paths(catalogue.NOTEBOOKS)[key]
        started = time.monotonic()
        given = {"start": {}, "phone": {"where": where}, "head_to_head": {**parameters, "where": where}}.get(
            key, parameters
        )
        problem = notebooks.execute(
            source, store.results_dir(profile.name) / "notebooks" / source.name, profile.name, given
        )
        say(
            f"    {problem or source.name}: {'FAILED' if problem else 'done'} in "
            f"{work.duration(time.monotonic() - started)}"
        )
        return problem

    with ThreadPoolExecutor(jobs) as pool:
        problems = [problem for problem in pool.map(execute, [*chosen, *extra, "start"]) if problem]
    board = results.write(chosen, profile.name, options.seeds, "record" if options.adopt else "build", say)
    own = [verdict for verdict in board if verdict["paper"] in chosen]
    summary = ", ".join(f"{count} {word}" for word, count in verdicts.words(own).items() if count)
    say(f"verdicts of profile {profile.name}: {summary}")
    say(report.agreement(board, results.judge(chosen, profile.name, None, "record")))
    say(f"results in {store.results_dir(profile.name)}; {work.duration(time.monotonic() - STARTED)} in all")
    for line in [f"{unit}: {error}" for unit, error in failed.items()] + problems:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if failed or problems else 0


def plan(options: argparse.Namespace) -> int:
    """What reproduce would run: stored or expected seconds."""
    from shrinkbook.experiments import catalogue, run, work

    device = run.resolve_device(options.profile, options.device)
    units = catalogue.units(options.papers, options.profile, options.seeds, device)
    for unit in units:
        stored = unit.find(store.runs_dir())
        what = "stored" if stored else f"about {work.duration(work.expected_seconds([unit]))}"
        say(f"{unit.run_id}  {work.label(unit):44}  {what}")
    todo = work.pending(units)
    expected = work.duration(work.expected_seconds(todo, _processes(options)))
    say(f"{len(units)} runs, {len(todo)} to compute, about {expected}")
    for name, why in catalogue.left_out(options.papers, options.profile, device).items():
        experiment = catalogue.EXPERIMENTS[name]
        seeds = run.seeds_of(experiment, options.profile, options.seeds)
        whole = work.duration(len(seeds) * experiment.seconds.get(options.profile, 0.0))
        say(f"left out here: {name} {why}; {len(seeds)} runs, about {whole} where it can run")
    return 0


def run_one(options: argparse.Namespace) -> int:
    """Compute one unit, print where its file is."""
    from shrinkbook.experiments import catalogue, phone, run

    asked = (catalogue.EXPERIMENTS, options.experiment, options.profile, options.seed)
    unit = run.unit(*asked)
    if options.phone:
        unit = run.unit(*asked, parents=phone.parents_on(catalogue.EXPERIMENTS, unit, options.phone))
    wanted = profiles.environment(options.profile)
    os.environ[profiles.PROCESSES] = str(options.jobs)
    if not profiles.pinned(options.profile):  # the pins must stand before Python starts
        os.execve(sys.executable, [sys.executable, "-m", "shrinkbook.cli", *sys.argv[1:]], {**os.environ, **wanted})
    done = run.ensure(unit, options.device, say)
    say(f"{done['status']}: {store.runs_dir() / done['experiment'] / done['run_id']}.json")
    return 0


def status(options: argparse.Namespace) -> int:
    """The scoreboard of a profile as it stands in results/."""
    from shrinkbook.evidence import verdicts

    known = claims.papers()
    for key in options.papers or ():
        if key not in known:
            raise ValueError(f"unknown paper {key!r}; there are {', '.join(known)}")
    there = store.results(profiles.profile(options.profile).name)
    if there is None:
        path = store.results_dir(options.profile) / "verdicts.json"
        raise ValueError(f"{path} is missing; run `make reproduce PROFILE={options.profile}`")
    listing = [verdict for verdict in there["verdicts"] if verdict["paper"] in (options.papers or known)]
    if options.claim:
        found = [verdict for verdict in listing if verdict["claim"] == options.claim]
        if not found:
            raise ValueError(f"unknown claim {options.claim!r}; there are {', '.join(v['claim'] for v in listing)}")
        listing = found
    if options.json:
        print(json.dumps(listing, indent=1, ensure_ascii=False))
        return 0
    for verdict in listing:
        scope = f" ({verdict['scope']})" if verdict["scope"] else ""
        say(f"{verdict['claim']:12} {verdict['verdict'] + scope:42} {verdict['text']}")
        if options.claim:
            say(f"{'':12} {verdict['reason']}")
    say(", ".join(f"{count} {word}" for word, count in verdicts.words(listing).items() if count))
    return 0


def verify(options: argparse.Namespace) -> int:
    """Recompute tables and verdicts of every profile in results/ from the stored runs; a difference is a failure."""
    from shrinkbook import results
    from shrinkbook.evidence import report

    profiles_there = {name: there for name in profiles.PROFILES if (there := store.results(name))}
    if not profiles_there:
        raise ValueError("results/ holds no profile to verify; run `make reproduce`")
    bad = 0
    for name, stored in profiles_there.items():
        keys, seeds = stored["papers"], stored["seeds"]
        papers = [claims.load(key) for key in keys]
        runs = results.runs_of(keys, name, seeds, stored["source"])
        differences = report.check_results(name, papers, runs, results.runs_of(keys, name, None, "record"))
        for line in differences:
            print(f"{name}: {line}", file=sys.stderr)
        bad += len(differences)
        say(
            f"{name}: {len(stored['verdicts'])} verdicts and all tables "
            + ("DIFFER" if differences else "recomputed, equal")
        )
    readme = store.root() / "README.md"
    if report.readme_block(readme.read_text(encoding="utf-8"), results.front()) != readme.read_text(encoding="utf-8"):
        print("README.md: its scoreboard is not what the record gives; run `make notebooks`", file=sys.stderr)
        bad += 1
    return 1 if bad else 0


def data(options: argparse.Namespace) -> int:
    """Download a data set or public weights into the cache, checked."""
    from shrinkbook.training import download, weights

    names = [*download.ARCHIVES, *weights.PUBLIC]
    if options.name not in names:
        raise ValueError(f"unknown data set {options.name!r}; there are {', '.join(names)} (digits need no download)")
    say(str((weights if options.name in weights.PUBLIC else download).fetch(options.name)))
    return 0


def refresh(options: argparse.Namespace) -> int:
    """Execute the notebooks at `quick` and keep their outputs; regenerate results/ and README from the record, and the
    figures of the other profiles from what the record has of them: nothing is computed there."""
    from shrinkbook import notebooks, results
    from shrinkbook.evidence import report
    from shrinkbook.experiments import catalogue

    problems = []
    for name in profiles.PROFILES:
        attempted, kept = results.attempted(results.judge(catalogue.papers(), name, None, "record")), name == "quick"
        if not (attempted or kept):
            continue
        given = {} if kept else notebooks.from_the_record(store.build_dir() / "record")
        for source in notebooks.paths(catalogue.NOTEBOOKS).values():
            target = store.build_dir() / "notebooks" / ("" if kept else name) / source.name
            problem = notebooks.execute(source, target, name, {}, given)
            if problem:
                problems.append(problem)
                print(problem, file=sys.stderr)
                continue
            if kept:
                store.write_text(source, target.read_text(encoding="utf-8"))
                notebooks.normalise(source)
            say(f"{source.name}: executed at {name}")
        if attempted:
            results.write(catalogue.papers(), name, None, "record", say)
    readme = store.root() / "README.md"
    store.write_text(readme, report.readme_block(readme.read_text(encoding="utf-8"), results.front()))
    return 1 if problems else 0


def _seeds(text: str) -> list[int] | None:
    words = text.replace(",", " ").split()
    if not all(word.isdigit() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of seeds; write 0 1 2 or 0,1,2")
    return [int(word) for word in dict.fromkeys(words)] or None


def _processes(options: argparse.Namespace) -> int:
    """Worker processes: as asked, else as many as the machine has cores for."""
    return options.jobs or max(1, (os.cpu_count() or 1) // profiles.profile(options.profile).threads)


def _jobs(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes; write 1, 2, ...")
    return int(text)


class _Parser(argparse.ArgumentParser):
    """A mistake is one line, not a block of usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` says what there is")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="shrinkbook", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, *, budget: bool = True, device: bool = False) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0], description=function.__doc__)
        added.set_defaults(function=function)
        if budget:
            added.add_argument("--profile", default="quick", help=", ".join(profiles.PROFILES))
            added.add_argument(
                "--papers", type=str.split, default=None, help='keys, as in "li2017 kim2016"; default all'
            )
            added.add_argument("--seeds", type=_seeds, default=None, help="0,1,2; default the profile's own")
            added.add_argument(
                "--jobs", type=_jobs, default=None, help="processes; default what threads leave room for"
            )
        if device:
            added.add_argument("--device", default=None, help="auto, cpu, cuda")
        return added

    everything = command("reproduce", reproduce, device=True)
    everything.add_argument("--adopt", action="store_true", help="copy runs into the record")
    everything.add_argument("--phone", default=None, help="measure this phone too: a serial number, or auto")
    command("plan", plan, device=True)
    one = command("run", run_one, budget=False, device=True)
    one.add_argument("experiment")
    one.add_argument("--profile", default="quick")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument(
        "--jobs", type=_jobs, default=1, help="processes for a search and its networks; results do not depend on it"
    )
    one.add_argument("--phone", default=None, help="build on runs of this phone, by the name that they carry")
    board = command("status", status)
    board.add_argument("--json", action="store_true", help="all fields of every verdict")
    board.add_argument("--claim", default=None, help="one claim, with its reason")
    command("verify", verify, budget=False)
    command("data", data, budget=False).add_argument("name", help="mnist, cifar10, ..., resnet56-public, ...")
    command("notebooks", refresh, budget=False)
    phone_cli.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
