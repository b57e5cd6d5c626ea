"""Chen et al. 2019: what its experiments train, measure and keep, on tiny budgets."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import paths_of

from shrinkbook import nets
from shrinkbook.evidence import claims, verdicts
from shrinkbook.evidence.store import dig
from shrinkbook.experiments import catalogue, loop
from shrinkbook.experiments.chen2019 import arms, images, look
from shrinkbook.experiments.chen2019 import tables as pages
from shrinkbook.experiments.run import ensure, unit
from shrinkbook.measure.cost import cost
from shrinkbook.measure.operations import operations
from shrinkbook.training import data

PAPER = claims.load("chen2019")
PARENT = {"recipe": {"epochs": 2, "batch": 50, "lr": 0.01, "weight_decay": 0, "optimiser": "adam"}}
SHORT = {"epochs": 2, "batch": 32, "lr": 0.01, "weight_decay": 0, "optimiser": "adam"}
TINY = {"iterations": 2, "width": 4, "latent": 6, "student_recipe": SHORT, "generator_recipe": {**SHORT, "lr": 0.2}}


def tiny(monkeypatch: pytest.MonkeyPatch, profile: str, changes: dict[str, dict]) -> None:
    """The experiments with settings of their own; children follow their parents' changed settings."""
    for name, change in changes.items():
        one = catalogue.EXPERIMENTS[name]
        config = {**one.configs[profile], **change}
        monkeypatch.setitem(catalogue.EXPERIMENTS, name, replace(one, configs={profile: config}))


@pytest.fixture(scope="module")
def digits():
    with pytest.MonkeyPatch.context() as patch:
        tiny(
            patch, "quick", {"chen2019.digits": PARENT, "chen2019.digits_dafl": TINY, "chen2019.digits_variants": TINY}
        )
        yield {
            name: ensure(unit(catalogue.EXPERIMENTS, f"chen2019.{name}", "quick", 0))
            for name in ("digits", "digits_dafl", "digits_variants")
        }


def test_digits_fill_what_their_claims_read(digits) -> None:
    runs = list(digits.values())
    judged = [c for c in PAPER.claims if {"chen2019.digits", "chen2019.digits_dafl"} & set(c.experiments)]
    assert {claim.id.removeprefix("chen2019.") for claim in judged} == {
        *("2a", "2c", "2d", "2e", "3c", "6c", "6d", "7a", "7b", "8", "9")
    }
    for claim in judged:
        run = next(run for run in runs if run["experiment"] in claim.experiments)
        assert all(dig(run["measurements"], path) is not None for path in paths_of(claim)), claim.id
        assert verdicts.judge(claim, PAPER, runs, "quick")["ours"] is not None, claim.id


def test_every_row_of_the_ablation_ran_and_the_best_is_only_named(digits) -> None:
    found = digits["digits_dafl"]["measurements"]
    assert set(arms.ABLATION) < set(found["accuracy"])
    assert found["accuracy"]["teacher"] == digits["digits"]["measurements"]["accuracy"]["teacher"]
    history = digits["digits_dafl"]["history"]
    for name in arms.ABLATION:
        curve = [row["test_accuracy"] for row in history if row["phase"] == name]
        assert len(curve) == 2
        assert found["accuracy"][name] == curve[-1] and found["best_on_test"][name] == max(curve)
    assert len(pages.ablation_table([digits["digits_dafl"]])) == 8


def test_the_two_students_with_data_descend_their_own_losses(digits) -> None:
    losses = {row["phase"]: row["loss"] for row in digits["digits"]["history"] if row["epoch"] == 0}
    entropy = losses["back-propagation"] - losses["distillation"]  # of the teacher's answers; the rest is alike
    assert losses["back-propagation"] != losses["distillation"] and entropy > 0


def test_gaps_are_the_differences_of_the_arms(digits) -> None:
    found = digits["digits_dafl"]["measurements"]
    accuracy, gaps = found["accuracy"], found["gaps"]
    below = [accuracy["noise"] - accuracy[name] for name in ("oh", "a", "oh+a")]
    assert gaps["noise_over_losses_without_entropy"] == pytest.approx(below)
    assert gaps["one_more_than_entropy"] == pytest.approx([accuracy[n] - accuracy["ie"] for n in ("oh+ie", "ie+a")])
    assert gaps["entropy_below_half"] == pytest.approx([0.5 - found["entropy"][name] for name in ("oh", "a", "oh+a")])
    assert gaps["noise_above_chance"] == pytest.approx(accuracy["noise"] - 10)
    assert gaps["filters"] == pytest.approx(found["filters"]["dafl"] - found["filters"]["untrained student"])


