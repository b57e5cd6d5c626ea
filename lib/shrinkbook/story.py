"""What a paper's notebook needs: its claims, its runs at the chosen budget, and tables and figures made of them."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from IPython.display import HTML, Code, Markdown, display

from shrinkbook.evidence import claims, figures, report, store, verdicts
from shrinkbook.experiments import catalogue, profiles, run, work
from shrinkbook.experiments.experiment import Unit

NOT_ATTEMPTED = "Not attempted in this profile"


class Story:
    """One paper told at one budget.

    Args:
        paper: key of the paper, such as ``li2017``.
        profile: ``quick``, ``standard`` or ``paper``.
        seeds: seeds to run; None for the profile's own.
        device: ``auto``, ``cpu`` or ``cuda``; None for the profile's own.

    Raises:
        ValueError: unknown paper, profile or device, or a seed that is no whole number.
    """

    def __init__(self, paper: str, profile: str, seeds: Sequence[int] | None = None, device: str | None = None) -> None:
        catalogue.papers([paper])
        self.device = run.resolve_device(profile, device)
        if seeds is not None and (not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds)):
            raise ValueError(f"seeds {seeds!r} is not a list of whole numbers such as [0, 1, 2]")
        self.paper, self.profile, self.seeds = claims.load(paper), profile, seeds
        pd.set_option("display.max_colwidth", None, "display.max_rows", 120)

    def runs(self, *experiments: str, **settings: Any) -> list[dict[str, Any]]:
        """Runs of the first of these experiments that the profile has on this device: stored ones, else computed now.

        Args:
            experiments: in order of preference.
            settings: changes to the experiment's own settings; such runs are yours, no verdict uses them.

        Returns:
            One run a seed; empty if the profile has none of the experiments.
        """
        planned = {unit.experiment.name: unit for unit in self._units()}
        name = next((name for name in experiments if name in planned), None)
        if name is None:
            return []
        seeds = run.seeds_of(planned[name].experiment, self.profile, self.seeds)
        wanted = [run.unit(catalogue.EXPERIMENTS, name, self.profile, seed, settings) for seed in seeds]
        return [self._ensure(unit) for unit in run.offered(wanted)]

    def everything(self, say: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
        """All runs of the paper at this budget, stored or computed now.

        Args:
            say: told of every run that has to be computed, before and while it is.
        """
        runs = []
        for unit in self._units():
            if say and work.pending([unit]):
                say(f"{work.label(unit)}, about {work.duration(work.expected_seconds([unit]))}")
            runs.append(self._ensure(unit))
        return runs

    def record(self) -> list[dict[str, Any]]:
        """The committed runs of the same experiments."""
        return run.stored_runs(catalogue.units([self.paper.key], self.profile, self.seeds), store.record_dir())

    def budget(self) -> pd.DataFrame:
        """What ran: experiment, network, data, budget and number of runs."""
        rows: dict[str, list[Any]] = {}
        for unit in self._units():
            config = unit.config
            row = [config.get("net", ""), config["data"] or "", config["schedule"], config["dtype"], 0]
            rows.setdefault(unit.experiment.name, row)[-1] += 1
        columns = ["network", "data", "budget", "precision", "runs"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns)

    def claims(self) -> pd.DataFrame:
        """The paper's claims as they are judged: id, sentence, printed value, kind."""
        paper = self.paper
        rows = [[claim.id, claim.text, _short(paper.printed(claim)), claim.kind] for claim in paper.claims]
        return pd.DataFrame(rows, columns=["claim", "text", "printed", "kind"]).set_index("claim")

    def structural(self, table: str) -> pd.DataFrame:
        """Cells of a printed table that need no training: printed, ours with two more digits, whether they agree."""
        judged = [claim for claim in self.paper.claims if claim.kind == "structural"]
        runs = [
            found
            for name in sorted({name for claim in judged for name in claim.experiments})
            for found in self.runs(name)
        ]
        rows = [
            [cell["cell"].split("/")[1:], cell["printed"], cell["ours"], cell["word"]]
            for claim in judged
            for cell in verdicts.judge(claim, self.paper, runs, self.profile)["cells"]
            if cell["cell"].startswith(f"{table}/")
        ]
        ours = ["—" if value is None else report.format_like(value, printed, extra=2) for _, printed, value, _ in rows]
        index = pd.MultiIndex.from_tuples([tuple(place) for place, *_ in rows], names=["row", "column"])
        columns = {"paper": [row[1] for row in rows], "ours": ours, "word": [row[3] for row in rows]}
        frame = pd.DataFrame(columns, index=index)
        order = [(cell.row, cell.column) for cell in self.paper.tables[table].cells]
        return frame.reindex([place for place in order if place in frame.index])

    def table(self, table: str, *columns: str) -> pd.DataFrame:
        """A printed table in its own shape, each cell ``paper | record | ours``."""
        return report.wide(self.paper.tables[table], self.record(), self.everything(), columns or None)

    def verdicts(self, *kinds: str) -> pd.DataFrame:
        """The verdicts on the paper's claims (of these kinds), judged from this machine's runs."""
        return report.scoreboard([v for v in self._judged() if not kinds or v["kind"] in kinds]).set_index("claim")

    def stable(self) -> pd.Series:
        """The words of the order and trend claims whose gap is too wide for a processor to change them."""
        words = {v["claim"]: v["verdict"] for v in self._judged() if v["stable"] and v["kind"] in verdicts.MECHANISM}
        return pd.Series(words, name="verdict", dtype=object).rename_axis("claim")

    def reasons(self) -> pd.DataFrame:
        """Why each claim got its word."""
        rows = [[v["claim"], v["verdict"], v["reason"]] for v in self._judged()]
        return pd.DataFrame(rows, columns=["claim", "verdict", "why"])

    def deviations(self) -> Markdown:
        """Where this replication knowingly differs from the paper."""
        return Markdown("\n".join(f"- **{item.id}**: {item.text}" for item in self.paper.deviations))

    def show(
        self, name: str, runs: Sequence[dict[str, Any]], draw: Callable[[], figures.Picture], note: str = ""
    ) -> None:
        """Draw a figure from ``runs``, keep it in results/, show it with what to look for.

        Args:
            name: the paper's figure, such as ``figure2a``, or a name for one that the paper does not have.
            runs: what it is drawn from; without any, the figure is named as not attempted.
            draw: makes the picture.
            note: what is different in ours, or to be seen in it.
        """
        figure = self.paper.figures.get(name)
        caption = f"The paper: {figure.caption}" if figure else "Not in the paper."
        if not runs:
            display(Markdown(f"**{name}.** {caption}\n\n*{NOT_ATTEMPTED}.* {note}"))
            return
        config = runs[0]["config"]
        picture = draw()
        band = ", band from lowest to highest" if figures.has_bands(picture) else ""
        seeds = f"{len(runs)} seeds{band}" if len(runs) > 1 else "one network"
        data = f"data {config['data']}" if config["data"] else ""
        what = ", ".join(filter(None, [config.get("net"), data, f"budget {config['schedule']}"]))
        ours = f"Ours: {what}, {seeds}. {note}".strip()
        figures.save(picture, self.profile, self.paper.key, name, f"{name}. {caption}\n{ours}")
        display(picture, Markdown(f"**{name}.** {caption}\n\n*{ours}*"))

    def _judged(self) -> list[dict[str, Any]]:
        return verdicts.judge_paper(self.paper, self.everything(), self.profile)

    def _ensure(self, unit: Unit) -> dict[str, Any]:
        """The run; where this process lacks the profile's pins, as JupyterLab's do, a process that has them computes
        it, because the store knows a run by what was asked for. A run with settings of the reader's own may stay here.
        """
        name, pinned = unit.experiment.name, profiles.pinned(self.profile)
        if not pinned and unit == run.unit(catalogue.EXPERIMENTS, name, self.profile, unit.seed):
            device = run.resolve_device(self.profile, self.device)
            for why in work.compute([unit], 1, device, lambda text: None).values():
                raise ValueError(f"{work.label(unit)}: {why}")
        return run.ensure(unit, self.device)

    def _units(self) -> list[Unit]:
        return catalogue.units([self.paper.key], self.profile, self.seeds, self.device)


def source(*things: Callable[..., Any]) -> Code:
    """The library's own source, so that what is explained is what runs."""
    return Code("\n\n".join(inspect.getsource(thing) for thing in things), language="python")


def shown(picture: figures.Picture, profile: str, group: str, name: str, caption: str) -> None:
    """Keep a figure that belongs to no paper in results/, and show it with its caption, which begins with ``**``."""
    figures.save(picture, profile, group, name, caption)
    display(picture, Markdown(caption))


def left_aligned_tables() -> HTML:
    """Tables of words read better from the left."""
    return HTML("<style>table.dataframe td, table.dataframe th {text-align: left !important}</style>")


def _short(text: str) -> str:
    return text if len(text) < 60 else text[:57] + "..."
