"""Tables, scoreboard, the results folder and its check, the line of agreement, and the figures."""

import json

import numpy as np
import pytest

from shrinkbook.evidence import figures, report, store
from shrinkbook.evidence.paper import Cell, Claim, Deviation, Paper, Table
from shrinkbook.evidence.verdicts import judge_paper
from shrinkbook.story import Story

CELLS = (
    Cell("table1", "base", "flop", "3.13e8", "MAC", "verified", ""),
    Cell("table1", "base", "error", "6.75", "%", "recalled", ""),
    Cell("table1", "small", "flop", "2.06e8", "MAC", "verified", ""),
    Cell("table1", "small", "error", "", "%", "missing", ""),
)
TABLE = Table("table1", "Table 1: results.", CELLS)
STRUCTURAL = Claim(
    *("toy2020", "toy2020.1", 1, "structural", "It is | cheap.", ("table1/base/flop", "table1/small/flop")),
    experiments=("toy2020.run",),
    stable=True,
)
ORDER = Claim(
    *("toy2020", "toy2020.2", 2, "order", "Small wins.", ("table1",), ("toy2020.run",)),
    stable=True,
    margin=0.5,
    gap="gap",
    printed="small > large",
    source_status="verified",
)
PAPER = Paper(
    *("toy2020", "Toy", "A", "V", 2020, "1", "text", {"table1": TABLE}, {}),
    (Deviation("size", "Smaller nets."),),
    (STRUCTURAL, ORDER),
)


def make_run(seed=0, gap=2.0, flop=313463808, error=7.0, **extra):
    cells = {"table1": {"base": {"flop": flop, "error": error + seed}, "small": {"flop": 206279680, "error": 8.125}}}
    return {
        "schema": 1,
        "experiment": "toy2020.run",
        "version": 1,
        "profile": "quick",
        "seed": seed,
        "run_id": f"{seed:016x}",
        "config": {"schedule": "none", "data": "digits"},
        "parents": [],
        "status": "finished",
        "stages": {},
        "cells": cells,
        "measurements": {"gap": gap},
        "history": [],
        "seconds": {},
        "energy": {},
        "provenance": {"cpu": "Some CPU", "isa": "AVX2", "libraries": {"torch": "2"}},
        **extra,
    }


RUNS = [make_run(seed) for seed in range(5)]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("SHRINKBOOK_RESULTS", str(tmp_path))
    return tmp_path / "quick"


@pytest.mark.parametrize(
    ("value", "printed", "text"),
    [
        (313463808, "3.13e8", "3.13e8"),
        (99950000, "3.13e8", "1.00e8"),
        (34.1936, "34.2", "34.2"),
        (0.045, "6.75", "0.05"),
        (-0.001, "6.75", "0.00"),
        (11.6, "11", "12"),
        (206279680, "", "206279680"),
        (8.12345, "", "8.123"),
        (0, "3.13e8", "0"),
    ],
)
def test_values_get_the_printed_digits(value, printed, text):
    assert report.format_like(value, printed) == text


def test_side_by_side_shows_paper_record_and_ours():
    frame = report.side_by_side(TABLE, RUNS[:1], RUNS, {"table1/base/flop"})
    rows = frame.set_index(["row", "column"])
    assert rows.loc[("base", "flop")].tolist() == ["3.13e8", "3.13e8", "3.13e8", "reproduced"]
    assert rows.loc[("base", "error")].tolist() == ["6.75 [recalled]", "7.00", "9.00 ± 1.58 (5)", ""]
    assert rows.loc[("small", "error")].tolist() == ["—", "8.13", "8.13", ""]
    assert report.side_by_side(TABLE, [], [])["ours"].tolist() == ["—"] * 4


def test_tables_count_a_seed_once_skip_interrupted_runs_and_mark_short_schedules():
    again = make_run(0, error=50.0, run_id="f" * 16)
    stopped = make_run(1, error=50.0, status="interrupted")
    frame = report.side_by_side(TABLE, [], [RUNS[0], again, stopped])
    assert frame["ours"][1] == "7.00"
    short = make_run(0, error=40.0, run_id="e" * 16, config={"schedule": "short", "data": "cifar10"})
    assert report.side_by_side(TABLE, [], [short])["ours"][1] == "40.00 [short]"
    assert report.side_by_side(TABLE, [], [short, *RUNS])["ours"][1] == "9.00 ± 1.58 (5)"


def test_wide_has_the_shape_of_the_table():
    frame = report.wide(TABLE, [], RUNS)
    assert list(frame.index) == ["base", "small"]
    assert list(frame.columns) == ["flop [MAC]", "error [%]"]
    assert frame.loc["base", "flop [MAC]"] == "3.13e8 | — | 3.13e8"
    assert list(report.wide(TABLE, [], RUNS, ["error"]).columns) == ["error [%]"]


