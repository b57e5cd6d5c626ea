"""Teacher and students: with the data, with noise, with other data, and with a generator under any of its losses."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from shrinkbook.experiments.chen2019.images import alternative, resized
from shrinkbook.experiments.chen2019.look import agreement, class_means, likeness, matched, picture
from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.loop import Arm, Steps, fresh_generator
from shrinkbook.experiments.networks import NETS
from shrinkbook.experiments.run import load_parent
from shrinkbook.methods.dafl import Generator, Teacher, Weights
from shrinkbook.methods.dafl_training import joint_training, noise, student_step, two_stage_training
from shrinkbook.methods.distillation import distillation_loss
from shrinkbook.nets import initialize
from shrinkbook.training.evaluate import at_chance
from shrinkbook.training.fit import cross_entropy
from shrinkbook.training.recipe import Recipe

LOSSES: dict[str, tuple[bool, bool, bool]] = {  # one-hot, entropy, activation: the rows of the ablation
    "dafl": (True, True, True),
    "two stages": (True, True, True),
    "untrained": (False, False, False),
    "oh": (True, False, False),
    "ie": (False, True, False),
    "a": (False, False, True),
    "oh+a": (True, False, True),
    "oh+ie": (True, True, False),
    "ie+a": (False, True, True),
}
WITHOUT_ENTROPY = ("oh", "a", "oh+a")
SEEN = 500  # generated images that class means are taken of
KEPT = ("dafl", "oh")  # arms whose images are kept for the figure, of one seed
ROWS = {  # our arms by the rows of the printed tables
    "teacher": "teacher",
    "back-propagation": "standard back-propagation",
    "distillation": "knowledge distillation",
    "noise": "normal distribution",
    "alternative": "alternative data",
    "dafl": "DAFL",
}
ABLATION = {  # and of the ablation; the paper's row without any loss has the noise's number
    "noise": "none",
    "oh": "L_oh",
    "ie": "L_ie",
    "a": "L_a",
    "oh+a": "L_oh + L_a",
    "oh+ie": "L_oh + L_ie",
    "ie+a": "L_ie + L_a",
    "dafl": "L_oh + L_ie + L_a",
}


def with_data(run: Context) -> None:
    """The teacher, and two students that have its data: back-propagation, and distillation beside nothing else."""
    prepare(run)
    recipe, found = run.recipe(run.config["recipe"]), run.measurements.setdefault("accuracy", {})
    model = initialize(NETS[run.config["net"]](), run.seed)
    run.train(model, recipe, "teacher", resume=run.unit.checkpoint)
    found["teacher"] = run.stage("teacher", model)
    teacher = frozen(run, model)

    def distil(student: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = student(images)
        with torch.no_grad():
            answers, _ = teacher(images)
        return distillation_loss(logits, answers, run.config["temperature"]), logits

    for name, objective in (("back-propagation", cross_entropy), ("distillation", distil)):
        student = fresh_student(run)
        resume = run.unit.part(name)
        run.train(student, recipe, name, resume=resume, objective=objective)
        found[name] = run.stage(name, student)
        run.measurements.setdefault("filters", {})[name] = likeness(student, model)
        run.progress(f"{name}: {found[name]:.2f} %")
    cells(run, found)


def without_data(run: Context) -> None:
    """Every arm of the settings, each with a student of the same starting weights and as many iterations.

    ``noise`` and ``alternative`` distil on images that no generator made; the others are those of ``LOSSES``.
    """
    prepare(run)
    assert run.data is not None
    model = load_parent(run, NETS[run.config["net"]]())
    teacher = frozen(run, model)
    (parent,) = run.parents.values()
    found: dict[str, float] = run.measurements.setdefault("accuracy", dict(parent["measurements"]["accuracy"]))
    best, entropy, shut = (run.measurements.setdefault(key, {}) for key in ("best_on_test", "entropy", "collapsed"))
    real = class_means(run.data.normalise(run.data.x_train), run.data.y_train, run.data.classes)
    for name in run.config["arms"]:
        student = fresh_student(run)
        generator = None if name in ("noise", "alternative") else fresh_generator(run)
        history = trained(run, name, student, generator, teacher)
        found[name] = run.stage(name, student)
        best[name] = max(row["test_accuracy"] for row in history)  # named only: a choice by the test images
        entropy[name] = history[-1]["mean_entropy"]  # None if it diverged, which is no collapse to few classes
        shut[name] = at_chance(found[name], run.data.classes) or not history[-1]["finite"]
        run.measurements.setdefault("filters", {})[name] = likeness(student, model)
        images = sample(run, name, generator)
        with torch.no_grad():
            chosen = teacher(images)[0].argmax(1)
        means = class_means(images, chosen, run.data.classes)
        run.measurements.setdefault("means", {})[name] = agreement(means, real)
        if name in KEPT and run.seed == 0:
            keep(run, name, images, chosen, means, real)
        if name == "dafl":
            run.measurements["first_layer"] = matched(student, model)
        run.progress(f"{name}: {found[name]:.2f} %")
    if shut.get("dafl"):
        run.status = "collapsed"
    run.measurements["filters"]["untrained student"] = likeness(fresh_student(run), model)
    compare(run)
    cells(run, found)


def trained(
    run: Context, name: str, student: nn.Module, generator: Generator | None, teacher: Teacher
) -> list[dict[str, Any]]:
    """Train one arm; its history."""
    assert run.data is not None
    config = run.config
    recipe = run.recipe(config["student_recipe"])
    count, batch, tau = config["iterations"], recipe.batch, config["temperature"]
    if generator is None:
        arm = Arm(run, name, {"student": student}, {"student": recipe})
        return arm.train(images_only(run, name, student, arm, teacher))
    recipes: dict[str, Recipe] = {"student": recipe, "generator": run.recipe(config["generator_recipe"])}
    arm = Arm(run, name, {"student": student, "generator": generator}, recipes)
    optimisers = arm.optimisers["generator"], arm.optimisers["student"]
    weights = weighed(config["loss_weights"], LOSSES[name])

    def draws(source: torch.Generator) -> Iterator[Tensor]:
        return (noise(batch, generator.latent, source, run.device) for _ in range(count))

    if name != "two stages":
        return arm.train(
            lambda source: joint_training(
                generator, student, teacher, optimisers, draws(source), weights, temperature=tau
            )
        )
    both = (generator, student, teacher, optimisers)
    arm.train(lambda source: two_stage_training(*both, (draws(source), []), weights, temperature=tau), "generator")
    return arm.train(lambda source: two_stage_training(*both, ([], draws(source)), weights, temperature=tau), "student")


def images_only(run: Context, name: str, student: nn.Module, arm: Arm, teacher: Teacher) -> Steps:
    """Steps of an arm without a generator: fresh noise, or draws from the other data."""
    assert run.data is not None
    batch, shape = arm.recipes["student"].batch, run.data.x_test.shape[1:]
    others = alternative(run.config["alternative"], run.data) if name == "alternative" else None

    def draw(source: torch.Generator) -> Tensor:
        if others is None:
            return torch.randn(batch, *shape, generator=source).to(run.device)
        return others[torch.randint(len(others), (batch,), generator=source).to(others.device)]

    def steps(source: torch.Generator) -> Any:
        for _ in range(run.config["iterations"]):
            yield student_step(student, teacher, arm.optimisers["student"], draw(source), run.config["temperature"])

    return steps


def prepare(run: Context) -> None:
    """The data of the settings at the side that the networks read, normalised by the authors' constants."""
    run.data = resized(run.load_data(normalise=run.config["normalise"]), run.config["side"])


