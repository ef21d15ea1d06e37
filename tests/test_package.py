"""Importing is cheap: no module of the package pulls in torch until it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

import interviewmate_utils

PACKAGE = Path(interviewmate_utils.__file__).parent
TOP_LEVEL = sorted(p.stem for p in PACKAGE.glob("*.py")) + sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py"))
MODULES = ["interviewmate_utils" if name == "__init__" else f"interviewmate_utils.{name}" for name in TOP_LEVEL]


@pytest.mark.parametrize("module", MODULES)
def test_import_does_not_pull_in_torch(module: str) -> None:
    code = f"import sys, {module}; print([n for n in ('torch', 'transformers', 'peft') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
