"""Liu et al. 2019: tables, claims, the pipeline on digits and CIFAR at tiny budgets, ImageNet on made-up images."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise

import numpy as np
import psutil
import pytest
import torch
from conftest import SmallCifar, paths_of
from PIL import Image

from shrinkbook.evidence import claims, verdicts
from shrinkbook.evidence.store import dig
from shrinkbook.experiments import catalogue, phone, profiles, steps
from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.liu2019 import controls, cost, imagenet, latency, printed, spaces
from shrinkbook.experiments.liu2019 import scratch as from_scratch
from shrinkbook.experiments.liu2019 import tables as pages
from shrinkbook.experiments.liu2019.spread import spreading
from shrinkbook.experiments.run import ensure, unit
from shrinkbook.measure.cost import cost as cost_of
from shrinkbook.methods.metapruning import PruningNet
from shrinkbook.methods.metapruning_candidates import Constraint, Evolution
from shrinkbook.methods.metapruning_search import evolve
from shrinkbook.methods.metapruning_space import MacCount
from shrinkbook.nets import initialize
from shrinkbook.training import checkpoint, data, folder
from shrinkbook.training.data import DataError
from shrinkbook.training.evaluate import evaluate
from shrinkbook.training.recipe import Recipe

PAPER = claims.load("liu2019")
ONE_EPOCH = {"epochs": 1, "batch": 100, "lr": 0.1}
TINY = {"population": 4, "mutations": 1, "crossovers": 1, "generations": 2, "parents": 2}
SMALL = {
    "recipe": ONE_EPOCH, "final": ONE_EPOCH, "evolution": TINY, "random_widths": 3, "reseeds": 2, "structures": 2,
    "step": 4,
}  # fmt: skip


def test_six_tables_are_whole_and_every_cell_of_cost_has_a_convention() -> None:
    assert [PAPER.tables[f"table{n}"].cells and len(PAPER.tables[f"table{n}"].cells) for n in range(1, 7)] == [
        14, 26, 22, 14, 14, 14,
    ]  # fmt: skip
    for number in range(1, 7):
        for cell in PAPER.tables[f"table{number}"].cells:
            assert cell.status == "verified" and cell.value
            assert cell.note or "top1" in cell.column
    assert {claim.number for claim in PAPER.claims} == set(range(1, 11))
    gains = {c.id: PAPER.printed(c) for c in PAPER.claims if c.kind == "delta"}
    assert gains["liu2019.2e"] == "9.0" and gains["liu2019.2h"] == "9.9"  # "up to 9.0/9.9" of the abstract


def test_structural_claims(scratch) -> None:
    run = ensure(unit(catalogue.EXPERIMENTS, "liu2019.cost", "quick", 0))
    words = {
        claim.id.removeprefix("liu2019."): verdicts.judge(claim, PAPER, [run], "quick")["verdict"]
        for claim in PAPER.claims
        if claim.kind == "structural"
    }
    assert words == {
        **dict.fromkeys(("1a", "1b", "1c", "1e", "1f", "1g"), "reproduced"), "1d": "close", "1x": "differs",
    }  # fmt: skip
    counted = run["measurements"]["counted"]
    assert counted["official/MobileNetV2, logged vector/flops"] == {
        "MAC": 202_289_368,
        "search code's count": 207_976_916,
    }
    assert run["measurements"]["spaces"]["ResNet-50"]["networks"] == "31^20"


@pytest.fixture(scope="module")
def digits():
    return ensure(unit(catalogue.EXPERIMENTS, "liu2019.digits", "quick", 0, SMALL))


def test_digits_fill_what_their_claims_read(digits) -> None:
    read = [claim for claim in PAPER.claims if "liu2019.digits" in claim.experiments]
    assert {claim.id for claim in read} == {f"liu2019.{n}" for n in ("1h", "1i", "3", "4", "5a", "5b", "6", "7", "9")}
    for claim in read:
        assert all(dig(digits["measurements"], path) is not None or path == "ranks.tau" for path in paths_of(claim))
    assert digits["measurements"]["tied"] == {"vectors": 2, "minus_failures": 0}


def test_searches_stay_within_their_budgets_and_train_what_the_vector_file_holds(digits) -> None:
    space = spaces.SPACES[digits["config"]["net"]].space()
    checkpoint = unit(catalogue.EXPERIMENTS, "liu2019.digits", "quick", 0, SMALL).checkpoint
    for label, one in digits["measurements"]["search"].items():
        assert one["cost"] == digits["stages"][f"searched {label}"]["mac"] <= one["budget"]
        assert one["control"]["mac"] == digits["stages"][f"uniform {label}"]["mac"] == one["control"]["cost"]
        assert one["control"]["share"] == pytest.approx(one["control"]["mac"] / one["mac"])
        assert one["control"]["widths"] == space.uniform(one["control"]["ratio"])
        assert one["evaluations"] == 8 and len(one["progress"]) == 8
        stored = checkpoint.with_name(one["vector"])
        assert spaces.load_vector(stored, digits["config"]["net"], space) == one["widths"]
        with pytest.raises(ValueError, match="not of another net"):
            spaces.load_vector(stored, "another net", space)
    for key, one in digits["measurements"]["kept"].items():
        assert digits["measurements"]["gaps"][key] == pytest.approx(one["searched"] - np.mean(one["blind"]), abs=1e-3)
        assert len(one["blind"]) == controls.BLIND
    gaps, proxies = digits["measurements"]["gaps"], [one["unseen"] for one in digits["measurements"]["search"].values()]
    assert gaps["budgets"] == [one["searched"] - one["uniform of the budget"] for one in proxies]
    for value in (value for one in proxies for value in one.values()):  # shares of all 1,397 test images
        assert value / 100 * 1397 == pytest.approx(round(value / 100 * 1397), abs=1e-6)
    labels = list(digits["measurements"]["search"])
    assert labels == ["mac 0.375", "mac 0.625"]
    assert len(digits["measurements"]["search"][labels[0]]["random progress"]) == 8


def test_the_premise_is_spread_against_seeds(digits) -> None:
    ranks, premise = digits["measurements"]["ranks"], digits["measurements"]["premise"]
    assert len(ranks["rows"]) == 3 and len(ranks["seeds"]) == 2
    trained = [row["trained"] for row in ranks["rows"]]
    assert premise["hard_enough"] == pytest.approx(np.std(trained, ddof=1) - 2 * np.std(ranks["seeds"], ddof=1))
    rows = {(tuple(row["genes"])) for row in ranks["rows"]}
    assert len(rows) == 3
    assert all(row["mac"] <= digits["measurements"]["search"]["mac 0.375"]["budget"] for row in ranks["rows"])


def test_pictures_and_tables(digits) -> None:
    for draw in (pages.proxy_picture, pages.progress_picture, pages.widths_picture, pages.ranks_picture):
        assert draw([digits, digits]).axes
    names = [label.get_text() for label in pages.widths_picture([digits], "mid").axes[0].get_xticklabels()]
    assert names == ["mid_1", "mid_2", "mid_3"]
    assert list(pages.budgets_table([digits]).index) == ["mac 0.375", "mac 0.625"]


def test_numbers_of_the_generators() -> None:
    with torch.device("meta"):
        space = spaces.SPACES["MobileNetV1"].space()
        net = PruningNet(space)
    held = sum(parameter.numel() for parameter in net.weights.parameters())
    assert cost.generators(space, 32) == held


def test_a_proxy_measures_batch_norm_and_evaluates_once(monkeypatch) -> None:
    torch.manual_seed(0)
    space = spaces.SPACES["digits ResNet of three blocks"].space()
    proxy = steps.Proxy(PruningNet(space).eval(), data.load("digits"), 128, "cpu")
    vectors = [(7, 7, 7, 7, 7), (3, 3, 3, 3, 3)]
    wanted = [proxy.both(genes)[1] for genes in vectors]
    calls: list[int] = []
    monkeypatch.setattr(steps, "evaluate", lambda *args: calls.append(1) or evaluate(*args))
    assert [proxy(genes) for genes in vectors] == wanted and len(calls) == 2


def test_files_of_a_search_that_are_broken_are_named(tmp_path) -> None:
    space = spaces.SPACES["digits ResNet of three blocks"].space()
    count = MacCount(space, (1, 8, 8))
    limit, path = Constraint(count, count((3,) * 5)), tmp_path / "x.json"
    with pytest.raises(ValueError, match=r"x.json cannot be read \(No such file"):
        spaces.load_vector(path, "a net", space)
    assert spaces.load_search(path, limit) is None
    for text in ("{", "[1]", '{"net": "a net", "ratios": [0.5]}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"x.json is no (JSON|width vector).*search again"):
            spaces.load_vector(path, "a net", space)
    path.write_text('[[{"genes": 1}]]')
    with pytest.raises(ValueError, match=r"x.json is no state of a search: delete it"):
        spaces.load_search(path, limit)
    found = evolve(space, lambda genes: genes[0], limit, Evolution(**TINY), 0, None, spaces.saving(path))
    assert spaces.load_search(path, limit) == found
    with pytest.raises(ValueError, match=r"x.json was searched by other costs: delete it"):
        spaces.load_search(path, Constraint(lambda genes: count(genes) + 1, limit.most))


def test_the_control_of_a_winner_is_the_uniform_network_of_its_own_cost() -> None:
    with torch.device("meta"):
        space = spaces.SPACES["MobileNetV1 for CIFAR"].space()
    count, every = MacCount(space, spaces.CIFAR), controls.uniform_ratios(space)
    costs = [count.of(space.uniform(ratio)) for ratio in every]
    assert len(every) == 1024 + 1 and all(one <= other for one, other in pairwise(costs))
    assert {tuple(space.uniform(ratio).values()) for ratio in np.linspace(0.001, 1, 500)} <= {
        tuple(space.uniform(ratio).values()) for ratio in every
    }
    draws = np.random.default_rng(0)
    for _ in range(5):
        winner = space.widths([int(gene) for gene in draws.integers(0, 31, 13)])
        found = controls.uniform_of_cost(space, count.of, count.of(winner), every)
        assert abs(found["share"] - 1) < 0.02 and found["cost"] == count.of(found["widths"])
        nearest = min(abs(cost - count.of(winner)) for cost in costs)
        assert abs(found["cost"] - count.of(winner)) == nearest
    with torch.device("meta"):  # where widths are no powers of two, none is lost to rounding
        v2 = spaces.SPACES["MobileNetV2 for CIFAR"].space()
    found_v2 = {tuple(v2.uniform(ratio).values()) for ratio in controls.uniform_ratios(v2)}
    assert {tuple(v2.uniform(ratio).values()) for ratio in np.linspace(0.001, 1, 9973)} <= found_v2
    listed = controls.uniform_of_cost(space, count.of, count.of(winner), space.ratios)
    assert listed["ratio"] in space.ratios  # all that a look-up table holds


def test_widths_are_halved_by_depth() -> None:
    with torch.device("meta"):
        v2, r20 = (spaces.SPACES[name].space() for name in ("MobileNetV2 for CIFAR", "ResNet-20 with projections"))
    late = [f"mid_{n}" for n in range(8, 12)] + ["stage_6"] + [f"mid_{n}" for n in range(12, 15)]
    late += ["stage_7", "mid_15", "mid_16", "mid_17", "stage_8"]
    assert spaces.by_depth(v2)[12:] == late and spaces.by_depth(v2)[:5] == [
        "stage_1",
        "mid_1",
        "stage_2",
        "mid_2",
        "stage_3",
    ]
    assert spaces.by_depth(r20) == [
        "stage_1", "mid_1", "mid_2", "mid_3", "mid_4", "stage_2", "mid_5", "mid_6", "mid_7", "mid_8", "mid_9",
    ]  # fmt: skip
    for space in (v2, r20):
        order = spaces.by_depth(space)
        deep = [30 if name in order[len(order) // 2 :] else 0 for name in space.names]
        assert controls.preferences(space, [tuple(deep)])["late"] == pytest.approx(90)
        strided = [30 if name in spaces.downsampling(space) else 0 for name in space.names]
        assert controls.preferences(space, [tuple(strided)])["downsampling"] == pytest.approx(90)


def test_a_search_with_random_fitness_prefers_nothing_beyond_what_blind_ones_do() -> None:
    with torch.device("meta"):
        space = spaces.SPACES["ResNet-20 with projections"].space()
    count = MacCount(space, spaces.CIFAR)
    limit = Constraint(count, count(spaces.uniform_vector(space, 0.25)))
    settings = Evolution(population=20, mutations=8, crossovers=8, generations=3, parents=5)
    blind = [one["late"] for one in controls.blind_preferences(space, limit, settings, 0)]
    assert len(set(blind)) == controls.BLIND
    raw: list[float] = []
    for seed in range(1, 11):
        draws = np.random.default_rng(seed)
        search = evolve(space, lambda _, draws=draws: draws.random(), limit, settings, seed)  # type: ignore[misc]
        raw.append(controls.preferences(space, [one.genes for one in search.top(controls.TOP)])["late"])
    error, theirs = (np.std(found, ddof=1) / np.sqrt(len(found)) for found in (raw, blind))
    gaps = np.array(raw) - np.mean(blind)
    assert abs(np.mean(raw)) > 4 * error  # the budget alone leaves a gap
    assert abs(gaps.mean()) < 2.5 * np.hypot(error, theirs) and gaps.min() < 0 < gaps.max()


def test_evaluations_on_two_processes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = PruningNet(spaces.SPACES["digits ResNet of three blocks"].space()).eval()
    proxy = steps.Proxy(net, data.load("digits"), 128, "cpu")
    vectors = [(7, 7, 7, 7, 7), (3, 3, 3, 3, 3)]
    monkeypatch.setenv(profiles.PROCESSES, "2")
    with spreading(proxy) as spread:
        assert spread is not map and list(spread(proxy, vectors)) == [proxy(genes) for genes in vectors]


def test_networks_trained_side_by_side_are_those_trained_one_after_another(scratch, monkeypatch) -> None:
    asked = unit(catalogue.EXPERIMENTS, "liu2019.digits", "quick", 0, {"final": ONE_EPOCH})
    space = spaces.SPACES["digits ResNet of three blocks"].space()
    networks = {
        "full": from_scratch.Planned(space.base, 0),
        "narrow": from_scratch.Planned(space.uniform(0.5), 0),
        "narrow again": from_scratch.Planned(space.uniform(0.5), 1),
    }
    found, weights = [], []
    for processes in ("1", "2"):
        monkeypatch.setenv(profiles.PROCESSES, processes)
        said: list[str] = []
        run = Context(asked, "cpu", {}, said.append)
        run.load_data()
        found.append(from_scratch.accuracies(run, space, networks))
        weights.append([checkpoint.load(run.unit.part(label))[0] for label in networks])
        assert from_scratch.accuracies(run, space, networks) == found[-1]  # all are there: nothing is trained again
        for label in networks:
            run.unit.part(label).unlink()
        there = [line for line in said if line.endswith(": trained")]
        assert len(there) == (0 if processes == "1" else 3)
        assert any("in training" in line for line in said) == (processes == "1")
    assert found[0] == found[1] and len(set(found[0].values())) == 3
    for one, other in zip(*weights, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


WAITS = """
import os
from shrinkbook.experiments.liu2019 import spread
pool = spread._pool()
print(pool.submit(os.getpid).result(), flush=True)
pool.submit(__import__("time").sleep, 60).result()
"""


def test_a_killed_run_leaves_no_process_behind() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True, env={**os.environ, profiles.PROCESSES: "1"}
    ) as run:
        assert run.stdout
        worker = psutil.Process(int(run.stdout.readline()))
        assert worker.is_running()
        run.kill()
    deadline = time.monotonic() + 10
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(worker)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # nobody may be there to collect it
    except psutil.NoSuchProcess:
        return False


def test_downsampling_widths_are_those_that_strided_convolutions_write() -> None:
    with torch.device("meta"):
        v1, v2 = (spaces.SPACES[name].space() for name in ("MobileNetV1", "MobileNetV2"))
    assert spaces.downsampling(v1) == ["layer_2", "layer_4", "layer_6", "layer_12"]
    assert spaces.downsampling(v2) == ["mid_2", "mid_4", "mid_7", "mid_14"]


@pytest.mark.parametrize("name", ["liu2019.resnet20_200eval", "liu2019.mobilenet_v1"])
def test_cifar_runs_fill_what_their_claims_read(small_cifar: SmallCifar, monkeypatch, name: str) -> None:
    narrow = {
        "ResNet-20 with projections": partial(spaces.nets.ResNet, (1, 1), (16, 32), projection=True),
        "MobileNetV1 for CIFAR": partial(spaces.nets.MobileNetV1, (16, 16, 16, 32), (1, 2, 1, 2), 10),
    }
    for net, build in narrow.items():
        monkeypatch.setitem(spaces.SPACES, net, spaces.Searched(build, (0.25, 0.5, 1.0), 8, spaces.CIFAR))
    recipe = {**ONE_EPOCH, "batch": 4, "lr": 1e-3}
    changes = {**SMALL, "recipe": recipe, "final": recipe, "val_fraction": 0.5, "val_images": 6, "images": 6,
               "uniform": [1.0] if "v1" in name else [0.5, 1.0], "step": 1, "rounds": 1, "batch": 2}  # fmt: skip
    run = small_cifar(name, {name: changes})
    for claim in PAPER.claims:
        if name in claim.experiments:
            assert all(dig(run["measurements"], path) is not None or path == "ranks.tau" for path in paths_of(claim))
    assert ("latency 1" in run["measurements"]["search"]) == (name == "liu2019.mobilenet_v1")


def test_a_search_goes_on_with_the_table_that_it_began_with(scratch, monkeypatch) -> None:
    name, net = "liu2019.mobilenet_v1", "digits ResNet of three blocks"
    wanted = unit(catalogue.EXPERIMENTS, name, "standard", 0, {"batch": 2, "rounds": 2, "uniform": [0.5]})
    space = spaces.SPACES[net].space()
    run, again = (Context(wanted, "cpu", {}, print) for _ in range(2))
    first = latency.seconds_of(run, space, net)(space.base)
    monkeypatch.setattr(latency, "measure_table", None)
    assert latency.seconds_of(again, space, net)(space.base) == first
    assert again.measurements == run.measurements and len(run.measurements["additivity"]["rows"]) == 2
    assert run.measurements["additivity"]["rows"][1]["sum of layers, ms"] == pytest.approx(1000 * first)
    wanted.checkpoint.with_suffix(".latency.json").write_text("{}")
    with pytest.raises(ValueError, match=r"latency.json: not a look-up table .*; delete it, and the searches"):
        latency.seconds_of(again, space, net)


def test_latency_of_both_families_a_table_and_a_generator(scratch, monkeypatch) -> None:
    monkeypatch.setattr("shrinkbook.experiments.liu2019.timing.IMAGENET", (3, 32, 32))
    small = {"tables": ["table5", "table6"], "rounds": 1, "warmup": 0, "vectors": 2, "table_rounds": 1, "channels": 64}
    run = ensure(unit(catalogue.EXPERIMENTS, "liu2019.latency", "quick", 0, small))
    assert (
        set(run["cells"]) == {"table5", "table6"} and len(run["measurements"]["gaps"]["time_over_mac"]) == 6
    )  # of one round none is noisy
    assert run["measurements"]["table5"]["1x"]["time"] == 1
    assert len(run["measurements"]["additivity"]["rows"]) == 2 and len(run["measurements"]["generating"]) == 6


@pytest.fixture
def on_a_device() -> Context:
    """A search whose parents are this suite's recorded measurements of ResNet-20 on a host."""
    wanted = unit(catalogue.EXPERIMENTS, "liu2019.resnet20_lookup", "standard", 0)
    recorded = phone.recorded()
    return Context(wanted, "cpu", {name: recorded[name] for name in wanted.experiment.parents}, print)


