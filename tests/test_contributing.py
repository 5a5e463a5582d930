"""The two recipes of CONTRIBUTING.md, followed word for word in a copy of the repository."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from commands import REPOSITORY

PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(.*?)```(python|yaml|bash)\n(.*?)\n```\n", re.DOTALL)  # the text before it, language, content
FILE = re.compile(r"`((?:src|conf|tests)/[\w/]+\.(?:py|yaml))`")  # the first one before a block names its file


def section(title):
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """What a contributor's checkout has, without data, logs and environment."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("src", "conf", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("train.py", "eval.py", "pyproject.toml", "CONTRIBUTING.md"):
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


def follow(copy, title, files):
    """Write the files of a recipe, then run its commands."""
    blocks = BLOCK.findall(section(title))
    found = [(FILE.search(before)[1], content) for before, language, content in blocks if language != "bash"]
    (commands,) = (content for _, language, content in blocks if language == "bash")
    assert [path for path, _ in found] == files
    for path, content in found:
        assert not (copy / path).exists(), f"{path} is in the repository already"
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_text(content + "\n", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"}
    printed = []
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "python"
        done = subprocess.run([sys.executable, *arguments], cwd=copy, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        printed.append(done.stdout)
    return printed


@pytest.mark.slow
def test_add_a_paper(copy):
    paper = "src/quintet/papers/lenet"
    files = [f"{paper}/network.py", f"{paper}/module.py", f"{paper}/__init__.py", "conf/model/lenet.yaml"]
    files += ["conf/experiment/lenet/sample.yaml", "tests/papers/lenet/test_lenet.py"]
    *_, tested = follow(copy, "Add a paper", files)
    passed = int(re.search(r"(\d+) passed", tested)[1])
    assert passed >= 8 and "failed" not in tested and "skipped" not in tested, tested
    assert "lenet/sample" in (copy / "logs/lenet/sample/first/eval/explain/result.json").read_text()


@pytest.mark.slow
def test_add_a_data_set(copy):
    follow(copy, "Add a data set", ["src/quintet/data/examples/wine.py", "conf/data/wine.yaml"])
