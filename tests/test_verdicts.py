"""Every verdict word from synthetic runs, the boundaries of each rule, and the statistics against scipy."""

import base64
import json
import time
import zlib

import numpy as np
import pytest
from scipy import stats

from shrinkbook.evidence import statistics, verdicts
from shrinkbook.evidence.paper import Cell, Claim, Paper, Table
from shrinkbook.evidence.samples import EvidenceError
from shrinkbook.evidence.statistics import equal_spread
from shrinkbook.evidence.verdicts import agree, judge, judge_paper, words

EXPERIMENT = "toy2020.run"
ORDER = ("order.smallest", "order.random", "order.largest")


def make_claim(kind, where=("table1",), **extra):
    rules = {} if kind == "structural" else {"margin": 0.5}
    given = rules | {"experiments": (EXPERIMENT,), "stable": True, "source_status": "verified"} | extra
    return Claim("toy2020", "toy2020.1", 1, kind, "It works.", tuple(where), **given)


def make_paper(*claims, status="verified"):
    printed = [
        ("base", "error", "7.00"),
        ("small", "error", "6.60"),
        ("base", "flop", "3.13e8"),
        ("small", "flop", "34.2"),
    ]
    cells = tuple(Cell("table1", row, column, value, "", status, "") for row, column, value in printed)
    tables = {"table1": Table("table1", "Results.", cells)}
    return Paper("toy2020", "Toy", "A", "V", 2020, "1", "text", tables, {}, (), claims)


def make_run(seed=0, error=None, base=None, flop=None, schedule="paper", data="cifar10", net="toy", **extra):
    """A run file with the error of `small`, the error and flop of `base`; anything else by keyword."""
    cells = {"small": {}, "base": {}}
    for row, column, value in (("small", "error", error), ("base", "error", base), ("base", "flop", flop)):
        if value is not None:
            cells[row][column] = value
    run = {
        "schema": 1,
        "experiment": EXPERIMENT,
        "version": 1,
        "profile": "standard",
        "seed": seed,
        "run_id": f"{seed:016x}",
        "config": {"schedule": schedule, "data": data, "net": net},
        "parents": [],
        "status": "finished",
        "stages": {},
        "cells": {"table1": cells},
        "measurements": {},
        "history": [],
        "seconds": {},
        "energy": {},
        "provenance": {},
    }
    return run | extra


def verdict(claim, runs, profile="standard", status="verified"):
    found = judge(claim, make_paper(claim, status=status), runs, profile)
    assert list(found) == list(verdicts.KEYS)
    assert found["verdict"] in verdicts.WORDS
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def level(errors, margin=0.5, better="lower", profile="standard", **extra):
    claim = make_claim("level", ["table1/small/error"], margin=margin, better=better, requires="paper")
    return verdict(claim, [make_run(seed, error, **extra) for seed, error in enumerate(errors)], profile)


def orders(triples, margin=0.5, **extra):
    names = ("smallest", "random", "largest")
    runs = [
        make_run(seed, measurements={"order": dict(zip(names, triple, strict=True))}, **extra)
        for seed, triple in enumerate(triples)
    ]
    return verdict(make_claim("order", order=ORDER, margin=margin), runs)


def gaps(values, margin=0.5):
    runs = [make_run(seed, measurements={"gaps": {"x": value}}) for seed, value in enumerate(values)]
    return verdict(make_claim("order", gap="gaps.x", margin=margin), runs)


# printed digits


@pytest.mark.parametrize(
    ("ours", "printed", "word"),
    [
        (313463808, "3.13e8", "reproduced"),
        (90907264, "9.09e7", "reproduced"),
        (19962560, "1.99e7", "reproduced"),  # truncates
        (13.77, "13.7", "reproduced"),  # truncates
        (34.1936, "34.2", "reproduced"),
        (7.41, "7.5", "close"),
        (34.3, "34.2", "close"),
        (34.39, "34.2", "close"),  # truncates to 34.3
        (34.4, "34.2", "differs"),
        (34.0, "34.2", "differs"),
        (34.05, "34.2", "close"),  # half up, not half even and not the float below 34.05
        (99_950_000, "1.00e8", "reproduced"),  # rounds over a power of ten
        (2.675, "2.68", "reproduced"),  # the float is 2.67499..., its shortest decimal is not
        (-0.06, "-0.1", "reproduced"),
        (0.06, "-0.1", "close"),
        (11, "11", "reproduced"),
        (float("nan"), "34.2", "differs"),
    ],
)
def test_agreement_follows_the_printed_digits(ours, printed, word):
    assert agree(ours, printed) == word


