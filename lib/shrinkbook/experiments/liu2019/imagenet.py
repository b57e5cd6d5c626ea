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
from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.liu2019.printed import PRINTED
from shrinkbook.experiments.liu2019.spaces import SPACES, load_search, load_vector, save_vector, saving
from shrinkbook.experiments.steps import Proxy
from shrinkbook.measure.cost import cost
from shrinkbook.methods.metapruning import PruningNet
from shrinkbook.methods.metapruning_candidates import Constraint, Evolution
from shrinkbook.methods.metapruning_search import Fitness, evolve
from shrinkbook.methods.metapruning_space import Genes, MacCount
from shrinkbook.nets import initialize
from shrinkbook.training.data import default_folder
from shrinkbook.training.evaluate import evaluate
from shrinkbook.training.folder import as_data_set, fit_stream, listed
from shrinkbook.training.recipe import Recipe

WORKER = ("-m", "shrinkbook.experiments.liu2019.imagenet")


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
        run.stages[label] = {"accuracy": {"last": accuracy, "best_by_val": None}, "mac": result["mac"][label]}
    for name, one in PRINTED[run.config["net"]].items():
        run.cell(one.accuracy, result["accuracy"][f"searched {name}"])
        if one.uniform is not None:
            run.cell(one.uniform.accuracy, result["accuracy"][f"uniform {name}"])


def launch(job: Path, processes: int) -> None:
    """Start torchrun and wait.

    Raises:
        ValueError: a process failed.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*command, *WORKER, str(job)])
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
    result: dict[str, Any] = {"search": {}, "accuracy": {}, "mac": {}, "gain": {}}
    tests = as_data_set(kept, val, 2, side, seed)
    for name, target in config["targets"].items():
        limit = Constraint(count, target["most"], target["least"])
        settings = Evolution(**config["evolution"], lowest=target["lowest"], highest=target["highest"])
        state, vector = job.with_suffix(f".{name}.json"), job.with_suffix(f".{name}.widths.json")
        # One state for all, rank 0's: of files of their own a kill could leave some a generation ahead.
        before = [load_search(state, limit) if rank == 0 else None]
        dist.broadcast_object_list(before)
        search = evolve(space, proxy, limit, settings, seed, before[0], saving(state) if rank == 0 else None, spread)
        if rank == 0:
            save_vector(vector, config["net"], space, search.best.genes)
        dist.barrier()
        best = search.best
        result["search"][name] = {"genes": best.genes, "mac": best.cost, "fitness": best.fitness, **target}
        models = {"searched": space.network(load_vector(vector, config["net"], space))}
        if (uniform := PRINTED[config["net"]][name].uniform) is not None:
            models["uniform"] = uniform.build()
        for which, model in models.items():
            result["mac"][f"{which} {name}"] = cost(model, (3, side, side)).mac
            model = initialize(model.to_empty(device="cpu"), seed)
            model = trained(model, config["final"], f"{which} {name}", train)
            tested = evaluate(model, tests.to(device), device, dtype=config["dtype"])
            result["accuracy"][f"{which} {name}"] = tested.accuracy
        if uniform is not None:
            accuracy = result["accuracy"]
            result["gain"][name] = accuracy[f"searched {name}"] - accuracy[f"uniform {name}"]
    if rank == 0:
        store.write_text(job.with_suffix(".result.json"), json.dumps({**result, "history": history}) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
