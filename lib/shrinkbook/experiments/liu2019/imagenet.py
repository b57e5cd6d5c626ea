"""The paper on ImageNet: every GPU of the machine by torchrun, images from ``imagenet/train`` and ``imagenet/val``.

The experiment writes a job file, starts ``torchrun`` on this module, and reads the results; each phase resumes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from shrinkbook.evidence import store
from shrinkbook.experiments.liu2019.prune import _resumed
from shrinkbook.experiments.liu2019.spaces import SPACES, load_vector, save_vector
from shrinkbook.experiments.run import Context
from shrinkbook.experiments.steps import Proxy
from shrinkbook.methods.metapruning import PruningNet
from shrinkbook.methods.metapruning_candidates import Constraint, Evolution
from shrinkbook.methods.metapruning_search import Fitness
from shrinkbook.methods.metapruning_space import Genes, MacCount
from shrinkbook.nets import initialize
from shrinkbook.training.data import default_folder
from shrinkbook.training.evaluate import evaluate
from shrinkbook.training.folder import as_data_set, fit_stream, listed
from shrinkbook.training.recipe import Recipe

# Printed cells that a ratio stands for: accuracy of uniform and of searched widths.
CELLS = {
    **{
        ("MobileNetV1", ratio): (f"table1/{row}/uniform_top1", f"table1/{row}/metapruning_top1")
        for ratio, row in ((0.76, "0.75x"), (0.49, "0.5x"), (0.25, "0.25x"))
    },
    **{
        ("MobileNetV2", ratio): (f"table2/{row}/uniform_top1", f"table2/{row}/metapruning_top1")
        for ratio, row in ((0.73, "313M"), (0.46, "140M"), (0.22, "43M"))
    },
    ("ResNet-50", 0.85): ("", "table3/MetaPruning 0.85x/top1"),
    ("ResNet-50", 0.76): ("table3/uniform 0.75x/top1", "table3/MetaPruning 0.75x/top1"),
    ("ResNet-50", 0.49): ("table3/uniform 0.5x/top1", "table3/MetaPruning 0.5x/top1"),
}


def on_imagenet(run: Context) -> None:
    """Run the job on all GPUs and note what it found."""
    job = run.unit.checkpoint.with_suffix(".job.json")
    processes = max(1, torch.cuda.device_count())
    folder = default_folder() / "imagenet"
    store.write_text(job, json.dumps({"config": dict(run.config), "seed": run.seed, "folder": str(folder)}) + "\n")
    launch(job, processes)
    result = json.loads(job.with_suffix(".result.json").read_text(encoding="utf-8"))
    run.measurements |= {"search": result["search"], "gaps": {"searched": list(result["gain"].values())}}
    run.history = result["history"]
    for label, accuracy in result["accuracy"].items():
        run.stages[label] = {"accuracy": {"last": accuracy, "best_by_val": None}}
    for ratio in run.config["uniform"]:
        for which, cell in zip(("uniform", "searched"), CELLS.get((run.config["net"], ratio), ("", "")), strict=True):
            if cell:
                run.cell(cell, result["accuracy"][f"{which} {ratio:g}"])


def launch(job: Path, processes: int) -> None:
    """Start torchrun and wait.

    Raises:
        ValueError: a process failed.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*command, "-m", "shrinkbook.experiments.liu2019.imagenet", str(job)])
    if done.returncode:
        raise ValueError(
            f"torchrun ended with status {done.returncode}; the lines above say why. Run it again to resume"
        )


def smooth(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy with label smoothing 0.1, the paper's in both trainings."""
    logits = model(images)
    return F.cross_entropy(logits.float(), labels, label_smoothing=0.1), logits


def work(job: Path) -> None:
    """One of the processes: PruningNet, searches with candidates spread over processes, networks from scratch."""
    content = json.loads(job.read_text(encoding="utf-8"))
    config, seed, root = content["config"], content["seed"], Path(content["folder"])
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=2))
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    searched = SPACES[config["net"]]
    side, space = config.get("side", searched.shape[1]), searched.space()
    train, val = listed(root, "train"), listed(root, "val")
    kept, held = train.split(config["val_per_class"])
    history: list[dict[str, Any]] = []

    def trained(model: nn.Module, settings: dict[str, Any], label: str, on: Any) -> nn.Module:
        settings = {**settings, "milestones": tuple(settings.get("milestones", ())), "dtype": config["dtype"]}
        model = model.to(device)
        parallel = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
        path = job.with_suffix(f".{label}.safetensors")
        workers = config.get("readers", 8)
        rows = fit_stream(parallel, on, Recipe(**settings), side, seed, device, path, rank, world, workers, smooth)
        history.extend({"phase": label, **row} for row in rows)
        dist.barrier()
        return model.eval()

    torch.manual_seed(seed)
    net = PruningNet(space, searched.hidden)
    trained(net, config["recipe"], "PruningNet", kept)
    proxy = Proxy(net, as_data_set(kept, held, config["images"], side, seed).to(device), config["images"], str(device))

    def spread(fitness: Fitness, vectors: Sequence[Genes]) -> list[float]:
        mine = [fitness(genes) for genes in vectors[rank::world]]
        parts: list[list[float]] = [[] for _ in range(world)]
        dist.all_gather_object(parts, mine)
        return [parts[index % world][index // world] for index in range(len(vectors))]

    count = MacCount(space, (3, side, side))
    result: dict[str, Any] = {"search": {}, "accuracy": {}, "gain": {}}
    tests = as_data_set(kept, val, 2, side, seed)
    for number, ratio in enumerate(config["uniform"]):
        gene = min(range(len(space.ratios)), key=lambda g: abs(space.ratios[g] - ratio))  # noqa: B023
        uniform = (gene,) * len(space.names)
        limit = Constraint(count, config["budgets"][number] if config["budgets"] else count(uniform))
        state = job.with_suffix(f".{ratio:g}.rank{rank}.json")
        search = _resumed(state, space, proxy, limit, Evolution(**config["evolution"]), seed, spread)
        vector = job.with_suffix(f".{ratio:g}.widths.json")
        if rank == 0:
            save_vector(vector, config["net"], space, search.best.genes)
        dist.barrier()
        result["search"][f"{ratio:g}"] = {"genes": search.best.genes, "mac": search.best.cost, "budget": limit.most,
                                          "fitness": search.best.fitness}  # fmt: skip
        for name, widths in (
            (f"searched {ratio:g}", load_vector(vector, config["net"], space)),
            (f"uniform {ratio:g}", space.widths(uniform)),
        ):
            model = initialize(space.network(widths).to_empty(device="cpu"), seed)
            model = trained(model, config["final"], name, train)
            result["accuracy"][name] = evaluate(model, tests.to(device), device, dtype=config["dtype"]).accuracy
        pair = [result["accuracy"][f"{which} {ratio:g}"] for which in ("searched", "uniform")]
        result["gain"][f"{ratio:g}"] = pair[0] - pair[1]
    if rank == 0:
        store.write_text(job.with_suffix(".result.json"), json.dumps({**result, "history": history}) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
