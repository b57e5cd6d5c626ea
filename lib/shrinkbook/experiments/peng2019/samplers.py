"""Batches by class and by superclass: for each sampler and k, distillation with and without congruence."""

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.peng2019.kernels import DEFAULT
from shrinkbook.experiments.peng2019.students import sampler_of, teacher_of, train_student


def by_sampler(run: Context) -> None:
    """Both arms of every sampler share its batches; beta is the one that the parent chose.

    Uniform batches are the parent's, or trained here where the settings name them.
    """
    teacher, parent = teacher_of(run), run.parents[run.config["betas_from"]]["measurements"]
    beta = parent["beta"][DEFAULT]["chosen"]
    found = {"uniform": {"kd": parent["accuracy"]["kd"], "cckd": parent["accuracy"][DEFAULT]}}
    for name, settings in run.config["samplers"].items():
        sampler = sampler_of(run, teacher, settings)
        found[name] = {
            arm: train_student(run, f"{name} {arm}", teacher, DEFAULT, weight, sampler).test.accuracy
            for arm, weight in (("kd", 0.0), ("cckd", beta))
        }
        run.progress(f"{name}: KD {found[name]['kd']:.2f} %, with congruence {found[name]['cckd']:.2f} %")
    run.measurements["samplers"] = found
    run.measurements["beta"] = beta
    sizes = {name: settings["per_class"] for name, settings in run.config["samplers"].items() if settings}
    gained = {name: found[name]["cckd"] - found["uniform"]["cckd"] for name in sizes}
    twins = [(f"class, k = {k}", f"superclass, k = {k}") for k in sorted(set(sizes.values()))]
    run.measurements["gaps"] = {
        "few_above_uniform": [gain for name, gain in gained.items() if sizes[name] <= 4],
        "many_below_uniform": [-gain for name, gain in gained.items() if sizes[name] >= 8],
        "superclass_class_within_half": [
            0.5 - abs(gained[one] - gained[other]) for one, other in twins if one in gained and other in gained
        ],
    }
