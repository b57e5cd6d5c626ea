"""Many runs on several processes: workers that read units from a pipe and end when the pipe does.

Worker: ``python -m shrinkbook.experiments.work PROFILE DEVICE``, one JSON object a line on either side. When the parent
process dies, however suddenly, a worker finishes and stores the run it is at and ends; nothing is left half-written.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shrinkbook.evidence import store
from shrinkbook.experiments import profiles
from shrinkbook.experiments.experiment import Unit

Say = Callable[[str], None]


def pending(units: Sequence[Unit]) -> list[Unit]:
    """The units that this machine has not stored yet."""
    return [unit for unit in units if unit.find(store.runs_dir()) is None]


def expected_seconds(units: Sequence[Unit], jobs: int = 1) -> float:
    """What the units are expected to take, from each experiment's own estimate."""
    return sum(unit.experiment.seconds.get(unit.profile, 0.0) for unit in units) / jobs


def compute(units: Sequence[Unit], jobs: int, device: str, say: Say) -> dict[str, str]:
    """Compute all units, parents first, on ``jobs`` worker processes.

    Results do not depend on ``jobs``: threads belong to the profile and a run never shares a process's random state.

    Returns:
        "experiment seed n" -> why it failed, empty when all is well. Other units go on after a failure.
    """
    todo = pending(units)
    if not todo:
        say(f"all {len(units)} runs are already in {store.runs_dir()}")
        return {}
    profile = todo[0].profile
    say(
        f"{len(todo)} runs to compute, {len(units) - len(todo)} stored; about "
        f"{duration(expected_seconds(todo, jobs))} on {jobs} process{'es' if jobs > 1 else ''}"
    )
    queue = _Queue(todo, say)
    arguments = (queue, profile, device, say)
    # Daemons: after Ctrl-C nobody hands out further units, and the command ends at once.
    threads = [threading.Thread(target=_serve, args=arguments, daemon=True) for _ in range(min(jobs, len(todo)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return queue.failed


def duration(seconds: float) -> str:
    """A span of time for people: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if name == 'h' else 0}f} {name}"
    return f"{seconds / 86400:.1f} days"


class _Queue:
    """Units in order; one is handed out when its parents stand, and dropped when one of them failed."""

    def __init__(self, units: Sequence[Unit], say: Say) -> None:
        self.waiting, self.running, self.failed = list(units), set[str](), dict[str, str]()
        self.total, self.done, self.started = len(units), 0, time.monotonic()
        self.broken: set[str] = set()
        self.alone = False  # whether a run that times something is at work
        self.condition, self.say = threading.Condition(), say

    def take(self) -> Unit | None:
        """The next unit that can run; waits for parents in work, and for quiet; None when nothing is left."""
        with self.condition:
            while True:
                blocked = {unit.run_id for unit in self.waiting} | self.running
                for unit in list(self.waiting):
                    parents = {parent.run_id for parent in unit.parents}
                    if parents & self.broken:
                        self.waiting.remove(unit)
                        self._fail(unit, "its parent failed")
                    elif not parents & blocked and not self.alone and not (unit.experiment.alone and self.running):
                        self.alone = unit.experiment.alone
                        self.waiting.remove(unit)
                        self.running.add(unit.run_id)
                        return unit
                if not self.waiting:
                    return None
                self.condition.wait()

    def finish(self, unit: Unit, error: str | None, seconds: float) -> None:
        """Note the end of a unit and wake those who wait for it."""
        with self.condition:
            self.running.discard(unit.run_id)
            self.alone = False
            if error is None:
                self.done += 1
                elapsed = time.monotonic() - self.started
                left = elapsed / self.done * (self.total - self.done - len(self.failed))
                self.say(
                    f"[{self.done}/{self.total}] {label(unit)} in {duration(seconds)}; "
                    f"{duration(elapsed)} elapsed, about {duration(left)} left"
                )
            else:
                self._fail(unit, error)
            self.condition.notify_all()

    def stop(self, why: str) -> None:
        """Hand out nothing more; what waits is noted as failed, without a line each."""
        with self.condition:
            self.failed |= {label(unit): why for unit in self.waiting}
            self.waiting.clear()
            self.condition.notify_all()

    def _fail(self, unit: Unit, error: str) -> None:
        self.broken.add(unit.run_id)
        self.failed[label(unit)] = error
        self.say(f"FAILED {label(unit)}: {error}")


def label(unit: Unit) -> str:
    """How a unit is named to people."""
    return f"{unit.experiment.name} seed {unit.seed}"


def _serve(queue: _Queue, profile: str, device: str, say: Say) -> None:
    """Feed one worker process until nothing is left; a worker that dies fails its unit and is replaced."""
    worker: subprocess.Popen[str] | None = None
    while unit := queue.take():
        started = time.monotonic()
        try:
            if worker is None or worker.poll() is not None:
                worker = subprocess.Popen(
                    [sys.executable, "-m", "shrinkbook.experiments.work", profile, device],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **profiles.environment(profile)},
                )
            error = _ask(worker, unit, say)
        except (OSError, ValueError) as failure:  # no process to be had, or a line that is no answer
            queue.finish(unit, f"{type(failure).__name__}: {failure}", time.monotonic() - started)
            if worker:
                worker.kill()
            worker = None
            continue
        if error is None:
            worker.communicate()  # its pipe closes before it is gone: wait, or the next unit would go to a dead process
            if worker.returncode == -signal.SIGINT:
                queue.stop("interrupted")  # a terminal's Ctrl-C reaches us too, perhaps later: no new worker until then
            error, worker = f"its process ended with status {worker.returncode}", None
        queue.finish(unit, error or None, time.monotonic() - started)
    if worker:
        worker.communicate()


def _ask(worker: subprocess.Popen[str], unit: Unit, say: Say) -> str | None:
    """Have a worker compute a unit: why it failed, empty when the run is stored, None when the worker died."""
    assert worker.stdin and worker.stdout
    try:
        worker.stdin.write(json.dumps({"experiment": unit.experiment.name, "seed": unit.seed}) + "\n")
        worker.stdin.flush()
        for line in worker.stdout:
            answer = json.loads(line)
            if answer["event"] != "progress":
                return str(answer["text"])
            say(f"    {label(unit)}: {answer['text']}")
    except BrokenPipeError:
        pass
    return None


def _work(profile: str, device: str) -> None:
    """The worker's loop: a unit in, progress and an end out. Long runs speak at most every few seconds."""
    from shrinkbook.experiments.catalogue import EXPERIMENTS
    from shrinkbook.experiments.run import ensure, unit

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a page of traceback
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not enter the protocol
    last = time.monotonic()

    def tell(event: str, text: str) -> None:
        try:
            print(json.dumps({"event": event, "text": text}), file=out, flush=True)
        except BrokenPipeError:
            pass  # the parent is gone; finish the run and store it

    def progress(text: str) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            tell("progress", text)

    for line in sys.stdin:
        asked: Mapping[str, Any] = json.loads(line)
        last = time.monotonic()
        try:
            ensure(unit(EXPERIMENTS, asked["experiment"], profile, asked["seed"]), device, progress)
            tell("done", "")
        except Exception as error:  # one failing run must not end the others
            if not isinstance(error, ValueError):
                sys.excepthook(type(error), error, error.__traceback__)
            tell("failed", f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error))


if __name__ == "__main__":
    _work(*sys.argv[1:])