def test_a_search_takes_seconds_from_the_table_of_a_device(scratch, on_a_device: Context) -> None:
    space = spaces.SPACES["ResNet-20, inner widths"].space()
    seconds = latency.seconds_of(on_a_device, space, "ResNet-20, inner widths")
    table = on_a_device.parents["phone.lookup"]["measurements"]["table"]
    genes, wide = (0, 1, 2, 3, 3, 3, 3, 3, 3), [16] * 3 + [32] * 3 + [64] * 3
    inner = [f"{int(width * space.ratios[gene])}" for gene, width in zip(genes, wide, strict=True)]
    outer = ["16"] * 3 + ["16"] + ["32"] * 2 + ["32"] + ["64"] * 2
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]
    by_hand = table["rest"] + sum(
        table["layers"][f"{path}.conv1"][f"{mid}x{read}"] + table["layers"][f"{path}.conv2"][f"{full}x{mid}"]
        for path, mid, read, full in zip(blocks, inner, outer, wide, strict=True)
    )
    assert seconds(space.widths(genes)) == pytest.approx(by_hand, rel=1e-12)
    assert on_a_device.measurements["table"] == table["where"]
    errors = on_a_device.measurements["additivity"]
    whole = {row["model"]: row["ms"]["median"] for row in on_a_device.parents["phone.resnet20"]["measurements"]["rows"]}
    assert list(errors) == list(whole)
    sums = {name: (1 + errors[name] / 100) * ms / 1e3 for name, ms in whole.items()}
    both = [seconds(space.uniform(ratio)) for ratio in (1.0, 0.5)]
    assert list(sums.values()) == pytest.approx(both, rel=1e-12)