def test_structural_takes_the_worst_cell():
    claim = make_claim("structural", ["table1/base/flop", "table1/small/flop"])

    def result(first, second):
        cells = {"table1": {"base": {"flop": first}, "small": {"flop": second}}}
        return verdict(claim, [make_run(cells=cells, profile="quick")], "quick")

    assert result(313463808, 34.19)["verdict"] == "reproduced"
    assert result(313463808, 34.31)["verdict"] == "close"
    wrong = result(300000000, 34.31)
    assert wrong["verdict"] == "differs"
    assert "table1/base/flop is 3e+08, printed 3.13e8" in wrong["reason"]
    assert [cell["word"] for cell in wrong["cells"]] == ["differs", "close"]
    assert [cell["ours"] for cell in wrong["cells"]] == [300000000, 34.31]


def test_structural_without_a_value_says_which_cell():
    claim = make_claim("structural", ["table1/base/flop", "table1/small/flop"], cost="a minute")
    found = verdict(claim, [make_run(flop=313463808)])
    assert found["verdict"] == "not attempted"
    assert "table1/small/flop" in found["reason"] and "table1/base/flop" not in found["reason"]
    assert "cost: a minute" in found["reason"]


def test_structural_needs_a_finished_run_and_looks_in_every_experiment():
    claim = make_claim("structural", ["table1/base/flop"], experiments=(EXPERIMENT, "toy2020.other"))
    bad = make_run(flop=1, status="collapsed")
    good = make_run(flop=313463808, experiment="toy2020.other")
    assert verdict(claim, [bad])["verdict"] == "not attempted"
    found = verdict(claim, [bad, good])
    assert (found["verdict"], found["experiment"]) == ("reproduced", "toy2020.other")


# level, delta, ratio


def test_level_words():
    assert level([6.5, 6.6, 6.7])["verdict"] == "reproduced"
    worse = level([8.5, 8.6, 8.7])
    assert (worse["verdict"], worse["direction"]) == ("differs", "worse")
    better = level([4.5, 4.6, 4.7])
    assert (better["verdict"], better["direction"]) == ("differs", "better")
    assert level([4.5, 4.6, 4.7], better="higher")["direction"] == "worse"
    assert level([6.0, 7.0, 8.0])["verdict"] == "inconclusive"
    straddling = level([6.9, 7.1, 7.3])  # above the printed value, on both sides of the margin
    assert straddling["interval"][0] > 0 and straddling["verdict"] == "inconclusive"
    assert level([6.6, 6.6])["verdict"] == "inconclusive"


def test_level_margin_is_inclusive():
    assert level([7.1, 7.1, 7.1], margin=0.5)["verdict"] == "reproduced"
    assert level([7.11, 7.11, 7.11], margin=0.5)["verdict"] == "differs"
    assert level([6.1, 6.1, 6.1], margin=0.5)["verdict"] == "reproduced"


def test_level_interval_is_scipys():
    errors = [6.4, 6.9, 6.7, 6.8]
    found = level(errors)
    low, high = stats.t.interval(0.90, 3, np.mean(errors), stats.sem(errors))
    assert found["interval"] == pytest.approx([low - 6.60, high - 6.60])
    assert (found["n"], found["ours"]) == (4, pytest.approx(6.7))
    assert found["sd"] == pytest.approx(np.std(errors, ddof=1))
    half = stats.t.ppf(0.95, 3) * np.std(errors, ddof=1) * np.sqrt(1 + 1 / 4)
    assert found["prediction"] == pytest.approx([6.7 - half, 6.7 + half])


