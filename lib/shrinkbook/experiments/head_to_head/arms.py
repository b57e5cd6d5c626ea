"""The arms of the comparison: seven methods at common budgets, what each has as a knob, controls and combinations.

A budget is what is left when the same share of the inner maps of every block goes: multiply-accumulates, and bytes for
clustering, which saves no multiply-accumulates. Every method gets its knob from the budget, if it has one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

HALF, QUARTER = 0.5, 0.75  # shares of the maps that go where two methods are combined


@dataclass(frozen=True)
class Method:
    """How a method is called in tables, whose it is (empty for a control), and what its user can set."""

    label: str
    paper: str
    knob: str


METHODS = {
    "original": Method("original", "", "none"),
    "tuned": Method("original, tuned as long", "", "none"),
    "thin": Method("thin network, trained plainly", "", "share of the maps"),
    "pruned": Method("filter pruning", "li2017", "share of the filters"),
    "clustered": Method("kernel clustering", "son2018", "centroids"),
    "tucker": Method("Tucker-2", "kim2016", "share of the full ranks"),
    "vbmf": Method("Tucker-2, ranks by EVBMF", "kim2016", "none, ranks are estimated"),
    "lccl": Method("LCCL", "dong2017", "which convolutions get gates"),
    "searched": Method("MetaPruning", "liu2019", "budget of the search"),
    "dafl": Method("data-free student (DAFL)", "chen2019", "share of the student's maps"),
    "congruent": Method("student by KD + CC", "peng2019", "share of the student's maps"),
    "pruned+clustered": Method("pruned, then clustered", "li2017, son2018", "both"),
    "pruned+tucker": Method("pruned, then Tucker-2", "li2017, kim2016", "both"),
    "pruned+congruent": Method("pruned, then KD + CC", "li2017, peng2019", "share of the filters"),
    "tucker+clustered": Method("Tucker-2, then clustered", "kim2016, son2018", "both"),
}
COMBINED = tuple(name for name in METHODS if "+" in name)


@dataclass(frozen=True)
class Arm:
    """One way from the trained network to a smaller one.

    Args:
        name: unique; method and percent of the maps that stay, or the method's own setting.
        method: key of :data:`METHODS`.
        wanted: steps in their order, each followed by its share of the training: kind, and the value or, as a float,
            the budget that decides it (share of the maps that go). ``search`` becomes ``widths``.
        removed: the budget; None where the method has a point of its own.
        random: the weights are drawn anew, by the seed alone, before they are trained.
        teaching: what is trained on: ``labels``, the trained network as a ``teacher`` (KD + CC), a ``generator`` that
            asks it (DAFL), or ``nothing``.
        alone: the arms of a combination's first and second step, each as it would be by itself.
    """

    name: str
    method: str
    wanted: tuple[tuple[str, Any], ...] = ()
    removed: float | None = None
    random: bool = False
    teaching: Literal["labels", "teacher", "generator", "nothing"] = "labels"
    alone: tuple[str, ...] = ()


def named(method: str, removed: float) -> str:
    """The name of a method's arm at a budget: the percent of the maps that stay."""
    return f"{method} {round(100 * (1 - removed))}"


def arms(removed: Sequence[float], centroids: int) -> list[Arm]:
    """Every arm, controls first and combinations last.

    Args:
        removed: the budgets; the combinations need :data:`HALF` and :data:`QUARTER`.
        centroids: of clustering where no budget decides it.

    Raises:
        ValueError: a budget that the combinations need is missing.
    """
    if not {HALF, QUARTER} <= set(removed):
        raise ValueError(f"budgets {list(removed)}: combinations need {HALF} and {QUARTER} among them")
    found = [Arm("original", "original", teaching="nothing"), Arm("tuned", "tuned")]
    for share in removed:
        prune = (("prune", share),)
        found += [
            Arm(named("pruned", share), "pruned", prune, share),
            Arm(named("clustered", share), "clustered", (("cluster", share),), share),
            Arm(named("tucker", share), "tucker", (("tucker", share),), share),
            Arm(named("searched", share), "searched", (("search", share),), share, random=True),
            Arm(named("thin", share), "thin", prune, share, random=True),
            Arm(named("congruent", share), "congruent", prune, share, random=True, teaching="teacher"),
            Arm(named("dafl", share), "dafl", prune, share, random=True, teaching="generator"),
        ]
    few = f"clustered C{centroids}"
    half = {method: named(method, HALF) for method in ("pruned", "tucker", "congruent")}
    low = {method: named(method, QUARTER) for method in ("pruned", "tucker", "congruent")}
    halved, cluster = ("prune", HALF), ("cluster", centroids)
    return [
        *found,
        Arm(few, "clustered", (cluster,)),
        Arm("vbmf", "vbmf", (("tucker", "vbmf"),)),
        Arm("lccl first", "lccl", (("gate", "first"),)),
        Arm("lccl both", "lccl", (("gate", "both"),)),
        Arm(named("pruned+clustered", HALF), "pruned+clustered", (halved, cluster), HALF, alone=(half["pruned"], few)),
        Arm(
            named("pruned+tucker", QUARTER), "pruned+tucker", (halved, ("tucker", QUARTER)), QUARTER,
            alone=(half["pruned"], low["tucker"]),
        ),
        *[
            Arm(
                named("pruned+congruent", share), "pruned+congruent", (("prune", share),), share, teaching="teacher",
                alone=(parents["pruned"], parents["congruent"]),
            )
            for share, parents in ((HALF, half), (QUARTER, low))
        ],
        Arm(
            named("tucker+clustered", HALF), "tucker+clustered", (("tucker", HALF), cluster), HALF,
            alone=(half["tucker"], few),
        ),
    ]  # fmt: skip
