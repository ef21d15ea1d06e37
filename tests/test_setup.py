"""`make setup` picks up after an interruption. A stand-in for Python records what make asks; pip is not under test."""

import os
import shutil
import stat
import subprocess

import pytest

from interviewmate_utils.config import ROOT

STAND_IN = """#!/bin/bash
echo "$@" >> {log}
case "$*" in
  *version_info*) exit {too_old} ;;
  --version) echo "Python 3.9.1" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *"pip"*install*) [ ! -e {folder}/kill ] ;;
esac
"""


@pytest.fixture
def project(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(folder, *variables, too_old=0):
    log, python = folder / "log", folder / "python"
    python.write_text(STAND_IN.format(log=log, folder=folder, too_old=too_old))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    log.write_text("")
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "WHEELHOUSE")}
    command = ["make", "setup", f"PYTHON={python}", *variables]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done, log.read_text()


def test_set_up_installs_with_the_lock_as_constraints(project):
    done, asked = make(project)
    assert done.returncode == 0, done.stderr
    assert "install -c requirements.lock -e .[test]" in asked
    assert (project / ".venv" / ".ready").exists()


def test_second_set_up_does_nothing(project):
    make(project)
    done, asked = make(project)
    assert done.returncode == 0
    assert asked == ""


def test_executor_is_installed_when_first_asked_for(project):
    shutil.copytree(ROOT / "notebooks/params/executors", project / "notebooks/params/executors")
    _, asked = make(project)
    assert "slurm" not in asked
    _, asked = make(project, "EXECUTOR=slurm")
    assert "install -c requirements.lock snakemake-executor-plugin-slurm" in asked
    assert ".[test]" not in asked
    _, asked = make(project, "EXECUTOR=slurm")
    assert asked == ""


def test_interrupted_set_up_is_made_anew(project):
    (project / "kill").touch()
    done, _ = make(project)
    assert done.returncode != 0
    assert not (project / ".venv" / ".ready").exists()
    (project / ".venv" / "half_a_package").touch()
    (project / "kill").unlink()
    done, asked = make(project)
    assert done.returncode == 0, done.stderr
    assert "-m venv .venv" in asked
    assert not (project / ".venv" / "half_a_package").exists()


def test_changed_lock_installs_again_without_a_new_environment(project):
    make(project)
    os.utime(project / "requirements.lock", (2**31, 2**31))
    _, asked = make(project)
    assert "install" in asked
    assert "-m venv" not in asked


def test_old_python_is_refused_with_advice(project):
    done, asked = make(project, too_old=1)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stdout
    assert "install" not in asked