def test_level_pools_the_column_but_not_rows_without_spread_or_other_networks():
    claim = make_claim("level", ["table1/small/error"], better="lower")
    ours, other = [6.5, 6.7, 6.9], [7.0, 7.5, 8.3]
    runs = [make_run(seed, a, b) for seed, (a, b) in enumerate(zip(ours, other, strict=True))]
    pooled = np.sqrt((2 * np.var(ours, ddof=1) + 2 * np.var(other, ddof=1)) / 4)
    found = verdict(claim, runs)
    assert found["sd"] == pytest.approx(pooled)
    half = stats.t.ppf(0.95, 4) * pooled / np.sqrt(3)
    assert found["interval"] == pytest.approx([0.1 - half, 0.1 + half])
    shared = [make_run(seed, a, 7.0) for seed, a in enumerate(ours)]
    assert verdict(claim, shared)["sd"] == pytest.approx(0.2)
    timed = [make_run(seed, a, b, net=None) for seed, (a, b) in enumerate(zip(ours, other, strict=True))]
    assert verdict(claim, timed)["sd"] == pytest.approx(0.2)  # rows of a run without a network are of several
    elsewhere = [make_run(9 + seed, None, b, data="imagenet") for seed, b in enumerate(other)]
    assert verdict(claim, shared + elsewhere)["sd"] == pytest.approx(0.2)


def test_rows_of_another_spread_do_not_lend_theirs():
    claim = make_claim("level", ["table1/small/error"], better="lower")
    steady, wild = [6.5, 6.6, 6.7], [2.0, 7.0, 12.0]
    runs = [make_run(seed, a, b) for seed, (a, b) in enumerate(zip(steady, wild, strict=True))]
    assert verdict(claim, runs)["verdict"] == "reproduced"
    assert verdict(claim, runs)["sd"] == pytest.approx(0.1)
    swapped = [make_run(seed, b, a) for seed, (a, b) in enumerate(zip(steady, wild, strict=True))]
    assert verdict(claim, swapped)["sd"] == pytest.approx(5.0)
    # The 5 % points of F with 2 and 2 degrees of freedom: 19 and its inverse.
    assert equal_spread([0.0, 1.0, 2.0], [0.0, 4.3, 8.6]) and equal_spread([0.0, 4.3, 8.6], [0.0, 1.0, 2.0])
    assert not equal_spread([0.0, 1.0, 2.0], [0.0, 4.4, 8.8]) and not equal_spread([0.0, 4.4, 8.8], [0.0, 1.0, 2.0])


def test_only_the_required_schedule_judges_a_level():
    short = level([6.6, 6.6, 6.6], schedule="short")
    assert short["verdict"] == "not attempted"
    assert "schedule paper" in short["reason"] and "schedule short on cifar10" in short["reason"]
    claim = make_claim("level", ["table1/small/error"], better="lower", requires="paper")
    mixed = [make_run(seed, 6.6) for seed in range(3)] + [make_run(7, 60.0, schedule="short")]
    assert (verdict(claim, mixed)["verdict"], verdict(claim, mixed)["n"]) == ("reproduced", 3)


@pytest.mark.parametrize("kind", ["level", "delta", "ratio"])
def test_quick_never_judges_a_level(kind):
    where = ["table1/small/error", "table1/base/error"][: 2 if kind == "delta" else 1]
    runs = [make_run(seed, 6.6, 7.0, profile="quick") for seed in range(5)]
    found = verdict(make_claim(kind, where, better="lower"), runs, "quick")
    assert (found["verdict"], found["ours"]) == ("not attempted", None)
    assert f"quick never judges a {kind}" in found["reason"]


def test_delta_is_paired_within_a_run():
    claim = make_claim("delta", ["table1/small/error", "table1/base/error"], better="lower", requires="paper")
    runs = [make_run(seed, base - 0.4 + 0.01 * seed, base) for seed, base in enumerate([5.0, 8.0, 11.0])]
    found = verdict(claim, runs)
    assert found["printed"] == "-0.40"
    assert (found["verdict"], found["ours"]) == ("reproduced", pytest.approx(-0.39))
    assert found["sd"] == pytest.approx(0.01)


def test_delta_between_runs_is_paired_only_among_relatives():
    claim = make_claim("delta", ["table1/small/error", "table1/base/error"], better="lower")
    bases = [make_run(seed, base=value, run_id=f"a{seed:015x}") for seed, value in enumerate([5.0, 8.0, 11.0])]
    parents = [[run["run_id"]] for run in bases]
    smalls = [
        make_run(seed, run["cells"]["table1"]["base"]["error"] - 0.4, run_id=f"b{seed:015x}", parents=parents[seed])
        for seed, run in enumerate(bases)
    ]
    paired = verdict(claim, bases + smalls)
    assert (paired["verdict"], paired["n"]) == ("reproduced", 3)
    assert "related" in paired["reason"]
    strangers = [run | {"parents": []} for run in smalls]
    loose = verdict(claim, bases + strangers)
    assert loose["verdict"] == "inconclusive" and "Welch" in loose["reason"]
    errors = [
        [run["cells"]["table1"][row]["error"] for run in runs] for row, runs in (("small", smalls), ("base", bases))
    ]
    low, high = stats.ttest_ind(*errors, equal_var=False).confidence_interval(0.90)
    assert loose["interval"] == pytest.approx([low + 0.4, high + 0.4])