def frozen(run: Context, model: nn.Module) -> Teacher:
    """The trained network as a teacher."""
    return Teacher(model.to(run.device).eval().requires_grad_(False), run.config["features"])


def fresh_student(run: Context) -> nn.Module:
    """The same starting weights in every arm of a seed; not those of the teacher's seed."""
    return initialize(NETS[run.config["student"]](), run.seed + 1000).to(run.device)


def weighed(settings: dict[str, float], on: tuple[bool, bool, bool]) -> Weights:
    """The weights of the losses that an arm has, 0 for the others."""
    full = Weights(**settings)
    return Weights(full.one_hot * on[0], full.entropy * on[1], full.activation * on[2])


@torch.no_grad()
def sample(run: Context, name: str, generator: Generator | None) -> Tensor:
    """Images of the kind an arm's student saw, from noise of its own."""
    assert run.data is not None
    source = torch.Generator().manual_seed(run.seed + 3000)
    if generator is not None:
        return generator(noise(SEEN, generator.latent, source, run.device))
    if name == "alternative":
        return alternative(run.config["alternative"], run.data)[:SEEN]
    return torch.randn(SEEN, *run.data.x_test.shape[1:], generator=source).to(run.device)


def keep(run: Context, name: str, images: Tensor, chosen: Tensor, means: Tensor, real: Tensor) -> None:
    """For the figure: the first generated images, one of each class the teacher sees, class means beside real ones."""
    first = [(chosen == c).nonzero().flatten()[:1].tolist() for c in range(len(real))]
    run.measurements.setdefault("pictures", {})[name] = {
        "images": [picture(image) for image in images[: len(real)]],
        "by class": [picture(images[index[0]]) if index else None for index in first],
        "means": [picture(mean) for mean in means],
    }
    run.measurements["pictures"]["real"] = [picture(mean) for mean in real]


def compare(run: Context) -> None:
    """The differences that claims read, of the arms that this run has; accuracies in points, entropies as shares."""
    assert run.data is not None
    found, entropy = run.measurements["accuracy"], run.measurements["entropy"]
    gaps: dict[str, Any] = run.measurements.setdefault("gaps", {})
    if "noise" in found:
        gaps["noise_above_chance"] = found["noise"] - 100 / run.data.classes
    filters = run.measurements["filters"]
    if filters.get("dafl") is not None:
        gaps["filters"] = filters["dafl"] - filters["untrained student"]
    if not set(ABLATION) <= set(found):
        return
    gaps["noise_over_losses_without_entropy"] = [found["noise"] - found[name] for name in WITHOUT_ENTROPY]
    gaps["one_more_than_entropy"] = [found[name] - found["ie"] for name in ("oh+ie", "ie+a")]
    gaps["all_three"] = [found["dafl"] - found[name] for name in ("oh+ie", "ie+a")]
    if any(entropy[name] is None for name in ("dafl", *WITHOUT_ENTROPY)):
        return
    gaps["entropy_with_and_without"] = [entropy["dafl"] - entropy[name] for name in WITHOUT_ENTROPY]
    gaps["entropy_below_half"] = [0.5 - entropy[name] for name in WITHOUT_ENTROPY]


def cells(run: Context, found: dict[str, float]) -> None:
    """The printed cells that this run has an arm for: table -> column in the settings."""
    for table, column in run.config["fills"].items():
        names = ABLATION if table == "table2" else ROWS
        for arm, row in names.items():
            if arm in found:
                run.cell(f"{table}/{row}/{column}", found[arm])
