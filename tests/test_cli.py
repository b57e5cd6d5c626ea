"""The command line: mistakes in one line, the scoreboard, the check of stored results."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shrinkbook import cli, notebooks, results
from shrinkbook.evidence import claims, report, store
from shrinkbook.experiments import catalogue, run

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shrinkbook(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Calls the command line; gives exit status, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="module")
def counted() -> dict[str, object]:
    """The run that the structural claims of li2017 rest on, computed once for this file."""
    return run.ensure(run.unit(catalogue.EXPERIMENTS, "li2017.cost", "quick", 0))


@pytest.fixture
def house(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one paper, of which only the counting runs, with an empty record: what the real one holds must
    not decide these tests."""
    folder = scratch / "house"
    (folder / "results" / "record").mkdir(parents=True)
    shutil.copytree(store.papers_dir(), folder / "data" / "papers")
    monkeypatch.setattr(store, "root", lambda: folder)
    name = "li2017.cost"
    monkeypatch.setattr(catalogue, "PAPERS", {"li2017": {name: catalogue.EXPERIMENTS[name]}})
    monkeypatch.setattr(catalogue, "OTHERS", {})
    (folder / "README.md").write_text(report.readme_block(f"# House\n{report.BEGIN}\n{report.END}\n", results.front()))
    return folder


@pytest.fixture
def reproduced(house: Path, counted: dict[str, object], monkeypatch: pytest.MonkeyPatch, shrinkbook: Cli) -> Path:
    """The results folder after `reproduce`, notebooks left out (they have tests of their own)."""
    monkeypatch.setattr(notebooks, "execute", lambda *arguments: None)
    store.write(counted, store.runs_dir())
    assert shrinkbook("reproduce")[0] == 0
    return store.results_dir("quick")


# mistakes