def test_delta_by_measured_gap():
    claim = make_claim("delta", ["figure1"], gap="gaps.x", better="lower", printed="0.3")
    runs = [make_run(seed, measurements={"gaps": {"x": 0.3 + 0.01 * seed}}) for seed in range(3)]
    assert verdict(claim, runs)["verdict"] == "reproduced"


def test_collapsed_runs_stay_in_a_level():
    claim = make_claim("level", ["table1/small/error"], better="lower")
    good = [make_run(seed, 6.6) for seed in range(3)]
    assert verdict(claim, good)["verdict"] == "reproduced"
    low = verdict(claim, [*good, make_run(3, 90.0, status="collapsed")])
    assert (low["verdict"], low["n"], low["ours"]) == ("inconclusive", 4, pytest.approx(27.45))
    gone = verdict(claim, [*good, make_run(3, status="collapsed")])
    assert (gone["verdict"], gone["n"]) == ("inconclusive", 4)
    assert "seed 3" in gone["reason"]
    assert verdict(claim, [*good, make_run(3, 90.0, status="interrupted")])["verdict"] == "reproduced"


# order and trend


def test_order_words():
    assert orders([(90, 80, 70)] * 5)["verdict"] == "reproduced"
    assert orders([(70, 80, 90)] * 5)["verdict"] == "contradicted"
    assert orders([(90, 80, 70)] * 4 + [(80, 90, 70)])["verdict"] == "inconclusive"
    assert orders([(80, 90, 70)] * 5)["verdict"] == "inconclusive"  # one step reversed is not the whole order reversed
    few = orders([(90, 80, 70)] * 4)
    assert few["verdict"] == "inconclusive" and "n = 4" in few["reason"]


def test_order_gap_is_the_smallest_step_and_reaches_the_margin():
    found = orders([(90, 80, 79.5)] * 5)
    assert (found["verdict"], found["ours"], found["interval"]) == ("reproduced", 0.5, [0.5, 0.5])
    assert orders([(90, 80, 79.6)] * 5)["verdict"] == "inconclusive"
    assert orders([(79.5, 80, 90)] * 5)["verdict"] == "contradicted"
    assert orders([(79.6, 80, 90)] * 5)["verdict"] == "inconclusive"


def test_a_tie_is_no_agreement_even_at_margin_zero():
    assert gaps([1, 1, 1, 1, 0.01], margin=0)["verdict"] == "reproduced"
    assert gaps([1, 1, 1, 1, 0], margin=0)["verdict"] == "inconclusive"
    assert gaps([-1, -1, -1, -1, 0], margin=0)["verdict"] == "inconclusive"
    assert gaps([1, 1, 1, 1, 0.1 + 0.2 - 0.3], margin=0)["verdict"] == "inconclusive"  # a tie but for rounding
    assert gaps([-1, -1, -1, -1, -0.01], margin=0)["verdict"] == "contradicted"


def test_collapsed_and_interrupted_runs_in_an_order():
    good = [make_run(seed, measurements={"gaps": {"x": 2.0}}) for seed in range(5)]
    claim = make_claim("order", gap="gaps.x")
    assert verdict(claim, good)["verdict"] == "reproduced"
    gone = verdict(claim, [*good, make_run(5, status="collapsed")])
    assert (gone["verdict"], gone["n"]) == ("inconclusive", 6)
    assert "seed 5" in gone["reason"] and gone["runs"][-1] == f"{5:016x}"
    counted = make_run(5, status="collapsed", measurements={"gaps": {"x": 1.0}})
    assert (verdict(claim, [*good, counted])["verdict"], verdict(claim, [*good, counted])["n"]) == ("reproduced", 6)
    stopped = make_run(5, status="interrupted", measurements={"gaps": {"x": -1.0}})
    assert verdict(claim, [*good, stopped])["n"] == 5
    assert verdict(claim, [stopped])["verdict"] == "not attempted"
    all_gone = verdict(claim, [make_run(seed, status="collapsed") for seed in range(5)])
    assert (all_gone["verdict"], all_gone["n"]) == ("inconclusive", 5)
    elsewhere = make_run(5, status="collapsed", data="mnist")
    assert verdict(claim, [*good, elsewhere])["verdict"] == "reproduced"


