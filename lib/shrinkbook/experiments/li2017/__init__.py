"""Li et al. 2017, Pruning Filters for Efficient ConvNets: every experiment and its budgets.

`quick` has small twins of the networks on digits: mechanisms, not the paper's numbers. `standard` has the paper's
recipe for CIFAR-10 (a GPU), and public weights at budgets that two processor cores carry. ImageNet is not attempted.
"""

from shrinkbook.experiments.experiment import Experiment, counting
from shrinkbook.experiments.li2017.cost import costs
from shrinkbook.experiments.li2017.public import public_retrain, public_scan
from shrinkbook.experiments.li2017.retrain import iterative, retrain, single_layers, vgg_retrain
from shrinkbook.experiments.li2017.scan import depth, projection_scan, resnet_scan, vgg_scan
from shrinkbook.experiments.li2017.timing import wall_clock
from shrinkbook.experiments.steps import baseline
from shrinkbook.methods.filter_criteria import ACTIVATION_CRITERIA

TENTHS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
COARSE = [0.1, 0.3, 0.5, 0.7, 0.9]
FIVE = [0.3, 0.5, 0.6, 0.8, 0.9]
FIFTHS = [0.2, 0.4, 0.6]  # of 8 filters, 0.8 would leave one
SMALL = [0.1, 0.2, 0.3, 0.4]
ORDER = ["smallest", "random", "largest"]
EVERY = [*ORDER, "l2", *ACTIVATION_CRITERIA]
TIMED = ["VGG-16-pruned-A", "ResNet-56-pruned-B", "ResNet-110-pruned-B"]

# Section 4: baselines as in He et al. 2016; retraining a quarter of the epochs at the baseline's last rate.
HE2016 = {"epochs": 160, "batch": 128, "lr": 0.1, "milestones": [0.5, 0.75], "augment": True}
RETRAIN = {"epochs": 40, "batch": 128, "lr": 0.001, "augment": True}
TWO_EPOCHS = {**RETRAIN, "epochs": 2}
# The same shape of schedule on 400 digits.
DIGITS = {"epochs": 20, "batch": 32, "lr": 0.1, "milestones": [0.5, 0.75]}
# A quarter of these epochs at the last rate would be 60 steps, too few to converge; see deviation digits_budget.
DIGITS_RETRAIN = {"epochs": 10, "batch": 32, "lr": 0.01}


def _digits(net: str, **settings: object) -> dict[str, dict[str, object]]:
    return {"quick": {"data": "digits", "net": net, "schedule": "20 epochs", **settings}}


def _cifar(net: str, **settings: object) -> dict[str, dict[str, object]]:
    return {"standard": {"data": "cifar10", "net": net, "schedule": "paper", "dtype": "bfloat16", **settings}}


def _paper_recipe(name: str, net: str, models: list[str], hours: float) -> list[Experiment]:
    """Baseline, scan and retraining of one CIFAR network at the paper's schedule, for a GPU."""
    vgg = net == "VGG-16"
    scan = {"ratios": TENTHS, "criteria": EVERY if vgg else ORDER, **({"selection_ratios": SMALL} if vgg else {})}
    retraining = {"models": models, "strategy": "greedy", "retrain": RETRAIN, "scratch": HE2016}
    return [
        Experiment(
            f"li2017.{name}", baseline, _cifar(net, recipe=HE2016), seconds={"standard": 3600 * hours}, gpu=True,
        ),
        Experiment(
            f"li2017.{name}_scan", vgg_scan if vgg else resnet_scan, _cifar(net, **scan),
            parents=(f"li2017.{name}",), seconds={"standard": 600}, gpu=True,
        ),
        Experiment(
            f"li2017.{name}_retrain", retrain, _cifar(net, **retraining),
            parents=(f"li2017.{name}",), seconds={"standard": 3600 * hours * 1.25 * len(models)}, gpu=True,
        ),
    ]  # fmt: skip


