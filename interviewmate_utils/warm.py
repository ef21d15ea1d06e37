"""Notebooks started from one process that has imported the heavy libraries, so that start-up is paid once.

    python -m interviewmate_utils.warm serve COMMAND ...    # COMMAND is Snakemake, in `make report`
    python -m interviewmate_utils.warm run NOTEBOOK ...     # within it: what `interviewmate_utils.run` does

While COMMAND runs, the first process forks, when asked, one that executes a notebook under the run contract, and one that
is its kernel. The libraries are imported when the first is asked for; ours are not among them, so that each process sees
them as they are. On Linux only: elsewhere a fork after such imports is unsafe, and all starts as usual.
"""

import array
import contextlib
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

SERVER = "INTERVIEWMATE_WARM"  # environment variable: the server's process number and socket
_LIBRARIES = ("ipykernel.kernelapp", "papermill", "mlflow.tracking", "matplotlib.pyplot", "seaborn", "datasets")
_LIBRARIES += ("transformers.trainer", "transformers.models.falcon.modeling_falcon", "peft", "statsmodels.api")
_FIGURES = "module://matplotlib_inline.backend_inline"  # a kernel says so before matplotlib is imported, which asks once


class Forked:
    """`python -m MODULE ARGUMENTS` forked by the server, in the shape of `subprocess.Popen`; it dies with its asker."""

    stdin = stdout = stderr = None

    def __init__(self, module: str, arguments: list[str], environment: dict[str, str], folder: str) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(os.environ[SERVER].partition(":")[2])
        asked = {"module": module, "arguments": arguments, "environment": environment, "folder": folder}
        request = json.dumps(asked).encode()
        descriptors = array.array("i", [1, 2])  # its output goes where ours goes
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
        self._connection.sendmsg([len(request).to_bytes(8, "big")], ancillary)
        self._connection.sendall(request)
        self._answers = self._connection.makefile("r")
        self.pid, self.returncode = int(self._answers.readline()), None

    def poll(self) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(BlockingIOError):
                self._connection.setblocking(False)
                told = self._connection.recv(100)
                self.returncode = int(told) if told else -signal.SIGKILL  # the server itself is gone
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = int(self._connection.recv(100) or -signal.SIGKILL)
            except TimeoutError:
                raise subprocess.TimeoutExpired("forked process", timeout or 0) from None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _become(request: dict, output: array.array) -> None:
    """In the forked process: a session, folder, environment and output of its own, then the module's main part."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(output, start=1):
        os.dup2(descriptor, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if threads := os.environ.get("OMP_NUM_THREADS"):  # the library that reads this is loaded already
        sys.modules["torch"].set_num_threads(int(threads))
    sys.argv = [request["module"], *request["arguments"]]
    sys.path[:] = ["", *(path for path in sys.path if path)]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _run_forked(request: dict, output: array.array) -> None:
    code: object = 0
    try:
        _become(request, output)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _receive(connection: socket.socket) -> tuple[dict, array.array]:
    output = array.array("i")
    head, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(2 * output.itemsize))
    output.frombytes(ancillary[0][2])
    size, text = int.from_bytes(head, "big"), b""
    while len(text) < size:
        text += connection.recv(size - len(text))
    return json.loads(text), output


def serve(listening: socket.socket, command: subprocess.Popen) -> int:
    """Fork a process for every connection until `command` ends; return its exit code. Those left over are killed."""
    forked: dict[socket.socket, int] = {}
    with selectors.DefaultSelector() as events:
        events.register(listening, selectors.EVENT_READ, "asked")
        events.register(os.pidfd_open(command.pid), selectors.EVENT_READ, "over")
        while True:
            for key, _ in events.select():
                if key.data == "over":
                    for pid in forked.values():
                        _kill(pid)
                    return command.wait()
                if key.data == "asked":
                    os.environ.setdefault("MPLBACKEND", _FIGURES)
                    for name in _LIBRARIES:
                        importlib.import_module(name)
                    connection, _ = listening.accept()
                    request, output = _receive(connection)
                    pid = os.fork()
                    if not pid:
                        for inherited in [listening, connection, *forked]:
                            inherited.close()
                        _run_forked(request, output)
                    for descriptor in output:
                        os.close(descriptor)
                    connection.sendall(f"{pid}\n".encode())
                    forked[connection] = pid
                    events.register(connection, selectors.EVENT_READ, connection)
                    events.register(os.pidfd_open(pid), selectors.EVENT_READ, connection)
                    continue
                connection = key.data
                if connection not in forked:
                    continue
                if key.fileobj is connection:  # nothing more is ever said: the notebook's process is gone
                    _kill(forked[connection])
                    events.unregister(connection)
                else:
                    _, status = os.waitpid(forked.pop(connection), 0)
                    with contextlib.suppress(OSError, KeyError):
                        events.unregister(connection)
                    with contextlib.suppress(OSError):
                        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                    connection.close()
                    events.unregister(key.fileobj)
                    os.close(key.fileobj)


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # just forked, it may have no group of its own yet
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def run(arguments: list[str]) -> int:
    """Execute a notebook, forked where a server is, else in this process; the exit code is `interviewmate_utils.run`'s."""
    if not os.environ.get(SERVER):
        from . import run as usual

        return usual.main(arguments)
    process = Forked("interviewmate_utils.run", arguments, dict(os.environ), str(Path.cwd()))
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # not seen by the forked process, which has a session of its own
            process.send_signal(signal.SIGINT)


def start(command: list[str]) -> int:
    """Serve forked processes to `command` and what it starts; return its exit code."""
    from .kernel import KERNEL_ENVIRONMENT

    if not sys.platform.startswith("linux"):
        return subprocess.run(command, check=False).returncode
    if any(os.environ.get(name) != value for name, value in KERNEL_ENVIRONMENT.items()):
        # the C library reads some of these when a process starts, and forked processes share that
        arguments = [sys.executable, "-m", "interviewmate_utils.warm", "serve", *command]
        os.execve(sys.executable, arguments, os.environ | KERNEL_ENVIRONMENT)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the command; it ends, and we with it
    with tempfile.TemporaryDirectory(prefix="im-") as folder, socket.socket(socket.AF_UNIX) as listening:
        address = f"{folder}/warm"
        listening.bind(address)
        listening.listen(64)
        return serve(listening, subprocess.Popen(command, env=os.environ | {SERVER: f"{os.getpid()}:{address}"}))


if __name__ == "__main__":
    sys.exit({"serve": start, "run": run}[sys.argv[1]](sys.argv[2:]))