def test_scoreboard_reads_like_a_table_and_changes_when_a_run_is_deleted():
    board = report.scoreboard(judge_paper(PAPER, RUNS, "quick"))
    assert list(board.columns) == ["claim", "text", "printed", "ours", "n", "interval", "verdict", "scope"]
    assert board.iloc[0].tolist()[2:] == ["2 cells", "2 of 2 cells", "—", "—", "reproduced", ""]
    assert board.iloc[1].tolist()[2:] == ["small > large", "2", "5", "[2, 2]", "reproduced", "embedded digits"]
    fewer = report.scoreboard(judge_paper(PAPER, RUNS[1:], "quick"))
    assert fewer["verdict"].tolist() == ["reproduced", "inconclusive"]
    nothing = report.scoreboard(judge_paper(PAPER, [], "quick"))
    assert nothing[["ours", "verdict"]].to_numpy().tolist() == [["—", "not attempted"]] * 2


def test_scoreboard_markdown_counts_words_and_escapes_bars():
    text = report.scoreboard_markdown(judge_paper(PAPER, RUNS[1:], "quick"))
    assert text.startswith("2 claims: 1 reproduced, 1 inconclusive.\n")
    assert "### toy2020" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {9}


def test_results_are_written_and_verified(results):
    assert report.write_results("quick", [PAPER], RUNS, RUNS[:1], "build") == results
    stored = json.loads((results / "verdicts.json").read_text())
    assert (stored["profile"], stored["source"], stored["papers"]) == ("quick", "build", ["toy2020"])
    assert [item["verdict"] for item in stored["verdicts"]] == ["reproduced", "reproduced"]
    readme = (results / "README.md").read_text()
    for part in ("make reproduce PROFILE=quick", "2 reproduced", "Some CPU, AVX2, torch 2", "Smaller nets."):
        assert part in readme
    assert (results / "tables" / "toy2020_table1.md").read_text().startswith("Table 1: results.")
    assert report.check_results("quick", [PAPER], RUNS, RUNS[:1]) == []


def test_verify_names_every_difference(results):
    assert report.check_results("quick", [PAPER], RUNS, []) == ["verdicts.json: is missing; run `make reproduce`"]
    report.write_results("quick", [PAPER], RUNS, [], "build")
    table = results / "tables" / "toy2020_table1.csv"
    table.write_text(table.read_text().replace("9.00 ± 1.58 (5)", "6.75 ± 0.01 (5)"))
    (found,) = report.check_results("quick", [PAPER], RUNS, [])
    assert found.startswith("tables/toy2020_table1.csv, line 3: stored 'base,error,6.75 [recalled],—,6.75 ± 0.01 (5),'")
    report.write_results("quick", [PAPER], RUNS, [], "build")
    assert any("verdicts.json" in line for line in report.check_results("quick", [PAPER], RUNS[1:], []))
    (results / "tables" / "toy2020_table9.csv").write_text("x\n")
    (results / "README.md").unlink()
    assert report.check_results("quick", [PAPER], RUNS, []) == [
        "README.md: is missing",
        "tables/toy2020_table9.csv: stored, but no paper has this table",
    ]
    report.write_results("quick", [PAPER], RUNS, [], "build")
    assert report.check_results("quick", [PAPER], RUNS, []) == []


def test_results_say_which_machine_computed_which_seeds(results):
    card = {"gpu": "Card", "cpu": "Other", "isa": "AVX512", "libraries": {"torch": "3"}}
    runs = [*RUNS[:3], make_run(3, provenance=card), RUNS[4]]
    report.write_results("quick", [PAPER], runs, [], "build")
    assert (results / "README.md").read_text().split("## Machines\n")[1].split("\n")[1:-1] == [
        "- Card, Other, AVX512, torch 3: toy2020.run seed 3",
        "- Some CPU, AVX2, torch 2: toy2020.run seed 0, 1, 2, 4",
    ]


def test_runs_of_other_profiles_and_papers_stay_out(results):
    others = [make_run(profile="standard", error=50.0), make_run(experiment="son2018.run", error=50.0)]
    report.write_results("quick", [PAPER], others, others, "record")
    frame = (results / "tables" / "toy2020_table1.csv").read_text()
    assert "50.00" not in frame
    assert {item["verdict"] for item in json.loads((results / "verdicts.json").read_text())["verdicts"]} == {
        "not attempted"
    }


def test_agreement_counts_cells_and_stable_words():
    record = judge_paper(PAPER, RUNS, "quick")
    assert report.agreement(record, record) == "agrees with the record: 2/2 structural, 1/1 stable mechanism claims"
    wrong = [make_run(seed, gap=-2.0, flop=313463809) for seed in range(5)]
    lines = report.agreement(judge_paper(PAPER, wrong, "quick"), record).splitlines()
    assert lines == [
        "disagrees with the record: 1/2 structural, 0/1 stable mechanism claims",
        "  toy2020.1 table1/base/flop: 313463809 here, 313463808 in the record",
        "  toy2020.2: contradicted here, reproduced in the record",
    ]
    empty = judge_paper(PAPER, [], "quick")
    assert report.agreement(record, empty) == "the record holds nothing to compare with"
    assert report.agreement(record, []) == "the record holds nothing to compare with"
    assert report.agreement(empty, record).startswith("disagrees with the record: 0/2 structural, 0/1")


