"""Peng et al. 2019: what its experiments train, tune, compare and time."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SmallCifar, paths_of

from shrinkbook.evidence import claims, verdicts
from shrinkbook.evidence.store import dig
from shrinkbook.experiments import catalogue, peng2019
from shrinkbook.experiments.networks import NETS
from shrinkbook.experiments.peng2019 import BENCHMARK, kernels, students
from shrinkbook.experiments.peng2019 import tables as pages
from shrinkbook.experiments.run import ensure, unit
from shrinkbook.methods.congruent_distillation import with_features
from shrinkbook.nets import VGG

PAPER = claims.load("peng2019")
SHORT = {"epochs": 1, "batch": 40, "lr": 0.1, "val_fraction": 0.25}


@pytest.fixture(scope="module")
def digits() -> dict[str, Any]:
    return ensure(unit(catalogue.EXPERIMENTS, "peng2019.digits", "quick", 0, {"recipe": SHORT}))


@pytest.fixture(scope="module")
def by_sampler(digits: dict[str, Any]) -> dict[str, Any]:
    short = catalogue.EXPERIMENTS["peng2019.digits"].configs["quick"] | {"recipe": SHORT}
    experiments = dict(catalogue.EXPERIMENTS)
    experiments["peng2019.digits"] = dataclasses.replace(experiments["peng2019.digits"], configs={"quick": short})
    one = {"class, k = 8": {"per_class": 8}, "superclass, k = 4": {"per_class": 4, "superclasses": 12}}
    samplers = one | {"class, k = 4": {"per_class": 4}}
    return ensure(unit(experiments, "peng2019.digits_samplers", "quick", 0, {"recipe": SHORT, "samplers": samplers}))


def judged(run: dict[str, Any]) -> set[str]:
    """The claims that this run's experiment may judge, each with all that it reads and a value."""
    own = [claim for claim in PAPER.claims if run["experiment"] in claim.experiments]
    for claim in own:
        assert all(dig(run["measurements"], path) is not None for path in paths_of(claim)), claim.id
        assert verdicts.judge(claim, PAPER, [run], run["profile"])["ours"] is not None, claim.id
    return {claim.id.removeprefix("peng2019.") for claim in own}


def test_digits_fill_what_their_claims_read(digits) -> None:
    by_digits = {"1c", "2l", "3a", "3b", "3c", "4a", "4b", "5", "7a", "7b", "8a", "8b", "10a", "10b"}
    assert judged(digits) == by_digits


def test_every_arm_is_there_with_its_own_beta_from_validation_images(digits) -> None:
    found = digits["measurements"]
    arms = {"ce", "kd", "consecutive", "mmd", "bilinear", "rbf2", "rbf3"}
    assert set(found["accuracy"]) == arms | {"rbf1"} and set(digits["stages"]) == arms | {"teacher"}
    assert found["accuracy"]["rbf1"] == found["accuracy"]["bilinear"]
    for kernel, curve in found["beta"].items():
        chosen = curve["beta"].index(curve["chosen"])
        assert curve["beta"] == digits["config"]["betas"][kernel]
        assert curve["validation"][chosen] == max(curve["validation"])
        assert found["accuracy"][kernel] == curve["test"][chosen] == digits["stages"][kernel]["accuracy"]["last"]
    wide = found["wide_beta"]
    assert wide["beta"] == [0.003, 3.0, 30.0, 300.0, 3000.0]
    best = wide["test"][students.best(wide)]
    assert wide["above_ends"] == [best - wide["test"][0], best - wide["test"][-1]]
    assert found["common_beta"]["rbf2"] == found["beta"]["rbf2"]["test"][1]


def test_best_on_validation_images_goes_by_accuracy_then_loss() -> None:
    def curve(*points: tuple[float, float | None]) -> dict[str, list[Any]]:
        accuracy, loss = zip(*points, strict=True)
        return {"validation": list(accuracy), "validation_loss": list(loss)}

    assert students.best(curve((90, 0.5), (92, 0.9), (92, 0.4))) == 2
    assert students.best(curve((92, 0.3), (93, 0.9))) == 1
    assert students.best(curve((92, None), (92, 5.0))) == 1


def test_losses_are_followed_epoch_by_epoch_and_similarities_over_the_test_images(digits) -> None:
    found = digits["measurements"]
    rows = [row["congruence"] for row in digits["history"] if row["phase"] == "kd"]
    assert found["losses"]["kd"]["congruence"] == pytest.approx(rows, abs=1e-6)
    assert found["last_epoch"]["congruence"]["kd"] == pytest.approx(rows[-1], abs=1e-6)
    assert all("congruence" not in row for row in digits["history"] if row["phase"] in ("ce", "consecutive"))
    maps = found["similarity"]
    assert set(maps) == {"teacher", "kd", "rbf2"}
    matrix = np.array([row.split() for row in maps["teacher"]], dtype=int)
    assert matrix.shape == (30, 30) and (matrix == matrix.T).all() and (matrix.diagonal() == 100).all()
    assert found["intra_class"]["teacher"] > 0.5 and 0 < found["congruence_error"]["kd"] < 1


