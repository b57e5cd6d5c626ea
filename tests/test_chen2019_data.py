"""Chen et al. 2019: the printed numbers hold together, follow from the networks' costs, and carry their status."""

from decimal import Decimal

import pytest

from shrinkbook.evidence import claims, verdicts
from shrinkbook.evidence.paper import STATUSES
from shrinkbook.evidence.statistics import agree
from shrinkbook.experiments.catalogue import EXPERIMENTS
from shrinkbook.experiments.run import ensure, unit

PAPER = claims.load("chen2019")
CELLS = [cell for table in PAPER.tables.values() for cell in table.cells]
STUDENTS = ("standard back-propagation", "knowledge distillation", "normal distribution", "alternative data", "DAFL")


@pytest.fixture(scope="module")
def counted():
    return ensure(unit(EXPERIMENTS, "chen2019.cost", "quick", 0))


def number(address: str) -> float:
    value = PAPER.cell(address).number
    assert value is not None, address
    return value


def test_every_cell_says_where_it_is_from():
    assert all(cell.note for cell in CELLS)
    by_status = {status: {cell.table for cell in CELLS if cell.status == status} for status in STATUSES}
    assert by_status == {
        "verified": {"table1", "table2", "table3"},
        "secondary": {"table4", "references"},
        "recalled": {"table2", "table4"},
        "missing": {"extended"},
    }
    assert {c.address for c in CELLS if c.table == "table4" and c.status == "secondary"} == {
        "table4/DAFL/CelebA accuracy"
    }


def test_the_ablation_shares_its_ends_with_table_1():
    assert PAPER.cell("table2/none/accuracy").value == PAPER.cell("table1/normal distribution/LeNet-5 accuracy").value
    assert PAPER.cell("table2/L_oh + L_ie + L_a/accuracy").value == PAPER.cell("table1/DAFL/LeNet-5 accuracy").value


def test_distillation_equals_the_teacher_to_the_printed_digit():
    for net in ("LeNet-5", "HintonNet"):
        rows = [PAPER.cell(f"table1/{row}/{net} accuracy").value for row in ("teacher", "knowledge distillation")]
        assert rows[0] == rows[1]


def test_printed_orders_are_those_of_the_claims():
    with_data = ("knowledge distillation", "standard back-propagation")
    without = ("DAFL", "alternative data", "meta data", "normal distribution")
    table1 = [number(f"table1/{row}/LeNet-5 accuracy") for row in (*with_data, *without)]
    assert table1 == sorted(table1, reverse=True)
    ablation = {row: number(f"table2/{row}/accuracy") for row in PAPER.tables["table2"].rows}
    noise, entropy, all_three = (ablation[row] for row in ("none", "L_ie", "L_oh + L_ie + L_a"))
    assert max(ablation[row] for row in ("L_oh", "L_a", "L_oh + L_a")) < noise
    assert abs(entropy - noise) < 1
    assert entropy < min(ablation[row] for row in ("L_oh + L_ie", "L_ie + L_a"))
    assert all_three == max(ablation.values())
    for data in ("CIFAR-10", "CIFAR-100"):
        assert number(f"table3/DAFL/{data} accuracy") > number(f"table3/alternative data/{data} accuracy")


def test_printed_losses_of_accuracy_are_the_differences_of_their_cells():
    expected = {"1a": "-0.71", "1b": "-0.48", "4c": "1.57", "5a": "-3.36", "5b": "-1.70", "5e": "-3.37", "5f": "-2.06"}
    for claim, difference in expected.items():
        assert Decimal(PAPER.printed(PAPER.claim(f"chen2019.{claim}"))) == Decimal(difference)


def test_structural_words(counted):
    structural = [claim for claim in PAPER.claims if claim.kind == "structural"]
    words = {claim.id: verdicts.judge(claim, PAPER, [counted], "quick")["verdict"] for claim in structural}
    assert words == {
        "chen2019.10a": "reproduced",
        "chen2019.10b": "close",
        "chen2019.10c": "reproduced",
        "chen2019.10d": "reproduced",
        "chen2019.10e": "differs",
    }
    judged = verdicts.judge(PAPER.claim("chen2019.10b"), PAPER, [counted], "quick")["cells"]
    off = [cell["cell"] for cell in judged if cell["word"] != "reproduced"]
    assert off == ["table1/standard back-propagation/LeNet-5 FLOPs"]


def test_one_reading_gives_every_printed_cost_and_the_narrower_ones_do_not(counted):
    """Among the readings only the widest, found after the fact, gives both figures of LeNet-5 and all others too."""
    networks = counted["measurements"]["networks"]
    pairs = {
        "table1/teacher/LeNet-5": "LeNet-5",
        "table1/DAFL/LeNet-5": "LeNet-5-Half",
        "table1/teacher/HintonNet": "Hinton-784-1200-1200-10",
        "table1/DAFL/HintonNet": "Hinton-784-800-800-10",
        "table3/teacher/CIFAR": "ResNet-34",
        "table3/DAFL/CIFAR": "ResNet-18",
        "table4/teacher/CelebA": "AlexNet",
    }

    def fitting(reading: str) -> set[str]:
        return {
            net
            for place, net in pairs.items()
            if agree(networks[net][reading], PAPER.cell(f"{place} FLOPs").value) == "reproduced"
        }

    assert fitting("and normalised pixels") == set(pairs.values())
    assert fitting("all of the network") == set(pairs.values()) - {"LeNet-5-Half"}
    assert not {"LeNet-5", "LeNet-5-Half"} & fitting("products")
    assert "LeNet-5" not in fitting("with biases, batch norm and activations")


def test_students_share_their_cost(counted):
    for row in STUDENTS:
        assert counted["cells"]["table1"][row]["LeNet-5 FLOPs"] == 143_410
        assert counted["cells"]["table3"][row]["CIFAR parameters"] == 11_173_962
    assert counted["measurements"]["networks"]["ResNet-34, 100 classes"]["parameters"] == 21_328_292
    assert counted["measurements"]["networks"]["ResNet-18, 100 classes"]["parameters"] == 11_220_132


def test_claims_name_experiments_that_exist_and_every_claim_of_the_fact_sheet_is_there():
    assert {name for claim in PAPER.claims for name in claim.experiments} <= set(EXPERIMENTS)
    assert {claim.number for claim in PAPER.claims} == set(range(1, 12))
    assert all(claim.experiments or claim.cost for claim in PAPER.claims)