MISTAKES = {
    "plan --profile nonsense --jobs 2": "unknown profile 'nonsense'; there are quick, standard, paper",
    "reproduce --profile nonsense --jobs 2": "unknown profile 'nonsense'; there are quick, standard, paper",
    "status --profile nonsense": "unknown profile 'nonsense'; there are quick, standard, paper",
    "run li2017.cost --profile nonsense": "unknown profile 'nonsense'; there are quick, standard, paper",
    "plan --papers nobody2020": "unknown paper 'nobody2020'; there are ",
    "reproduce --papers nobody2020": "unknown paper 'nobody2020'; there are ",
    "status --papers nobody2020": "unknown paper 'nobody2020'; there are ",
    "run li2017.nothing": "unknown experiment 'li2017.nothing'; there are chen2019.cifar10,",
    "run li2017.vgg16": "li2017.vgg16 has no budget in profile quick; it runs in standard",
    "run li2017.cost --seed -1": "seed -1 is negative; use 0, 1, 2, ...",
    "run li2017.cost --seed x": "argument --seed: invalid int value: 'x'",
    "reproduce --seeds 0,one": "argument --seeds: '0,one' is not a list of seeds; write 0 1 2 or 0,1,2",
    "plan --seeds -1": "argument --seeds: '-1' is not a list of seeds; write 0 1 2 or 0,1,2",
    "plan --jobs many": "argument --jobs: 'many' is not a number of processes; write 1, 2, ...",
    "plan --jobs 0": "argument --jobs: '0' is not a number of processes; write 1, 2, ...",
    "plan --device cuda": "DEVICE=cuda, but PyTorch sees no GPU here; use DEVICE=cpu",
    "run li2017.digits_vgg --device cuda": "DEVICE=cuda, but PyTorch sees no GPU here; use DEVICE=cpu",
    "reproduce --device tpu": "unknown device 'tpu'; there are auto, cpu, cuda",
    "data mnits": "unknown data set 'mnits'; there are mnist, cifar10, cifar100, imagenet, resnet20-public",
    "reproduec": "argument COMMAND: invalid choice: 'reproduec' (choose from",
    "plan --network vgg": "unrecognized arguments: --network vgg",
    "": "the following arguments are required: COMMAND; `shrinkbook --help` says what there is",
    "status": "verdicts.json is missing; run `make reproduce PROFILE=quick`",
    "verify": "results/ holds no profile to verify; run `make reproduce`",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_that_names_what_exists(
    command: str, shrinkbook: Cli, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _, errors = shrinkbook(*command.split())
    assert status == 2
    assert errors.startswith("shrinkbook: ") and errors.count("\n") == 1, errors
    assert MISTAKES[command] in errors
    assert not store.runs_dir().exists()


def test_a_mistake_ends_the_process_with_status_2(scratch: Path) -> None:
    command = [sys.executable, "-m", "shrinkbook.cli", "plan", "--jobs", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "'x' is not a number of processes" in done.stderr


def test_profile_paper_says_what_it_costs_and_waits_for_confirmation(
    shrinkbook: Cli, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONFIRM", raising=False)
    status, said, errors = shrinkbook("reproduce", "--profile", "paper")
    assert (status, errors) == (2, "shrinkbook: profile paper starts only with CONFIRM=1\n")
    assert "runs, expected" in said
    assert not store.runs_dir().exists()


def test_an_unwritable_folder_stops_reproduce_before_it_computes(
    shrinkbook: Cli, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scratch / "file").write_text("kept")
    for variable in ("SHRINKBOOK_BUILD", "SHRINKBOOK_RESULTS"):
        with monkeypatch.context() as changed:
            changed.setenv(variable, str(scratch / "file" / "below"))
            status, said, errors = shrinkbook("reproduce")
        assert status == 2
        assert errors.count("\n") == 1 and f"{scratch}/file/below" in errors and "cannot be written" in errors
        assert "to compute" not in said
    assert (scratch / "file").read_text() == "kept"


# plan and run


def test_plan_tells_stored_from_expected(shrinkbook: Cli, scratch: Path, counted: dict[str, object]) -> None:
    store.write(counted, store.runs_dir())
    status, said, _ = shrinkbook("plan", "--papers", "li2017", "--seeds", "0 1", "--jobs", "2")
    lines = said.splitlines()
    planned = catalogue.units(["li2017"], "quick", [0, 1])
    assert status == 0
    assert len(lines) == len(planned) + 1
    assert lines[0].split() == [counted["run_id"], "li2017.cost", "seed", "0", "stored"]
    assert all("about" in line for line in lines[1:])
    assert lines[-1].startswith(f"{len(planned)} runs, {len(planned) - 1} to compute, about ")


def test_run_computes_one_unit(shrinkbook: Cli, scratch: Path) -> None:
    status, said, _ = shrinkbook("run", "li2017.wall_clock", "--seed", "3")
    (path,) = store.runs_dir().glob("*/*.json")
    assert status == 0
    assert said.splitlines()[-1] == f"finished: {path}"
    assert store.read(path)["seed"] == 3


def test_run_on_a_phone_that_was_not_measured_says_how(shrinkbook: Cli, scratch: Path) -> None:
    status, _, error = shrinkbook("run", "liu2019.resnet20_lookup", "--profile", "standard", "--phone", "mine")
    assert status == 2
    assert error.splitlines() == [
        "shrinkbook: phone.lookup of 'mine' is not here: make reproduce PHONE=... PROFILE=standard measures it"
    ]


# the scoreboard

KEYS = {
    *("claim", "paper", "kind", "profile", "verdict", "direction", "printed", "source_status", "ours", "n", "sd"),
    *("interval", "margin", "reason"),
}


def test_status_lists_every_claim(reproduced: Path, shrinkbook: Cli) -> None:
    status, said, _ = shrinkbook("status", "--json")
    listing = json.loads(said)
    assert status == 0
    assert listing == json.loads((reproduced / "verdicts.json").read_text())["verdicts"]
    assert all(verdict.keys() >= KEYS for verdict in listing)
    assert all(verdict["reason"] for verdict in listing)
    status, said, _ = shrinkbook("status")
    lines = said.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [verdict["claim"] for verdict in listing]
    assert lines[-1] == f"5 reproduced, 1 close, {len(listing) - 6} not attempted"


def test_status_of_one_claim_gives_its_reason(reproduced: Path, shrinkbook: Cli) -> None:
    status, said, _ = shrinkbook("status", "--claim", "li2017.4e")
    assert status == 0
    assert "close" in said and "table1/ResNet-34-pruned-C/flop_pruned is 7.4" in said
    status, _, errors = shrinkbook("status", "--claim", "li2017.99")
    assert status == 2
    assert errors.startswith("shrinkbook: unknown claim 'li2017.99'; there are li2017.1a, ") and errors.count("\n") == 1


def test_damaged_results_are_named(reproduced: Path, shrinkbook: Cli) -> None:
    path = reproduced / "verdicts.json"
    path.write_text(path.read_text()[:200])
    for command in ("status", "verify", "reproduce"):
        status, _, errors = shrinkbook(command)
        assert status == 2
        assert errors.count("\n") == 1 and f"{path} is damaged" in errors


def test_a_failing_notebook_fails_reproduce_and_the_results_are_written(
    reproduced: Path, shrinkbook: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(reproduced)

    def execute(source: Path, *rest: object) -> str | None:
        return f"{source.name}: it broke" if source.name.startswith("01") else None

    monkeypatch.setattr(notebooks, "execute", execute)
    status, said, errors = shrinkbook("reproduce")
    assert status == 1
    assert errors == "FAILED 01_filter_pruning.ipynb: it broke\n"
    assert "00_start_here.ipynb: done" in said
    assert "verdicts of profile quick: 5 reproduced, 1 close" in said
    assert (reproduced / "verdicts.json").exists()


def test_deleting_a_run_file_changes_the_scoreboard(reproduced: Path, shrinkbook: Cli) -> None:
    before = shrinkbook("status")[1]
    (path,) = store.runs_dir().glob("li2017.cost/*.json")
    path.unlink()
    status, _, errors = shrinkbook("verify")
    assert status == 1
    assert "quick: verdicts.json, line" in errors
    results.write(["li2017"], "quick", None, "build", cli.say)
    after = shrinkbook("status")[1]
    assert "5 reproduced" in before and "reproduced" not in after
    assert shrinkbook("verify")[0] == 0


def test_adopt_fills_the_record_and_reproduce_agrees_with_it(reproduced: Path, house: Path, shrinkbook: Cli) -> None:
    status, said, _ = shrinkbook("reproduce", "--adopt")
    assert status == 0
    assert f"adopted 1 runs into {house}/results/record" in said
    assert len(list((house / "results" / "record").rglob("*.json"))) == 1
    status, said, _ = shrinkbook("reproduce")
    cells = sum(len(claim.where) for claim in claims.load("li2017").claims if claim.kind == "structural")
    assert f"agrees with the record: {cells}/{cells} structural" in said


# verify


def change_a_digit(path: Path, words: str) -> None:
    text = path.read_text()
    assert words in text
    path.write_text(text.replace(words, words[:-1] + str((int(words[-1]) + 1) % 10), 1))


def test_verify_recomputes_everything(reproduced: Path, shrinkbook: Cli) -> None:
    status, said, errors = shrinkbook("verify")
    assert (status, errors) == (0, "")
    assert said.endswith("verdicts and all tables recomputed, equal\n")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("verdicts.json", '"ours": 313463808'),
        ("tables/li2017_table1.csv", "VGG-16-pruned-A,flop,2.06e8,—,2.06"),
        ("tables/li2017_table2.md", "3.1"),
        ("README.md", "flop_pruned is 7.4"),
    ],
)
def test_verify_finds_a_changed_digit(reproduced: Path, shrinkbook: Cli, name: str, words: str) -> None:
    change_a_digit(reproduced / name, words)
    status, said, errors = shrinkbook("verify")
    assert status == 1
    assert errors.startswith(f"quick: {name}, line ") and errors.count("\n") == 1
    assert "DIFFER" in said


def test_verify_finds_a_changed_run_file(reproduced: Path, shrinkbook: Cli) -> None:
    (path,) = store.runs_dir().glob("li2017.cost/*.json")
    change_a_digit(path, '"flop": 313463808')
    assert shrinkbook("verify")[0] == 1


def test_verify_finds_a_readme_whose_scoreboard_is_not_the_record(
    reproduced: Path, house: Path, shrinkbook: Cli
) -> None:
    readme = house / "README.md"
    readme.write_text(readme.read_text().replace(report.END, f"All reproduced.\n{report.END}"))
    status, _, errors = shrinkbook("verify")
    assert (status, errors.count("\n")) == (1, 1)
    assert errors.startswith("README.md: its scoreboard is not what the record gives")


def test_papers_not_asked_for_are_not_judged_by_runs_that_are_not_there(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed() -> list[str]:
        listing = json.loads((store.results_dir("quick") / "verdicts.json").read_text())
        assert {one["paper"] for one in listing["verdicts"]} == set(listing["papers"])
        return list(listing["papers"])

    results.write(["son2018", "peng2019"], "quick", None, "record", cli.say)
    results.write(["peng2019"], "quick", None, "build", cli.say)
    assert "no longer in" in (said := capsys.readouterr().out) and "son2018, whose runs are from the record" in said
    assert listed() == ["peng2019"]
    results.write(["son2018"], "quick", None, "build", cli.say)
    assert listed() == ["son2018", "peng2019"]