def test_a_seed_counts_once_and_only_the_newest_version_counts():
    claim = make_claim("order", gap="gaps.x")
    same = [make_run(0, run_id=f"{i:016x}", measurements={"gaps": {"x": 2.0}}) for i in range(5)]
    assert (verdict(claim, same)["verdict"], verdict(claim, same)["n"]) == ("inconclusive", 1)
    old = [make_run(seed, measurements={"gaps": {"x": 2.0}}) for seed in range(5)]
    new = make_run(0, version=2, run_id="f" * 16, measurements={"gaps": {"x": -1.0}})
    assert verdict(claim, [*old, new])["runs"] == ["f" * 16]


def test_the_first_experiment_with_runs_judges():
    claim = make_claim("order", gap="gaps.x", experiments=("toy2020.first", EXPERIMENT))
    runs = [make_run(seed, measurements={"gaps": {"x": 2.0}}) for seed in range(5)]
    assert verdict(claim, runs)["experiment"] == EXPERIMENT
    first = [run | {"experiment": "toy2020.first", "measurements": {"gaps": {"x": -2.0}}} for run in runs]
    assert verdict(claim, runs + first)["verdict"] == "contradicted"
    assert verdict(claim, runs, "paper")["verdict"] == "not attempted"


def trend(direction, slopes, margin=0.5, x=(0.0, 10.0, 20.0)):
    claim = make_claim("trend", trend={"x": "t.x", "y": "t.y", "direction": direction}, margin=margin)
    wiggle = (0.0, 0.3, 0.0)
    runs = [
        make_run(seed, measurements={"t": {"x": list(x), "y": [5 + s * a + b for a, b in zip(x, wiggle, strict=True)]}})
        for seed, s in enumerate(slopes)
    ]
    return verdict(claim, runs)


def test_trend_words_and_slope():
    found = trend(1, [0.1, 0.1, 0.1, 0.1, 0.2])
    assert (found["verdict"], found["ours"]) == ("reproduced", pytest.approx(2.0))  # change over the range of x
    assert trend(-1, [0.1] * 5)["verdict"] == "contradicted"
    assert trend(-1, [-0.1] * 5)["verdict"] == "reproduced"
    assert trend(1, [0.02] * 5)["verdict"] == "inconclusive"  # 0.4 over the range, margin 0.5
    assert trend(1, [0.1] * 4)["verdict"] == "inconclusive"
    x, y = [0, 1, 2, 5], [3.0, 1.0, 4.0, 9.0]
    assert statistics.change_over_range(x, y) == pytest.approx(stats.linregress(x, y).slope * 5)


def test_a_seed_without_a_slope_does_not_agree_and_says_why():
    claim = make_claim("trend", trend={"x": "t.x", "y": "t.y", "direction": 1})
    good = [make_run(seed, measurements={"t": {"x": [0, 1], "y": [0, 2]}}) for seed in range(5)]
    flat = make_run(5, measurements={"t": {"x": [3, 3], "y": [0, 2]}})
    hole = make_run(6, measurements={"t": {"x": [0, 1], "y": [0, None]}})
    found = verdict(claim, [*good, flat, hole])
    assert (found["verdict"], found["n"]) == ("inconclusive", 7)  # else more seeds would delete those that fail
    assert "seed 5 counted as not agreeing: x is constant" in found["reason"]
    assert "seed 6 counted as not agreeing: x or y is not finite" in found["reason"]
    assert verdict(claim, good)["verdict"] == "reproduced"
    dead = verdict(claim, [*good, hole | {"status": "collapsed"}])
    assert (dead["verdict"], dead["n"]) == ("inconclusive", 6)


def test_scope_names_the_embedded_data_and_short_budgets():
    assert orders([(90, 80, 70)] * 5, data="digits")["scope"] == "embedded digits"
    assert orders([(90, 80, 70)] * 5, schedule="short")["scope"] == "short schedule"
    assert orders([(90, 80, 70)] * 5)["scope"] is None


# one fixed network


def pack(counts):
    return base64.b64encode(zlib.compress(np.asarray(counts, np.uint8).tobytes())).decode()