def test_an_arms_losses_are_the_rows_of_the_ablation() -> None:
    settings = {"one_hot": 2.0, "entropy": 3.0, "activation": 5.0}
    for name, row in arms.ABLATION.items():
        if name != "noise":
            weights = arms.weighed(settings, arms.LOSSES[name])
            on = {"L_oh": weights.one_hot, "L_ie": weights.entropy, "L_a": weights.activation}
            assert " + ".join(loss for loss, weight in on.items() if weight) == row
    assert arms.weighed(settings, arms.LOSSES["dafl"]).entropy == 3.0


def test_two_stages_keep_the_student_still_and_then_the_generator(digits) -> None:
    rows = {row["phase"]: row for row in digits["digits_variants"]["history"]}
    first, second = rows["two stages generator"], rows["two stages student"]
    assert "one_hot" in first and "distillation" not in first
    assert "distillation" in second and "one_hot" not in second
    still = [r["test_accuracy"] for r in digits["digits_variants"]["history"] if r["phase"] == "two stages generator"]
    assert len(set(still)) == 1


def test_students_of_a_seed_start_alike_and_repeat_no_number_of_the_teacher() -> None:
    run = SimpleNamespace(config={"student": "digits LeNet, half"}, seed=3, device="cpu")
    first, second = arms.fresh_student(run), arms.fresh_student(run)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    teacher = nets.initialize(arms.NETS["digits LeNet"](), 3)
    shared = first.conv1.weight.flatten(), teacher.conv1.weight.flatten()[: first.conv1.weight.numel()]
    assert abs(torch.corrcoef(torch.stack(shared))[0, 1]) < 0.4


def test_pictures_and_tables(digits) -> None:
    run = digits["digits_dafl"]
    assert len(pages.generated_picture(run).axes) == 40
    assert len(pages.filters_picture(run).axes) == 16
    for draw in (pages.accuracy_picture, pages.loss_picture, pages.seeds_picture):
        assert draw([run, run]).axes
    entropy = pages.combinations_picture([run], "mean_entropy")
    drawn = {line.get_label(): line.get_ydata()[-1] for axis in entropy.axes for line in axis.lines}
    assert drawn == pytest.approx({name: run["measurements"]["entropy"][name] for name in drawn})
    assert set(drawn) == set(arms.ABLATION) - {"noise"}
    shorter = {**run, "history": [row for row in run["history"] if (row["phase"], row["epoch"]) != ("dafl", 1)]}
    (line,) = [x for x in pages.accuracy_picture([run, shorter]).axes[0].lines if x.get_label() == "dafl"]
    assert line.get_ydata()[-1] == run["measurements"]["accuracy"]["dafl"]  # of the run that did not stop
    filters = run["measurements"]["filters"]
    diverged = {**run, "measurements": {**run["measurements"], "filters": {**filters, "dafl": None}}}
    likeness = pages.filters_table([run, diverged], [digits["digits"]])
    assert likeness.loc["dafl", "lowest"] == likeness.loc["dafl", "mean cosine"] == round(filters["dafl"], 3)
    assert list(likeness.index)[-2:] == ["back-propagation", "distillation"]
    table = pages.arms_table([run])
    assert table.loc["dafl", "last"] == round(run["measurements"]["accuracy"]["dafl"], 2)
    assert table.loc["teacher"].isna()["best on test"]


class Pulled(Exception):
    """Somebody pulled the plug."""


def test_an_interrupted_arm_ends_in_the_same_bits(scratch, monkeypatch) -> None:
    changes = {"chen2019.digits": PARENT, "chen2019.digits_dafl": {**TINY, "arms": ["dafl"]}}
    changes["chen2019.digits_dafl"]["student_recipe"] = {**SHORT, "epochs": 4, "optimiser": "sgd", "momentum": 0.9}
    changes["chen2019.digits_dafl"]["generator_recipe"] = {**SHORT, "epochs": 4, "optimiser": "adamw"}
    tiny(monkeypatch, "quick", changes)
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    wanted = unit(catalogue.EXPERIMENTS, "chen2019.digits_dafl", "quick", 0)

    def pull(text: str) -> None:
        if text.startswith("dafl: epoch 2/"):
            raise Pulled

    with pytest.raises(Pulled):
        ensure(wanted, progress=pull)
    resumed = ensure(wanted)
    for path in scratch.glob("build/runs/chen2019.digits_dafl/*.json"):
        path.unlink()
    for path in scratch.glob("build/checkpoints/chen2019.digits_dafl*"):
        path.unlink()
    whole = ensure(wanted)
    assert resumed["measurements"] == whole["measurements"]
    assert [row["one_hot"] for row in resumed["history"]] == [row["one_hot"] for row in whole["history"]]


