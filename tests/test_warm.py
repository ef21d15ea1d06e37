"""Processes forked from a warm one behave as freshly started ones do, and none outlives who asked for it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import DRIVER, Workshop

from interviewmate_utils import warm

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux only")
WAIT = "import os; print(os.environ['INTERVIEWMATE_WARM'], flush=True); import sys; sys.exit(len(input()))"


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen]:
    """`warm serve`, whose command waits for a line and ends with the line's length as its exit code."""
    command = [sys.executable, "-m", "interviewmate_utils.warm", "serve", sys.executable, "-c", WAIT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(warm.SERVER, address)
            yield process
        if process.poll() is None:
            process.communicate("\n", timeout=60)


def fork(folder: Path, code: str, *arguments: str, **environment: str) -> warm.Forked:
    """Have `code` run as a module of its own in `folder`."""
    (folder / "driver.py").write_text(code)
    return warm.Forked("driver", [*arguments], dict(os.environ) | environment, str(folder))


def contract(workshop: Workshop, notebook: Path, **environment: str) -> warm.Forked:
    """The notebook under the run contract, in the workshop's repository."""
    arguments = [workshop.root, workshop.lock, workshop.store, notebook, "-o", workshop.report]
    return fork(workshop.root, DRIVER, *map(str, arguments), **environment)


def gone(pid: int, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def outputs(report: Path) -> list:
    cells = nbformat.read(report, as_version=4).cells
    return [[out.get("text") or out.get("data") for out in c.outputs] for c in cells if c.cell_type == "code" and c.outputs]


def test_report_is_that_of_a_freshly_started_process(server, workshop: Workshop) -> None:
    cells = (
        "import os, sys; print(os.getcwd(), os.environ['MALLOC_MMAP_MAX_'], sys.argv[0] != '')",
        "import numpy; numpy.arange(5) ** 2",
        "import matplotlib.pyplot as plt; figure, axes = plt.subplots(); _ = axes.plot([1, 2])",
    )
    notebook = workshop.notebook(*cells)
    assert contract(workshop, notebook).wait(120) == 0
    forked = outputs(workshop.report)
    fresh = workshop.start(notebook)
    assert fresh.wait(120) == 0
    assert forked == outputs(workshop.report)
    assert "image/png" in forked[-1][0], "the figure is not shown"
    assert workshop.statuses() == ["FINISHED", "FINISHED"]


def test_heavy_libraries_are_there_and_ours_are_not(server, tmp_path: Path) -> None:
    code = "import sys, json; json.dump([n in sys.modules for n in sys.argv[1:]], open('told.json', 'w'))"
    names = ["torch", "transformers.trainer", "papermill", "interviewmate_utils.config", "interviewmate_utils.lora"]
    assert fork(tmp_path, code, *names).wait(120) == 0
    assert json.loads((tmp_path / "told.json").read_text()) == [True, True, True, False, False]


def test_threads_are_those_asked_for(server, tmp_path: Path) -> None:
    code = "import torch, json; json.dump(torch.get_num_threads(), open('told.json', 'w'))"
    assert fork(tmp_path, code, OMP_NUM_THREADS="1").wait(120) == 0
    assert json.loads((tmp_path / "told.json").read_text()) == 1


@pytest.mark.parametrize(
    ("cell", "reason"),
    [("1 / 0", "ZeroDivisionError"), ("import os; os.kill(os.getpid(), 9)", "kernel killed by SIGKILL")],
)
def test_failure_is_told_as_ever(server, workshop: Workshop, cell: str, reason: str) -> None:
    before = workshop.last_good_report()
    assert contract(workshop, workshop.notebook(cell)).wait(120) == 1
    assert workshop.report.read_bytes() == before
    assert reason in workshop.failed.read_text()


@pytest.mark.parametrize(
    ("code", "expected"), [("raise SystemExit(7)", 7), ("1 / 0", 1), ("raise SystemExit('why')", 1), ("", 0)]
)
def test_exit_codes_are_those_of_python(server, tmp_path: Path, code: str, expected: int) -> None:
    assert fork(tmp_path, code).wait(120) == expected


def test_signal_shows_in_the_exit_code(server, tmp_path: Path) -> None:
    process = fork(tmp_path, "import time; time.sleep(100)")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    process.kill()
    assert process.wait(30) == process.poll() == -signal.SIGKILL


ASKER = """
import os, sys, time
from interviewmate_utils import warm
process = warm.Forked("driver", [], dict(os.environ), sys.argv[1])
print(process.pid, flush=True)
time.sleep(100)
"""


def test_forked_process_and_what_it_started_end_with_its_asker(server, tmp_path: Path) -> None:
    child = (
        "import subprocess, time; p = subprocess.Popen(['sleep', '100']); open('child', 'w').write(str(p.pid)); time.sleep(100)"
    )
    (tmp_path / "driver.py").write_text(child)
    with subprocess.Popen([sys.executable, "-c", ASKER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as asker:
        pid = int(asker.stdout.readline())
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
            time.sleep(0.05)
        assert psutil.pid_exists(pid)
        asker.kill()
    assert gone(pid)
    assert gone(int((tmp_path / "child").read_text()))


CLIENT = """
import signal, sys
from interviewmate_utils import warm
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
folder, *arguments = sys.argv[1:]
forked = warm.Forked
warm.Forked = lambda _module, _arguments, environment, _folder: forked("driver", arguments, environment, folder)
sys.exit(warm.run([]))
"""


def test_ctrl_c_interrupts_the_notebook(server, workshop: Workshop) -> None:
    """As from `make`: the signal reaches the command-line process alone, the forked one has a session of its own."""
    notebook = workshop.notebook(f"open({str(workshop.root / 'began')!r}, 'w')", "import time; time.sleep(100)")
    (workshop.root / "driver.py").write_text(DRIVER)
    arguments = [workshop.root, workshop.root, workshop.lock, workshop.store, notebook, "-o", workshop.report]
    with subprocess.Popen([sys.executable, "-c", CLIENT, *map(str, arguments)], stderr=subprocess.PIPE, text=True) as process:
        while not (workshop.root / "began").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "interrupted; nothing was replaced" in process.stderr.read()


def test_leftovers_are_killed_and_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "interviewmate_utils.warm", "serve", sys.executable, "-c", WAIT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(warm.SERVER, process.stdout.readline().strip())
            left = fork(tmp_path, "import time; time.sleep(100)")
        process.communicate("seven..\n", timeout=60)
    assert process.returncode == 7
    assert gone(left.pid)
    assert left.wait(10) == -signal.SIGKILL


def test_without_a_server_the_notebook_runs_as_usual(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(warm.SERVER, raising=False)
    assert warm.run([str(workshop.notebook("print(6 * 7)")), "-o", str(workshop.report)]) == 0
    assert outputs(workshop.report)[-1] == ["42\n"]