def fixed_run(arrays, configs=1, **extra):
    names = ("smallest", "random", "largest")
    images = {"order": {name: pack(array) for name, array in zip(names, arrays, strict=True)}}
    measured = {"per_image_configs": {"order": dict.fromkeys(names, configs)}}
    return make_run(fixed_network=True, per_image=images, measurements=measured, **extra)


def correct(percent, images=10_000, most=1):
    return (np.random.default_rng(int(percent)).random(images) * 100 < percent) * most


def test_fixed_network_is_judged_by_its_images():
    claim = make_claim("order", order=ORDER)
    rates = [correct(90), correct(80), correct(70)]
    begin = time.perf_counter()
    found = verdict(claim, [fixed_run(rates)])
    assert time.perf_counter() - begin < 1.0
    assert (found["verdict"], found["scope"], found["n"]) == ("reproduced", "this network only", 10_000)
    step = [(rates[i] - rates[i + 1]).mean() * 100 for i in (0, 1)]
    assert found["ours"] == pytest.approx(min(step))
    assert found["interval"][0] < found["ours"] < found["interval"][1]
    assert verdict(claim, [fixed_run(rates[::-1])])["verdict"] == "contradicted"
    assert verdict(claim, [fixed_run([rates[0], rates[2], rates[1]])])["verdict"] == "inconclusive"
    few = [np.arange(20) < 12, np.arange(20) >= 10, np.arange(20) < 8]  # 60, 50, 40 %: gaps of 10 points, 20 images
    assert verdict(claim, [fixed_run(few)])["verdict"] == "inconclusive"
    assert verdict(claim, [fixed_run(few[::-1])])["verdict"] == "inconclusive"