def test_a_student_that_diverges_collapses_and_says_so(scratch, monkeypatch) -> None:
    wild = {**TINY, "arms": ["dafl"], "student_recipe": {**SHORT, "optimiser": "sgd", "lr": 1e12, "epochs": 3}}
    tiny(monkeypatch, "quick", {"chen2019.digits": PARENT, "chen2019.digits_dafl": wild})
    run = ensure(unit(catalogue.EXPERIMENTS, "chen2019.digits_dafl", "quick", 0))
    assert run["status"] == "collapsed" and run["measurements"]["collapsed"]["dafl"]
    assert len(run["history"]) < 3 or not run["history"][-1]["finite"]
    verdict = verdicts.judge(PAPER.claim("chen2019.8"), PAPER, [run], "quick")
    assert verdict["n"] == 1


def test_an_arm_that_diverged_is_no_collapse_to_few_classes(digits) -> None:
    found = digits["digits_dafl"]["measurements"]
    run = SimpleNamespace(data=data.load("digits"), measurements={**found, "gaps": {}})
    arms.compare(run)
    assert run.measurements["gaps"] == found["gaps"]
    run.measurements |= {"gaps": {}, "entropy": {**found["entropy"], "a": None}}
    arms.compare(run)
    assert set(found["gaps"]) - set(run.measurements["gaps"]) == {"entropy_with_and_without", "entropy_below_half"}


@pytest.fixture
def small_mnist(scratch, monkeypatch):
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (24, 28, 28), dtype=np.uint8), np.arange(24) % 10
    monkeypatch.setenv("SHRINKBOOK_DATA", str(scratch))
    np.savez(scratch / "mnist.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    colours = random.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    for name in ("cifar10", "cifar100"):
        np.savez(scratch / f"{name}.npz", x_train=colours, y_train=labels, x_test=colours, y_test=labels)


@pytest.mark.parametrize(
    ("name", "parent", "table", "column"),
    [
        ("mnist_600it", "mnist", "table1", "LeNet-5 accuracy"),
        ("mnist_ablation_240it", "mnist", "table2", "accuracy"),
        ("mnist_hinton_600it", "mnist_hinton", "table1", "HintonNet accuracy"),
    ],
)
def test_mnist_runs_fill_the_printed_rows(small_mnist, monkeypatch, name, parent, table, column) -> None:
    one_epoch = {**PARENT["recipe"], "epochs": 1, "batch": 12}
    changes = {**TINY, "student_recipe": {**SHORT, "epochs": 1, "batch": 12}}
    changes["generator_recipe"] = changes["student_recipe"]
    tiny(monkeypatch, "standard", {f"chen2019.{parent}": {"recipe": one_epoch}, f"chen2019.{name}": changes})
    run = ensure(unit(catalogue.EXPERIMENTS, f"chen2019.{name}", "standard", 0), "cpu")
    filled = run["cells"][table]
    rows = arms.ABLATION if table == "table2" else arms.ROWS
    assert set(filled) == {rows[arm] for arm in run["measurements"]["accuracy"] if arm in rows}
    assert filled[rows["dafl"]] == {column: run["measurements"]["accuracy"]["dafl"]}
    assert all(PAPER.cell(f"{table}/{row}/{column}").value for row in filled)
    if table == "table1":
        assert "teacher" in filled  # the parent's, so that a difference has both arms in one run


def test_cifar_runs_fill_the_printed_rows(small_mnist, monkeypatch) -> None:
    small = {"net": "digits ResNet"}
    monkeypatch.setitem(arms.NETS, "digits ResNet", lambda: nets.ResNet((1,), (4,), projection=True))
    recipe = {**catalogue.EXPERIMENTS["chen2019.cifar10"].configs["standard"]["recipe"], "epochs": 1, "batch": 12}
    parent = {**small, "student": "digits ResNet", "recipe": recipe, "dtype": "float32"}
    settings = catalogue.EXPERIMENTS["chen2019.cifar10_30k"].configs["standard"]
    short = {key: {**settings[key], "epochs": 1, "batch": 12} for key in ("student_recipe", "generator_recipe")}
    child = {**small, "student": "digits ResNet", **short, "iterations": 2, "width": 4, "latent": 6}
    tiny(monkeypatch, "standard", {"chen2019.cifar10": parent, "chen2019.cifar10_30k": child})
    run = ensure(unit(catalogue.EXPERIMENTS, "chen2019.cifar10_30k", "standard", 0), "cpu")
    assert set(run["cells"]["table3"]) == set(arms.ROWS.values())
    judged = [c for c in PAPER.claims if "chen2019.cifar10_30k" in c.experiments]
    assert [claim.id for claim in judged] == ["chen2019.4a"]
    assert all(dig(run["measurements"], path) is not None for path in paths_of(judged[0]))


def test_resizing_is_bilinear_and_leaves_the_right_size_alone() -> None:
    digits = data.load("digits")
    assert images.resized(digits, 8) is digits
    twice = images.resized(digits, 16)
    assert twice.x_test.shape == (1397, 1, 16, 16) and twice.x_test.dtype == torch.uint8
    small, large = digits.x_test[0, 0].float(), twice.x_test[0, 0].float()
    by_hand = 0.75 * (0.75 * small[2, 3] + 0.25 * small[2, 4]) + 0.25 * (0.75 * small[3, 3] + 0.25 * small[3, 4])
    assert abs(large[5, 7] - by_hand) <= 0.51  # centres of the finer pixels lie a quarter off those of the coarser


def test_other_digits_look_like_digits_and_are_not_the_data() -> None:
    digits = data.load("digits")
    drawn = images.typeset(8)
    assert drawn.shape == (480, 1, 8, 8) and drawn.max() > 200
    labels = torch.arange(10).repeat_interleave(4).repeat(12)
    likeness = look.agreement(look.class_means(drawn, labels, 10), look.class_means(digits.x_train, digits.y_train, 10))
    assert likeness["gap"] > 0.2 and likeness["classes"] == 10
    assert not (drawn.flatten(1)[:, None] == digits.x_train.flatten(1)[None]).all(2).any()
    others = images.alternative("digits", images.resized(digits, 16))
    assert others.shape == (1797, 1, 16, 16) and others.dtype == torch.float32


def test_class_means_and_their_agreement_by_hand() -> None:
    pictures = torch.tensor([[[[1.0, 0.0]]], [[[3.0, 0.0]]], [[[0.0, 1.0]]]])
    means = look.class_means(pictures, torch.tensor([0, 0, 2]), 3)
    assert means.flatten(1).tolist() == [[2, 0], [0, 0], [0, 1]]
    real = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]], [[[0.0, 1.0]]]])
    found = look.agreement(means, real)  # correlations 1 -1 -1 / 0 0 0 / -1 1 1
    assert found == pytest.approx({"own": 2 / 3, "others": -2 / 6, "gap": 1.0, "classes": 2})