def test_arms_start_from_the_same_weights_on_the_same_batches(digits) -> None:
    first = {row["phase"]: row for row in digits["history"] if row["epoch"] == 0}
    assert first["kd"]["distillation"] == pytest.approx(first["rbf2 at beta 0.003"]["distillation"], rel=1e-3)
    assert first["kd"]["congruence"] == pytest.approx(first["rbf2 at beta 0.003"]["congruence"], rel=1e-2)
    assert first["kd"]["congruence"] != pytest.approx(first["rbf2 at beta 300"]["congruence"], rel=1e-2)


def test_samplers_have_a_control_each_and_gaps_by_k(by_sampler, digits) -> None:
    found = by_sampler["measurements"]
    assert judged(by_sampler) == {"6a", "6b", "6c"}
    assert found["samplers"]["uniform"] == {
        "kd": digits["measurements"]["accuracy"]["kd"], "cckd": digits["measurements"]["accuracy"]["rbf2"]
    }  # fmt: skip
    gain = {name: arms["cckd"] - found["samplers"]["uniform"]["cckd"] for name, arms in found["samplers"].items()}
    assert found["gaps"]["few_above_uniform"] == [gain["superclass, k = 4"], gain["class, k = 4"]]
    assert found["gaps"]["many_below_uniform"] == [-gain["class, k = 8"]]
    twins = [0.5 - abs(gain["class, k = 4"] - gain["superclass, k = 4"])]
    assert found["gaps"]["superclass_class_within_half"] == pytest.approx(twins)
    phases = {row["phase"] for row in by_sampler["history"]}
    assert phases == {f"{name} {arm}" for name in by_sampler["config"]["samplers"] for arm in ("kd", "cckd")}


def test_a_student_that_diverged_costs_the_run_its_comparison_not_its_numbers(scratch) -> None:
    wild = {"recipe": {**SHORT, "lr": 1e20}, "betas": {"rbf2": [3.0]}, "ends": [], "common_beta": None}
    run = ensure(unit(catalogue.EXPERIMENTS, "peng2019.digits", "quick", 0, wild))
    assert run["status"] == "collapsed" and set(run["measurements"]["accuracy"]) == {"ce", "kd", "consecutive", "rbf2"}
    assert "losses" not in run["measurements"]
    verdict = verdicts.judge(PAPER.claim("peng2019.7a"), PAPER, [run], "quick")
    assert verdict["verdict"] == "inconclusive" and "collapsed" in verdict["reason"]


def test_the_loss_is_timed_as_a_share_of_a_step(scratch) -> None:
    run = ensure(unit(catalogue.EXPERIMENTS, "peng2019.overhead", "quick", 0, {"rounds": 1, "batch": 8}))
    found = run["measurements"]
    assert judged(run) == {"9"}
    assert all(0 < share < 100 for share in found["overhead"]["percent"].values())
    names = ("mmd", "bilinear", "rbf2", "rbf3")
    assert found["gaps"]["below_3_percent"] == [3 - found["overhead"]["percent"][name] for name in names]


def test_networks_are_counted(scratch) -> None:
    networks = ensure(unit(catalogue.EXPERIMENTS, "peng2019.cost", "quick", 0))["measurements"]["networks"]
    expected = {"ResNet-14": (0.181, 26.7), "ResNet-20": (0.278, 40.8), "ResNet-110": (1.737, 253.2)}
    for net, (parameters, mac) in expected.items():
        assert networks[net]["parameters"] / 1e6 == pytest.approx(parameters, abs=5e-4)
        assert networks[net]["mac"] / 1e6 == pytest.approx(mac, abs=0.05)
    assert networks["MobileNetV2 0.5"]["parameters"] / 1e6 == pytest.approx(1.97, abs=5e-3)


def test_teachers_and_students_have_as_many_features() -> None:
    for experiment in catalogue.PAPERS["peng2019"].values():
        for config in experiment.configs.values():
            if "teacher" not in config:
                continue
            shape = {"digits": (1, 8, 8), "mnist": (1, 28, 28)}.get(config["data"], (3, 32, 32))
            images, sizes = torch.zeros(2, *shape), set()
            for net in (config["net"], config["teacher"]):
                with torch.no_grad():
                    sizes.add(with_features(NETS[net]().eval(), images)[0].shape[1])
            assert len(sizes) == 1, experiment.name


def small(seed_classes: int) -> Any:
    return lambda: VGG(((2,), (2,)), hidden=64, classes=seed_classes, side=32)


