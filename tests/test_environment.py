"""environment.yml, pyproject.toml and requirements.lock agree, and the repository says nothing about who built it where."""

import re
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from interviewmate_utils.config import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK_LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
LOCK = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in LOCK_LINES}
DECLARED = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]


def test_every_lock_line_is_one_exact_public_version():
    for line in LOCK_LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*", line), f"{line}: not NAME==VERSION (a +cpu build is none)"


def test_torch_is_the_pin_and_brings_no_cuda_packages_along():
    assert LOCK["torch"] == "2.13.0"
    assert "torch==2.13.0" in PROJECT["dependencies"]
    assert not [name for name in LOCK if name.startswith(("nvidia", "triton", "cuda"))]


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda r: r.name)
def test_lock_pins_each_dependency_within_its_range(requirement):
    assert Version(LOCK[canonicalize_name(requirement.name)]) in requirement.specifier


def test_conda_environment_installs_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert python.split()[1] == PROJECT["requires-python"]
    assert pip == "pip"
    assert packages == {"pip": ["-c requirements.lock", "-e .[test]"]}


def test_installed_versions_are_the_locked_ones():
    from importlib import metadata

    differing = {}
    for requirement in DECLARED:
        installed = metadata.version(requirement.name).split("+")[0]
        if installed != LOCK[canonicalize_name(requirement.name)]:
            differing[requirement.name] = installed
    assert not differing, f"not the locked versions: {differing}"


def test_tracked_files_name_no_machine_and_stay_small():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing tells which files are tracked")
    own = "tests/test_environment.py"
    for name in listed.stdout.split():
        path = ROOT / name
        if not path.is_file():
            continue
        assert path.stat().st_size <= 20_000_000, f"{name} has {path.stat().st_size:,} bytes"
        if path.suffix in {".py", ".md", ".ipynb", ".yaml", ".yml", ".toml", ".lock", ""} and name not in (own, "LICENSE"):
            found = re.findall(
                r"/root/|/home/\w+/|/Users/\w+/|https?://[\w.]*pypi[\w.]*/simple", path.read_text(errors="ignore")
            )
            assert not [f for f in found if name != "tests/test_notebooks.py"], f"{name}: {found[:3]}"
