"""Table 3: wall-clock time of one pass over a test set, original and pruned, timed in turns in one process."""

import torch

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.li2017.models import INPUTS, PRUNED
from shrinkbook.experiments.networks import NETS
from shrinkbook.measure.latency import latency, saved
from shrinkbook.methods.filter_pruning import compress
from shrinkbook.nets import initialize


def wall_clock(run: Context) -> None:
    """Time each pair of the settings at the settings' batch; weights do not matter for time, so they are untrained."""
    for name in run.config["models"]:
        net = PRUNED[name].net
        base = initialize(NETS[net](), run.seed).eval()
        smaller, _ = compress(base, PRUNED[name].ratios)
        batch = run.config["batch"]
        example = torch.randn(batch, *INPUTS[net], generator=torch.Generator().manual_seed(run.seed)).to(run.device)
        models = {net: base.to(run.device), name: smaller.eval().to(run.device)}
        timings = latency(models, example, run.config["rounds"], run.config["warmup"], seed=run.seed)
        images = 50_000 if net == "ResNet-34" else 10_000
        for which, timing in timings.items():
            run.cell(f"table3/{which}/time", timing.median * images / batch)
            run.measurements.setdefault("seconds_per_batch", {})[which] = {
                "median": timing.median, "low": timing.low, "high": timing.high, "runs": timing.runs
            }  # fmt: skip
        percent = saved(timings[net], timings[name])
        run.cell(f"table3/{name}/time_saved", percent.median)
        run.progress(f"{name}: {percent.median:.1f} % of the time saved")
