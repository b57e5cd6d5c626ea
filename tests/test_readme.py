"""Every command of the README runs: here, in CI itself if it takes minutes, or as a dry run if it downloads."""

import os
import re
import subprocess

import pytest

from shrinkbook.evidence import store

ROOT = store.root()
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines() if line]
BY_CI = {"make reproduce", "make test", "make check", "make verify", "make book", "make assignments"}
LOOKED_UP = re.compile(
    r"make (setup TORCH_INDEX=|data |bench|grade |reproduce PROFILE=standard|reproduce PHONE=|phone-)"
)


def clean_environment(tmp_path) -> dict[str, str]:
    return {**os.environ, "SHRINKBOOK_BUILD": str(tmp_path / "build")}


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, tmp_path):
    words = command.split()
    if command in BY_CI or LOOKED_UP.match(command):
        assert words[0] == "make"
        done = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    else:
        environment = {key: value for key, value in clean_environment(tmp_path).items() if key != "SHRINKBOOK_RESULTS"}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_ci_runs_what_the_readme_says():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    goals = {word for line in re.findall(r"^step make (.*)", script, re.M) for word in line.split()}
    assert {command.removeprefix("make ") for command in BY_CI} <= goals


def test_what_would_lead_make_astray_does_not_reach_its_commands():
    astray = dict.fromkeys(("JUPYTER_PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"), "1")
    shown = ["make", "--eval=shown:; @env", "shown"]
    done = subprocess.run(shown, cwd=ROOT, env={**os.environ, **astray}, capture_output=True, text=True, check=True)
    assert not set(astray) & {line.partition("=")[0] for line in done.stdout.splitlines()}


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_scoreboard_is_what_the_record_gives():
    from shrinkbook import results
    from shrinkbook.evidence import report

    assert report.readme_block(README, results.front()) == README
