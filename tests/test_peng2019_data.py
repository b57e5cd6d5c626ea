"""Peng et al. 2019: known numbers hold together and carry their status; the second references are whole."""

import pytest

from shrinkbook.evidence import claims, verdicts
from shrinkbook.experiments import catalogue

PAPER = claims.load("peng2019")
CELLS = [cell for table in PAPER.tables.values() for cell in table.cells]
REFERENCES = ("benchmark", "zoo")


def number(address: str) -> float:
    value = PAPER.cell(address).number
    assert value is not None, address
    return value


def test_nothing_of_the_paper_itself_is_verified_and_every_cell_says_where_it_is_from() -> None:
    assert all(cell.note for cell in CELLS)
    verified = {cell.table for cell in CELLS if cell.status == "verified"}
    assert verified == set(REFERENCES)
    secondary = {cell.address for cell in CELLS if cell.status == "secondary"}
    assert secondary == {
        "table1/ResNet-20/CE", "table1/ResNet-20/CCKD", "table2/CCKD over KD/top1", "table3/CCKD over KD/rank1",
        "table3/CCKD over KD/mAP", "table4/CCKD over L2 mimicry/1000000", "table7/best beta/from",
        "table7/best beta/to",
    }  # fmt: skip
    known = {table.id: sum(cell.status != "missing" for cell in table.cells) for table in PAPER.tables.values()}
    assert known == {
        "table1": 6, "table2": 5, "table3": 2, "table4": 1, "table5": 0, "table6": 0, "table7": 2, "table8": 0,
        "benchmark": 188, "zoo": 12,
    }  # fmt: skip


def test_the_benchmark_is_rectangular_but_for_one_method() -> None:
    table = PAPER.tables["benchmark"]
    assert len(table.columns) == 13 and len(table.rows) == 15
    absent = {cell.address for cell in table.cells if not cell.value}
    assert absent == {"benchmark/FSP/wrn-40-2 to wrn-40-1"}
    per_method = {row: sum(cell.row == row for cell in table.cells) for row in table.rows}
    assert {row for row, count in per_method.items() if count != 13} == {"FSP"} and per_method["FSP"] == 7
    best = {column: max(number(f"benchmark/{row}/{column}") for row in ("KD", "CC", "CRD")) for column in table.columns}
    assert all(best[column] == number(f"benchmark/CRD/{column}") for column in table.columns)


def test_what_claim_ten_says_of_the_benchmark_is_in_its_table() -> None:
    columns = PAPER.tables["benchmark"].columns
    for column in columns:
        assert number(f"benchmark/KD/{column}") > number(f"benchmark/CC/{column}")
    gains = [number(f"benchmark/CC/{column}") - number(f"benchmark/student/{column}") for column in columns]
    printed = [0.30, 0.23, 0.57, 0.42, 0.34, 0.47, 0.35, 0.26, 0.83, -0.11, 0.64, -0.53, 0.88]
    assert gains == pytest.approx(printed)
    assert max(gains) < 1  # claim 10b


@pytest.mark.parametrize(
    ("claim", "printed"),
    [("1a", "1.60"), ("1b", "1.9"), ("2a", "4.00"), ("2b", "3.8"), ("10c", "0.57"), ("10d", "0.42"), ("10e", "1.61")],
)
def test_differences_as_they_are_printed(claim: str, printed: str) -> None:
    assert PAPER.printed(PAPER.claim(f"peng2019.{claim}")) == printed


def test_differences_remembered_and_read_agree() -> None:
    for net in ("ResNet-20", "ResNet-14"):
        assert 1.6 - 1e-9 <= number(f"table1/{net}/CCKD") - number(f"table1/{net}/KD") <= 1.9 + 1e-9
    gain = number("table2/CCKD/top1") - number("table2/KD/top1")
    assert gain == pytest.approx(number("table2/CCKD over KD/top1"))


def test_every_known_cell_of_the_paper_is_judged() -> None:
    named = {cell.address for claim in PAPER.claims for cell in PAPER.cells(claim)}
    own = {cell.address for cell in CELLS if cell.value and cell.table not in REFERENCES}
    beside = {"table2/ResNet-50/top1", "table7/best beta/from", "table7/best beta/to"}  # a teacher; a place, no result
    assert own - named == beside