def test_readme_block_replaces_only_what_is_between_the_markers():
    text = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nrest\n"
    new = report.readme_block(text, "| new |\n")
    assert new == f"# Title\n\n{report.BEGIN}\n| new |\n{report.END}\n\nrest\n"
    assert report.readme_block(new, "| new |\n") == new
    for broken in ("# Title\n", f"{report.END}\n{report.BEGIN}\n"):
        with pytest.raises(ValueError, match="scoreboard markers"):
            report.readme_block(broken, "x")


def test_only_what_has_bands_says_so():
    x, y = [0, 1], [1, 2]
    banded, plain = {"a": {"one": (x, y, [0, 1], [2, 3])}}, {"a": {"one": (x, y)}}
    assert figures.has_bands(figures.curves(banded, "x", "y"))
    assert not figures.has_bands(figures.curves(banded, "x", "y", bands=False))
    assert not figures.has_bands(figures.curves(plain, "x", "y"))
    assert not figures.has_bands(figures.bars(["a"], {"ours": ([1.0], [0.5])}, "y"))
    heat = {"a": np.array([[1.0, 2.0]])}
    assert not figures.has_bands(figures.heat_maps(heat, ["r"], ["c", "d"], "y", "x", "ratio"))


@pytest.mark.parametrize(
    ("curve", "count", "words"),
    [
        (([0, 1], [1, 2], [0, 1], [2, 3]), 2, "2 seeds, band from lowest to highest. "),
        (([0, 1], [1, 2]), 2, "2 seeds. "),
        (([0, 1], [1, 2], [0, 1], [2, 3]), 1, "one network. "),
    ],
)
def test_a_caption_names_a_band_where_one_is_drawn(results, curve, count, words):
    runs = [{"config": {"net": "a net", "data": "digits", "schedule": "short"}}] * count
    story = Story("dong2017", "quick")
    story.show("a_name", runs, lambda: figures.curves({"a": {"one": curve}}, "x", "y"), "Note.")
    caption = (results / "figures" / "dong2017_a_name.txt").read_text()
    assert f"Ours: a net, data digits, budget short, {words}Note." in caption


def test_figures_are_saved_with_their_caption_and_the_same_bytes_each_time(results):
    line = figures.mean_band([[1.0, 2.0], [3.0, 6.0]])
    assert [part.tolist() for part in line] == [[2.0, 4.0], [1.0, 2.0], [3.0, 6.0]]
    with pytest.raises(ValueError, match="no common mean"):
        figures.mean_band([[1.0], [1.0, 2.0]])
    panels = {
        "conv_1": {"smallest": ((0, 1), *line), "random": ((0, 1), (5, 6))},
        "conv_2": {"random": ((0, 1), (1, 2))},
    }
    written = []
    for _ in range(2):
        picture = figures.curves(panels, "pruned [%]", "accuracy [%]")
        path = figures.save(picture, "quick", "toy2020", "figure1", "Look at the slopes.")
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert sorted(item.name for item in path.parent.iterdir()) == ["toy2020_figure1.png", "toy2020_figure1.txt"]
    assert path.with_suffix(".txt").read_text() == "Look at the slopes.\n"
    assert picture._repr_png_().startswith(b"\x89PNG")


def test_curves_share_colours_and_the_y_axis_and_name_their_axes():
    panels = {"a": {"x": ((0, 1), (0, 1)), "y": ((0, 1), (1, 2))}, "b": {"y": ((0, 1), (5, 9))}}
    picture = figures.curves(panels, "pruned [%]", "accuracy [%]")
    left, right = picture.axes
    assert left.lines[1].get_color() == right.lines[0].get_color() != left.lines[0].get_color()
    assert left.get_ylim() == right.get_ylim()
    assert (left.get_ylabel(), right.get_xlabel()) == ("accuracy [%]", "pruned [%]")
    assert [text.get_text() for text in picture.legends[0].get_texts()] == ["x", "y"]
    many = figures.curves({"all": {f"conv_{i}": ((0, 1), (i, i)) for i in range(13)}}, "x", "y")
    assert len({line.get_color() for line in many.axes[0].lines}) == 13


def test_bars_and_grids_show_every_value():
    picture = figures.bars(["a", "b"], {"paper": [1.0, 2.0], "ours": ([1.5, 2.5], [0.1, 0.2])}, "error [%]")
    assert [bar.get_height() for bar in picture.axes[0].patches] == [1.0, 2.0, 1.5, 2.5]
    grid = figures.image_grid([np.zeros((3, 3)), np.eye(3), np.ones((3, 3, 3))], ["0", "1", "2"], across=2)
    assert [len(axis.images) for axis in grid.axes] == [1, 1, 1, 0]


def test_results_that_cannot_be_written_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHRINKBOOK_RESULTS", str(tmp_path / "file"))
    with pytest.raises(store.StoreError, match="cannot be written"):
        report.write_results("quick", [PAPER], RUNS, [], "build")