def test_a_table_of_other_widths_is_refused(scratch, on_a_device: Context) -> None:
    full = spaces.nets.resnet_cifar(20)
    space = spaces.SearchSpace(full, full.free_widths(), (0.5, 0.6, 1.0))
    with pytest.raises(ValueError, match="table of No phone: .* lacks layer1.0.conv1 with 16 -> 9 channels"):
        latency.seconds_of(on_a_device, space, "ResNet-20, inner widths")(space.widths((1,) * 9))


def test_the_search_on_a_devices_table_runs_to_its_end(small_cifar: SmallCifar) -> None:
    once = {"engine": "torch", "blocks": 1, "loops": 1, "seconds": 0.0, "warmup": 0, "warmup_seconds": 0.0}
    recipe = {**ONE_EPOCH, "batch": 4, "lr": 1e-3}
    changes = {**SMALL, "recipe": recipe, "final": recipe, "val_fraction": 0.5, "val_images": 6, "images": 6,
               "uniform": [0.5], "random_widths": 2}  # fmt: skip
    name = "liu2019.resnet20_lookup"
    run = small_cifar(name, {name: changes, "phone.lookup": once, "phone.resnet20": once})
    found = run["measurements"]
    assert set(found["search"]) == {"mac 0.5", "latency 0.5"} and found["table"].startswith("No phone: 31 networks")
    one = found["search"]["latency 0.5"]
    assert one["cost"] <= one["budget"] < 1 and one["control"]["ratio"] in spaces.QUARTERS
    table = pages.budgets_table([run])
    assert table.loc["latency 0.5", "budget, ms"] == pytest.approx(1000 * one["budget"], abs=0.01)
    assert np.isnan(table.loc["latency 0.5", "budget, MAC"]) and np.isnan(table.loc["mac 0.5", "budget, ms"])
    assert "latency_over_mac" in found["gaps"]