def test_all_ten_claims_have_rows_and_every_experiment_exists_or_has_a_cost() -> None:
    assert {claim.number for claim in PAPER.claims} == set(range(1, 11))
    for claim in PAPER.claims:
        planned = [name for name in claim.experiments if name in catalogue.EXPERIMENTS]
        assert planned or claim.cost, claim.id
        schedules = {config["schedule"] for name in planned for config in catalogue.EXPERIMENTS[name].configs.values()}
        assert claim.requires is None or not planned or claim.requires in schedules, claim.id


def measured(seed: int, **overrides: object) -> dict[str, object]:
    """A run on MNIST in which everything is as the paper says."""
    values: dict[str, object] = {
        "accuracy": {
            "ce": 97.0, "kd": 97.5, "consecutive": 97.1, "mmd": 97.6, "bilinear": 97.8, "rbf1": 97.8, "rbf2": 98.0,
            "rbf3": 98.2 + seed / 100,
        },
        "common_beta": {"rbf1": 97.6, "rbf2": 98.0, "rbf3": 98.1},
        "wide_beta": {"above_ends": [0.5, 3.0]},
        "last_epoch": {"congruence": {"kd": 0.02, "rbf2": 0.01}},
        "intra_class": {"kd": 0.8, "rbf2": 0.85}, "congruence_error": {"kd": 0.12, "rbf2": 0.1},
        "gaps": {
            "rbf_bilinear_within_1": 0.8, "distillation_within_10_percent": 4.0, "consecutive_gain_below_1": 0.9
        },
    } | overrides  # fmt: skip
    return {
        "experiment": "peng2019.mnist", "profile": "standard", "version": 1, "seed": seed, "run_id": f"{seed:016d}",
        "status": "finished", "config": {"data": "mnist", "schedule": "2 epochs"}, "cells": {}, "parents": [],
        "measurements": values,
    }  # fmt: skip


def words_of(**overrides: object) -> dict[str, str]:
    judged = verdicts.judge_paper(PAPER, [measured(seed, **overrides) for seed in range(5)], "standard")
    return {v["claim"].removeprefix("peng2019."): v["verdict"] for v in judged if v["verdict"] != "not attempted"}


def test_the_measurements_that_the_claims_read_and_what_turns_a_verdict() -> None:
    orders = ("1c", "2l", "3a", "3b", "3c", "4a", "4b", "5", "7a", "7b", "8a", "8b", "10a", "10b")
    assert words_of() == dict.fromkeys(orders, "reproduced")
    turned = words_of(
        accuracy={
            "ce": 99,
            "kd": 98,
            "consecutive": 98.5,
            "mmd": 97,
            "bilinear": 96,
            "rbf1": 96,
            "rbf2": 95,
            "rbf3": 94,
        },
        common_beta={"rbf1": 98.0, "rbf2": 97.0, "rbf3": 96.0},
        wide_beta={"above_ends": [-0.5, -0.1]},
        last_epoch={"congruence": {"kd": 0.01, "rbf2": 0.02}},
        intra_class={"kd": 0.9, "rbf2": 0.85},
        congruence_error={"kd": 0.1, "rbf2": 0.2},
        gaps={"rbf_bilinear_within_1": -1, "distillation_within_10_percent": -5, "consecutive_gain_below_1": -0.5},
    )
    assert turned == dict.fromkeys(orders, "contradicted")
    assert words_of(wide_beta={"above_ends": [0.0, 3.0]})["5"] == "inconclusive"  # the best beta is an end


def test_samplers_are_judged_one_by_one() -> None:
    def words(few: list[float], many: list[float], twins: list[float]) -> list[str]:
        gaps = {"few_above_uniform": few, "many_below_uniform": many, "superclass_class_within_half": twins}
        runs = [measured(seed, gaps=gaps) | {"experiment": "peng2019.mnist_samplers"} for seed in range(5)]
        return [verdicts.judge(PAPER.claim(f"peng2019.6{c}"), PAPER, runs, "standard")["verdict"] for c in "abc"]

    assert words([0.2, 0.3], [0.4, 5.0], [0.1, 0.3]) == ["reproduced"] * 3
    assert words([0.2, -0.3], [0.4, -5.0], [0.1, -0.3]) == ["inconclusive"] * 3


def test_without_runs_every_claim_is_not_attempted_with_a_reason() -> None:
    for verdict in verdicts.judge_paper(PAPER, [], "standard"):
        assert verdict["verdict"] == "not attempted" and verdict["reason"]