def test_cifar10_takes_its_beta_from_mnist_and_its_teacher_from_the_public(
    small_cifar: SmallCifar, scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (80, 28, 28), dtype=np.uint8), np.arange(80) % 10
    np.savez(scratch / "mnist.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    monkeypatch.setitem(NETS, "ResNet-14 with projections", small(10))
    tiny = {"epochs": 1, "batch": 40, "lr": 0.01, "val_fraction": 0.25}
    name = "peng2019.resnet14_cifar10_5ep"
    changes = {key: {"recipe": tiny} for key in ("peng2019.mnist_teacher", "peng2019.mnist")}
    run = small_cifar(name, changes | {name: {"recipe": {**BENCHMARK, "epochs": 1, "batch": 6}}})
    found = run["measurements"]
    assert set(found["accuracy"]) == {"ce", "kd", "rbf2"}
    assert found["beta"]["rbf2"]["chosen"] in (3.0, 30.0, 300.0) and found["beta"]["rbf2"]["validation"] == []
    assert judged(run) == {"1c", "2l", "7a", "7b", "8a", "8b"}


def test_cifar100_runs_fill_the_printed_cells(scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every experiment for a GPU, on noise, with small networks and one step."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8), np.arange(200) % 100
    monkeypatch.setenv("SHRINKBOOK_DATA", str(scratch))
    np.savez(scratch / "cifar100.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    experiments = {}
    for key, one in catalogue.PAPERS["peng2019"].items():
        if not one.gpu:
            continue
        config = dict(one.configs["standard"], threads=1, dtype="float32")
        recipe = {**config["recipe"], "epochs": 1, "batch": 50, "lr": 1e-3, "augment": False}
        config["recipe"] = {**recipe, "val_fraction": 0.5 if "val_fraction" in recipe else 0.0}
        if "samplers" in config:
            superclass = {"superclass, k = 10": {"per_class": 10, "superclasses": 6}}
            config["samplers"] = {"uniform": config["samplers"]["uniform"], **superclass}
        elif config.get("sampler"):
            config["sampler"] = {"per_class": 1}
        experiments[key] = dataclasses.replace(one, configs={"standard": config})
        for net in {config["net"], config.get("teacher", config["net"])}:
            monkeypatch.setitem(NETS, net, small(100))
    runs = {key: ensure(unit(experiments, key, "standard", 0), "cpu") for key in experiments}
    main, benchmark = runs["peng2019.resnet110_to_resnet20"], runs["peng2019.resnet56_to_resnet20_benchmark"]
    accuracy = main["measurements"]["accuracy"]
    printed = {"CE": accuracy["ce"], "KD": accuracy["kd"], "CCKD": accuracy["rbf2"]}
    assert main["cells"] == {"table1": {"ResNet-20": printed}}
    names = ("peng2019.resnet20_beta", "peng2019.resnet110_to_resnet20")
    tuned, used = (runs[name]["measurements"]["beta"] for name in names)
    assert all(used[kernel]["beta"] == [tuned[kernel]["chosen"]] for kernel in ("mmd", "bilinear", "rbf2", "rbf3"))
    assert set(benchmark["cells"]["benchmark"]) == {"student", "KD", "CC"}
    assert list(benchmark["cells"]["benchmark"]["CC"]) == ["resnet56 to resnet20"]
    assert judged(main) >= {"1a", "1c", "2a", "2c", "2d", "2e", "7a", "8a"}
    assert judged(benchmark) == {"10a", "10b", "10c"}
    by_sampler = runs["peng2019.resnet20_samplers"]  # the parent's batches were not uniform: trained again
    assert {"uniform kd", "uniform cckd"} < {row["phase"] for row in by_sampler["history"]}
    assert set(by_sampler["measurements"]["samplers"]) == {"uniform", "superclass, k = 10"}


def test_similarity_maps_are_sorted_by_class() -> None:
    labels = torch.tensor([1, 0, 1, 0, 1, 0, 1, 0])
    features = torch.eye(2)[labels]
    rows = kernels.similarity_map(features, labels)
    assert rows == ["100 100 100 0 0 0"] * 3 + ["0 0 0 100 100 100"] * 3


def test_tables_and_figures_are_drawn_from_runs(digits, by_sampler) -> None:
    runs = [digits, digits]
    table = pages.arms_table(runs)
    assert list(table.index) == list(peng2019.tables.NAMES.values())
    assert table.loc["distillation (KD)", "accuracy, %"] == round(digits["measurements"]["accuracy"]["kd"], 3)
    assert table.loc["KD + CC, naive MMD", "beta, seed by seed"].count(",") == 1
    gains = pages.samplers_table([by_sampler])
    assert list(gains.index) == ["uniform", *by_sampler["config"]["samplers"]]
    assert len(pages.losses_picture(runs).axes) == 2
    assert len(pages.similarity_picture(digits).axes) == 4  # three maps and a scale
    assert len(pages.beta_picture(runs).axes) == 4
    assert len(pages.order_picture(runs).axes) == 2
    assert pages.series_error().tolist() == pytest.approx([0.191, 0.047, 0.009, 0.0014, 0.0002], rel=0.06, abs=5e-5)