def images(root, classes: int, each: int) -> None:
    draws = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(classes):
            place = root / split / f"n{label:02d}"
            place.mkdir(parents=True)
            for number in range(each):
                pixels = draws.integers(0, 256, (40 + number, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.JPEG")


def test_image_folders_are_read_with_pillow_alone(tmp_path) -> None:
    images(tmp_path, 2, 3)
    train = folder.listed(tmp_path, "train")
    assert train.labels == (0, 0, 0, 1, 1, 1) and train.classes == 2
    kept, held = train.split(1)
    assert (len(kept.paths), held.labels) == (4, (0, 1)) and not set(kept.paths) & set(held.paths)
    pixels, labels = folder.resident(held, 32)
    assert pixels.shape == (2, 3, 32, 32) and pixels.dtype == torch.uint8 and labels.tolist() == [0, 1]
    augmented = folder.Augmented(kept, 32, seed=0)
    first, again = augmented[1][0], augmented[1][0]
    assert torch.equal(first, again) and first.shape == (3, 32, 32)
    augmented.epoch = 1
    assert not torch.equal(first, augmented[1][0])
    (tmp_path / "train" / "n00" / "0.JPEG").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read as an image"):
        folder.opened(train.paths[0])
    with pytest.raises(DataError, match="holds no folder of a class"):
        folder.listed(tmp_path, "test")
    (tmp_path / "val" / "n02").mkdir()
    with pytest.raises(DataError, match="n02 holds no image"):
        folder.listed(tmp_path, "val")


def test_ranks_share_every_batch() -> None:
    parts = [folder._share(range(8), 4, rank, 2) for rank in (0, 1)]
    assert parts == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_imagenet_by_torchrun_on_two_processes_with_made_up_images(tmp_path, monkeypatch) -> None:
    images(tmp_path, 3, 4)
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom shrinkbook import nets\n"
        "from shrinkbook.experiments.liu2019 import imagenet, printed\n"
        "beside = printed.Uniform('', lambda: nets.resnet_cifar(20))\n"
        "found = {'paired': printed.Printed('', '', beside), 'alone': printed.Printed('', '', None)}\n"
        "imagenet.PRINTED['ResNet-20 with projections'] = found\n"
        "imagenet.work(Path(sys.argv[1]))\n"
    )
    monkeypatch.setattr(imagenet, "WORKER", (str(script),))
    tiny = {"epochs": 1, "batch": 4, "lr": 0.01}
    with torch.device("meta"):
        space = spaces.SPACES["ResNet-20 with projections"].space()
    most = MacCount(space, (3, 16, 16))((12,) * len(space.names))
    bounds = {"least": 0.5 * most, "most": most, "lowest": 3, "highest": 15}
    config = {
        **catalogue.EXPERIMENTS["liu2019.imagenet_v1"].configs["paper"], "net": "ResNet-20 with projections",
        "dtype": "float32", "side": 16, "recipe": tiny, "final": tiny, "targets": {"paired": bounds, "alone": bounds},
        "val_per_class": 1, "images": 4, "readers": 0, "evolution": TINY,
    }  # fmt: skip
    job = tmp_path / "x.job.json"
    job.write_text(json.dumps({"config": config, "seed": 0, "folder": str(tmp_path)}))
    imagenet.launch(job, 2)
    result = json.loads(job.with_suffix(".result.json").read_text())
    assert set(result["accuracy"]) == {"searched paired", "uniform paired", "searched alone"}
    assert list(result["gain"]) == ["paired"]
    assert result["mac"]["uniform paired"] == cost_of(spaces.nets.resnet_cifar(20), (3, 16, 16)).mac
    assert result["mac"]["searched paired"] == result["search"]["paired"]["mac"]
    assert 0.5 * most <= result["search"]["paired"]["mac"] <= most
    assert [row["phase"] for row in result["history"]] == [
        "PruningNet", "searched paired", "uniform paired", "searched alone",
    ]  # fmt: skip
    # Killed after the first generation: every process goes on from the one state, and finds the same.
    (state,) = (path for path in tmp_path.glob("x.job.paired*.json") if "widths" not in path.name)
    whole = state.read_text()
    state.write_text(json.dumps(json.loads(whole)[:1]))
    job.with_suffix(".result.json").unlink()
    imagenet.launch(job, 2)
    assert state.read_text() == whole
    again = json.loads(job.with_suffix(".result.json").read_text())
    assert again["search"] == result["search"] and again["accuracy"] == result["accuracy"]


def test_imagenet_cells_budgets_and_uniform_networks_are_the_printed_ones() -> None:
    flops = {"MobileNetV1": "table1/{}/uniform_flops", "MobileNetV2": "table2/{}/uniform_flops"}
    for one in (one for one in catalogue.PAPERS["liu2019"].values() if "imagenet" in one.name):
        config = one.configs["paper"]
        net = config["net"]
        assert list(config["targets"]) == list(printed.PRINTED[net])
        with torch.device("meta"):
            space = spaces.SPACES[net].space()
        least = MacCount(space, spaces.IMAGENET)((0,) * len(space.names))
        for row, target in config["targets"].items():
            pair = printed.PRINTED[net][row]
            assert PAPER.cell(pair.accuracy).value and least < target["most"]
            assert target["least"] <= printed.value(pair.flops) <= target["most"]
            if pair.uniform:
                assert PAPER.cell(pair.uniform.accuracy).value
                cell = PAPER.cell(flops[net].format(row) if net in flops else f"table3/uniform {row}/flops")
                counted = cost.counted(pair.uniform.build)["MAC"] / printed.UNITS[cell.unit]
                assert abs(counted - float(cell.value)) < (0.1 if "." in cell.value else 1)  # the last printed digit
    r50 = catalogue.EXPERIMENTS["liu2019.imagenet_r50"].configs["paper"]["targets"]
    assert r50["0.75x"] == {"least": 1.95e9, "most": 2.05e9, "lowest": 12, "highest": 23}
    assert [target["least"] for target in r50.values()] == [2.95e9, 1.95e9, 0.95e9]
    # Every claim of the tables about searched ImageNet networks names the experiment that has its budget, or none.
    pairs = {one.accuracy for net in printed.PRINTED.values() for one in net.values()}
    for claim in PAPER.claims:
        if claim.requires == "paper":
            assert bool(claim.experiments) == (claim.where[0] in pairs)


def test_streamed_training_resumes_exactly_and_refuses_other_images(tmp_path) -> None:
    images(tmp_path, 2, 4)
    train = folder.listed(tmp_path, "train")
    recipe, device = Recipe(3, 4, 0.05), torch.device("cpu")

    def trained(name: str, progress=None, on=train) -> torch.nn.Module:
        model = initialize(spaces.nets.MobileNetV1((8, 8, 16), (2, 2, 2), 2), 0)
        folder.fit_stream(model, on, recipe, 16, 0, device, tmp_path / name, workers=0, progress=progress)
        return model

    def stop(row: dict) -> None:
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    rates: list[float] = []
    whole = trained("whole", lambda row: rates.append(row["lr"]))
    assert rates == pytest.approx([0.05 * (1 - step / 6) for step in (1, 3, 5)])  # linear, at the last of two steps
    with pytest.raises(KeyboardInterrupt):
        trained("stopped", stop)
    resumed = trained("stopped")
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    with pytest.raises(ValueError, match="belongs to another run"):
        trained("stopped", on=train.split(1)[0])
    with pytest.raises(DataError, match="fewer than a batch"):
        trained("new", on=train.split(3)[0])