def test_matched_filters_carry_the_sign_that_fits() -> None:
    student, teacher = (nets.LeNet((2, 3, 6, 5), (3, 3, 2), padding=1) for _ in range(2))
    with torch.no_grad():
        student.conv1.weight.copy_(-2 * teacher.conv1.weight.flip(0))
    found = look.matched(student, teacher)
    assert found["cosine"] == pytest.approx([1, 1])
    first, match = torch.tensor(found["student"][0]).float(), torch.tensor(found["teacher"][0]).float()
    assert torch.allclose(first / first.norm(), match / match.norm(), atol=0.1)
    assert look.likeness(student, teacher) == pytest.approx(1)


@pytest.mark.parametrize(
    ("build", "shape"),
    [(nets.lenet5, (1, 32, 32)), (lambda: nets.hinton_net(8, 16), (1, 4, 4)), (nets.resnet18_cifar, (3, 32, 32))],
)
def test_products_are_what_cost_counts(build, shape) -> None:
    model = build()
    assert operations(model, shape)["products"] == cost(model, shape).mac


def test_operations_by_hand_and_what_is_not_known() -> None:
    model = nets.LeNet((2, 3, 6, 5), (3, 3, 2), padding=1, classes=4)
    assert operations(model, (1, 8, 8)) == {
        "products": 64 * 2 * 9 + 16 * 3 * 18 + 6 * 12 + 6 * 5 + 5 * 4,
        "bias": 128 + 48 + 6 + 5 + 4,
        "batch norm": 0,
        "activation": 128 + 48 + 6 + 5,
        "addition": 0,
        "pooling": 128 + 48,
        "pixels": 64,
    }
    with pytest.raises(ValueError, match="tanh is not counted"):
        operations(torch.nn.Sequential(torch.nn.Tanh()), (1, 2, 2))


def test_networks_have_the_printed_shapes() -> None:
    lenet = nets.lenet5()
    assert lenet(torch.zeros(1, 1, 32, 32)).shape == (1, 10)
    with pytest.raises(RuntimeError):
        lenet(torch.zeros(1, 1, 28, 28))
    assert nets.alexnet_one_tower(2, half=True)(torch.zeros(1, 3, 224, 224)).shape == (1, 2)
    assert cost(nets.alexnet_one_tower(2), (3, 224, 224)).mac == 710_100_672