def test_fixed_network_counts_are_divided_by_their_configurations():
    claim = make_claim("order", order=ORDER)
    four = [correct(percent, most=4) for percent in (90, 80, 70)]
    one = [array // 4 for array in four]
    assert verdict(claim, [fixed_run(four, configs=4)])["ours"] == verdict(claim, [fixed_run(one)])["ours"]
    with pytest.raises(EvidenceError, match="per_image_configs"):
        verdict(claim, [fixed_run(four, configs=0)])


def test_bootstrap_interval_is_about_the_normal_one():
    above, below = correct(90).astype(float) * 100, correct(80).astype(float) * 100
    (low, high), _ = statistics.bootstrap_steps((above - below)[None])
    error = (above - below).std() / 100
    center = (above - below).mean()
    assert (low, high) == pytest.approx((center - 1.96 * error, center + 1.96 * error), abs=0.15 * error)


def test_fixed_network_gap_needs_a_pair_of_per_image_records():
    claim = make_claim("order", gap="gaps.x")
    run = fixed_run([correct(90), correct(80), correct(70)])
    bare = verdict(claim, [run])
    assert (bare["verdict"], bare["n"]) == ("inconclusive", 1)
    assert "one network, no per-image record" in bare["reason"]
    pairs = {"gaps.x": [["order.smallest", "order.largest"]]}
    assert verdict(claim, [run | {"per_image_pairs": pairs}])["verdict"] == "reproduced"
    both = {"gaps.x": [["order.smallest", "order.largest"], ["order.largest", "order.random"]]}
    assert verdict(claim, [run | {"per_image_pairs": both}])["verdict"] == "inconclusive"
    trend = make_claim("trend", trend={"x": "a.x", "y": "a.y", "direction": 1})
    ends = {"a.y": [["order.smallest", "order.largest"]]}
    assert verdict(trend, [run | {"per_image_pairs": ends}])["verdict"] == "reproduced"


def test_fixed_network_margin_must_lie_below_the_whole_interval():
    rates = [correct(83), correct(80), correct(70)]
    gap = verdict(make_claim("order", order=ORDER, margin=0), [fixed_run(rates)])
    assert gap["verdict"] == "reproduced"
    near = [correct(81), correct(80), correct(70)]  # above 0, but another training could turn half a point
    close = verdict(make_claim("order", order=ORDER, margin=0), [fixed_run(near)])
    assert 0 < close["interval"][0] < 0.5 and close["verdict"] == "inconclusive"
    assert verdict(make_claim("order", order=ORDER, margin=0), [fixed_run(near[::-1])])["verdict"] == "inconclusive"
    tight = make_claim("order", order=ORDER, margin=(gap["interval"][0] + gap["ours"]) / 2)
    assert verdict(tight, [fixed_run(rates)])["verdict"] == "inconclusive"


def test_every_layer_means_the_worst_and_the_opposite_means_all():
    claim = make_claim("order", gap="gaps.x", margin=0)

    def runs(*gaps: float) -> list:
        return [make_run(seed, measurements={"gaps": {"x": list(gaps)}}) for seed in range(5)]

    assert verdict(claim, runs(1, 2, 3))["verdict"] == "reproduced"
    assert verdict(claim, runs(1, -2, 3))["verdict"] == "inconclusive"
    assert verdict(claim, runs(-1, -2, -3))["verdict"] == "contradicted"


def test_tolerance_of_claims_that_say_not_worse():
    runs = [make_run(seed, measurements={"gaps": {"x": -0.5}}) for seed in range(5)]
    assert verdict(make_claim("order", gap="gaps.x", margin=0), runs)["verdict"] == "contradicted"
    assert verdict(make_claim("order", gap="gaps.x", margin=0, tolerance=1.0), runs)["verdict"] == "reproduced"
    assert verdict(make_claim("order", gap="gaps.x", margin=0, tolerance=0.4), runs)["verdict"] == "contradicted"


def test_what_is_shown_is_the_difference_and_not_the_room_to_a_bound():
    runs = [make_run(seed, measurements={"gaps": {"x": value}}) for seed, value in enumerate([-0.5, -0.1, 0, 0.1, 0.2])]
    found = verdict(make_claim("order", gap="gaps.x", margin=0, tolerance=0.6), runs)
    assert (found["verdict"], found["ours"], found["interval"]) == ("reproduced", 0, [-0.5, 0.2])
    assert "a tolerance of 0.6" in found["reason"]
    runs = [make_run(seed, measurements={"gaps": {"x": [2.5, 3 - cost]}}) for seed, cost in enumerate(range(1, 6))]
    found = verdict(make_claim("order", gap="gaps.x", margin=0, at_most=3.0), runs)
    assert (found["verdict"], found["ours"], found["interval"]) == ("inconclusive", 3, [1, 5])
    cheap = [make_run(seed, measurements={"gaps": {"x": [2.5, 2.6]}}) for seed in range(5)]
    found = verdict(make_claim("order", gap="gaps.x", margin=0, at_most=3.0), cheap)
    assert (found["verdict"], found["ours"]) == ("reproduced", 0.5) and "0.5, at most 3," in found["reason"]


def test_a_step_that_fails_in_every_seed_is_named():
    runs = [make_run(seed, measurements={"gaps": {"x": [1, -2, 3 - seed]}}) for seed in range(5)]
    found = verdict(make_claim("order", gap="gaps.x", margin=0), runs)
    assert found["verdict"] == "inconclusive" and "of 3 steps, number 2 is below zero in every seed" in found["reason"]


def test_an_experiment_with_enough_runs_goes_before_one_with_too_few():
    claim = make_claim("order", gap="gaps.x", margin=0, experiments=("toy2020.first", "toy2020.second"))
    few = [make_run(seed, experiment="toy2020.first", measurements={"gaps": {"x": -1.0}}) for seed in range(3)]
    many = [make_run(seed, experiment="toy2020.second", measurements={"gaps": {"x": 1.0}}) for seed in range(5)]
    assert verdict(claim, [*few, *many])["experiment"] == "toy2020.second"
    assert verdict(claim, few)["verdict"] == "inconclusive"


# all kinds


def test_recalled_values_are_marked():
    claim = make_claim("level", ["table1/small/error"], better="lower", source_status=None)
    runs = [make_run(seed, 6.6) for seed in range(3)]
    assert verdict(claim, runs, status="recalled")["reason"].endswith("judged against a recalled value")
    assert "judged against" not in verdict(claim, runs)["reason"]


def test_a_measurement_that_is_no_number_is_refused_by_name():
    with pytest.raises(EvidenceError, match=r"gaps\.x is 'high', not a number"):
        gaps(["high"] * 5)


def test_every_word_appears_and_is_counted():
    found = [
        level([6.6, 6.6, 6.6]),
        level([9.6, 9.6, 9.6]),
        verdict(make_claim("structural", ["table1/base/flop"]), [make_run(flop=314500000)]),
        orders([(70, 80, 90)] * 5),
        orders([(90, 80, 70)]),
        verdict(make_claim("order", gap="gaps.x", experiments=()), []),
    ]
    assert words(found) == dict.fromkeys(verdicts.WORDS, 1)
    assert list(words([])) == list(verdicts.WORDS)


def test_judge_paper_gives_one_verdict_a_claim_and_a_missing_run_changes_it():
    paper = make_paper(make_claim("order", gap="gaps.x"), make_claim("structural", ["table1/base/flop"]))
    runs = [make_run(seed, measurements={"gaps": {"x": 2.0}}, flop=313463808) for seed in range(5)]
    assert [item["verdict"] for item in judge_paper(paper, runs, "standard")] == ["reproduced", "reproduced"]
    assert [item["verdict"] for item in judge_paper(paper, runs[:4], "standard")] == ["inconclusive", "reproduced"]


@pytest.mark.parametrize("steps", [[1, None, 2], [None, 1], [-1, None], []])
def test_a_list_with_a_hole_is_no_list(steps):
    claim = make_claim("order", gap="gaps.x", margin=0)
    runs = [make_run(seed, measurements={"gaps": {"x": steps}}) for seed in range(5)]
    found = verdict(claim, runs)
    assert found["verdict"] == "not attempted" and "gaps.x has no step or one that is no number" in found["reason"]
    whole = [make_run(seed, measurements={"gaps": {"x": [1, 2]}}) for seed in range(5, 10)]
    assert verdict(claim, [*runs[:1], *whole])["verdict"] == "inconclusive"


def test_an_experiment_that_does_not_measure_it_hides_no_other():
    claim = make_claim("order", gap="gaps.x", margin=0, experiments=("toy2020.other", EXPERIMENT))
    silent = [make_run(seed, experiment="toy2020.other") for seed in range(5)]
    measured = [make_run(seed, measurements={"gaps": {"x": 1.0}}) for seed in range(5)]
    assert verdict(claim, [*silent, *measured])["verdict"] == "reproduced"
    fixed = [make_run(0, experiment="toy2020.other", fixed_network=True)]
    assert verdict(claim, [*fixed, *measured])["verdict"] == "reproduced"
    assert verdict(claim, [*silent, *measured[:3]])["verdict"] == "inconclusive"


def test_one_network_keeps_to_premise_and_bound_and_to_the_others():
    rates = [correct(90), correct(80), correct(70)]
    runs = [fixed_run(rates), fixed_run(rates[::-1], seed=1)]
    claim = make_claim("order", order=ORDER, margin=0)
    assert verdict(claim, runs[:1])["verdict"] == "reproduced"
    assert verdict(claim, runs)["verdict"] == "inconclusive"  # two networks that disagree
    open_ = make_claim("order", order=ORDER, margin=0, premise="hard")
    assert verdict(open_, runs[:1])["verdict"] == "inconclusive"
    bound = make_claim("order", gap="gaps.x", margin=0, at_most=5.0)
    pairs = {"per_image_pairs": {"gaps.x": [["order.smallest", "order.largest"]]}}
    assert verdict(bound, [runs[0] | pairs])["verdict"] == "inconclusive"


def test_a_pool_never_narrows_a_row():
    claim = make_claim("level", ["table1/small/error"], better="lower")
    wide, narrow = [6.0, 6.6, 7.2], [7.0, 7.2, 7.4]
    runs = [make_run(seed, a, b) for seed, (a, b) in enumerate(zip(wide, narrow, strict=True))]
    assert verdict(claim, runs)["sd"] == pytest.approx(0.6)


def test_a_premise_that_is_not_met_leaves_an_order_open():
    def runs(*premises):
        given = [{"gap": 1.0} | ({} if value is None else {"spread": value}) for value in premises]
        return [make_run(seed, measurements=measured) for seed, measured in enumerate(given)]

    claim = make_claim("order", gap="gap", premise="spread", printed="better")
    found = verdict(claim, runs(0.3, 0.2, 0.1, -0.1, -0.2))
    assert found["verdict"] == "reproduced" and "premise spread is met, median 0.1" in found["reason"]
    found = verdict(claim, runs(0.3, 0.2, -0.1, -0.1, -0.2))
    assert found["verdict"] == "inconclusive" and "premise spread is not met, median -0.1" in found["reason"]
    assert found["ours"] == 1.0
    assert verdict(claim, runs(None, None, None, None, None))["verdict"] == "inconclusive"
    assert verdict(make_claim("order", gap="gap", printed="better"), runs(-1.0, -1.0, -1.0, -1.0, -1.0))["verdict"] == (
        "reproduced"
    )