_ALL = [
    counting("li2017.cost", costs, seconds=2),
    Experiment(
        "li2017.wall_clock", wall_clock,
        {
            "quick": {"models": TIMED, "batch": 8, "rounds": 3, "warmup": 1, "schedule": "batch 8, one thread"},
            "standard": {"models": TIMED, "batch": 128, "rounds": 10, "warmup": 2, "schedule": "batch 128"},
        },
        seeds={"standard": 3}, seconds={"quick": 3, "standard": 60}, alone=True,
    ),
    Experiment(
        "li2017.wall_clock_imagenet", wall_clock,
        {
            "standard": {
                "models": ["ResNet-34-pruned-B"], "batch": 128, "rounds": 3, "warmup": 1, "schedule": "batch 128",
            }
        },
        seeds={"standard": 3}, seconds={"standard": 120}, alone=True,
    ),
    # Version 2 of the networks on digits: recorded anew, on one machine with all runs that build on them.
    Experiment("li2017.digits_vgg", baseline, _digits("digits VGG", recipe=DIGITS), seconds={"quick": 2}, version=2),
    Experiment(
        "li2017.digits_vgg_scan", vgg_scan, _digits("digits VGG", ratios=FIVE, criteria=EVERY, selection_ratios=SMALL),
        parents=("li2017.digits_vgg",), seconds={"quick": 6}, version=2,  # 1 averaged signed differences of l1 and l2
    ),
    Experiment(
        "li2017.digits_vgg_retrain", vgg_retrain,
        _digits("digits VGG", models=["digits VGG-pruned-A"], strategy="greedy", retrain=DIGITS_RETRAIN, scratch=DIGITS,
                layer_ratios=[0.5, 0.9], layer_epochs=2),
        parents=("li2017.digits_vgg",), seconds={"quick": 6},
    ),
    Experiment(
        "li2017.digits_resnet", baseline, _digits("digits ResNet", recipe=DIGITS), seconds={"quick": 4}, version=2
    ),
    Experiment(
        "li2017.digits_resnet_scan", resnet_scan, _digits("digits ResNet", ratios=FIFTHS, criteria=["smallest"]),
        parents=("li2017.digits_resnet",), seconds={"quick": 4},
    ),
    Experiment(
        "li2017.digits_resnet_retrain", retrain,
        _digits("digits ResNet", models=["digits ResNet-pruned-B"], strategy="greedy", retrain=DIGITS_RETRAIN,
                scratch=DIGITS),
        parents=("li2017.digits_resnet",), seconds={"quick": 5},
    ),
    Experiment(
        "li2017.digits_projection", baseline, _digits("digits ResNet with projections", recipe=DIGITS),
        seconds={"quick": 3}, version=2,
    ),
    Experiment(
        "li2017.digits_projection_scan", projection_scan,
        _digits("digits ResNet with projections", ratios=FIFTHS),
        parents=("li2017.digits_projection",), seconds={"quick": 2},
    ),
    *_paper_recipe("vgg16", "VGG-16", ["VGG-16-pruned-A"], 0.3),
    *_paper_recipe("resnet56", "ResNet-56", ["ResNet-56-pruned-A", "ResNet-56-pruned-B"], 0.5),
    *_paper_recipe("resnet110", "ResNet-110", ["ResNet-110-pruned-A", "ResNet-110-pruned-B"], 1.0),
    Experiment(
        "li2017.vgg16_iterative", iterative,
        _cifar("VGG-16", models=["VGG-16-pruned-A"], strategy="greedy", retrain=RETRAIN),
        parents=("li2017.vgg16",), seconds={"standard": 3600 * 0.7}, gpu=True,
    ),
    Experiment(
        "li2017.vgg16_layer_retrain", single_layers,
        _cifar("VGG-16", retrain=RETRAIN, layer_ratios=[0.5, 0.7, 0.9], layer_epochs=20),
        parents=("li2017.vgg16",), seconds={"standard": 3600 * 1.5}, gpu=True,
    ),
    Experiment(
        "li2017.depth", depth, {"standard": {"data": "cifar10", "schedule": "paper"}},
        parents=("li2017.resnet56_scan", "li2017.resnet110_scan"), seconds={"standard": 1}, gpu=True,
    ),
    Experiment(
        "li2017.resnet56_public_scan", public_scan,
        _cifar("ResNet-56", schedule="public weights", ratios=COARSE, criteria=ORDER),
        seeds={"standard": 1}, seconds={"standard": 2400},
    ),
    Experiment(
        "li2017.resnet56_public_retrain_2ep", public_retrain,
        _cifar("ResNet-56", schedule="public weights, 2 epochs", models=["ResNet-56-pruned-A", "ResNet-56-pruned-B"],
               strategy="greedy", retrain=TWO_EPOCHS),
        seeds={"standard": 1}, seconds={"standard": 400},
    ),
]  # fmt: skip

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
