"""The process that a notebook's cells run in: started with the right environment, watched for memory and time."""

import contextlib
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import warm

# Large tensors come and go in every step; without the first two, glibc returns their pages to the system each time
# (3,400 against 5,800 tokens/s in pretraining on two cores). Other C libraries ignore them.
KERNEL_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found,ignore:`is_gradient_checkpointing`",
    "PYTHONHASHSEED": "0",
}


def end_with_parent() -> None:
    """Have this process end when the one that started it, and holds the other end of its stdin, is gone: killed, say."""

    def watch() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def environment_of_each(processes: int) -> dict[str, str]:
    """This process's environment for `processes` of its own that compute side by side: they share its threads equally.

    MKL has a variable of its own, which Snakemake sets for a job and which wins; more threads than cores wait spinning, and
    two workers with two threads each were four times slower than with one.
    """
    threads = str(max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // processes))
    return os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def _provisioner() -> type:
    from jupyter_client.provisioning import LocalProvisioner

    class Forking(LocalProvisioner):
        """Has the kernel forked from a process that has imported its libraries (`warm`)."""

        async def launch_kernel(self, cmd: list[str], **options: Any) -> dict:
            # python -m ipykernel_launcher ...; a kernel ends with its parent, whose number it would have read when imported
            arguments = [*cmd[3:], f"--IPKernelApp.parent_handle={os.environ[warm.SERVER].partition(':')[0]}"]
            folder = str(options.get("cwd") or Path.cwd())
            self.process = warm.Forked("ipykernel_launcher", arguments, options["env"], folder)
            self.pid = self.pgid = self.process.pid
            self.cwd = options.get("cwd")
            return self.connection_info

    return Forking


@dataclass
class Kernel:
    """A kernel process of our own over IPC (TCP where there is none), watched for memory and time."""

    timeout_s: float
    peak_memory_gb: float = 0.0
    timed_out: bool = False
    manager: Any = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Kernel":
        from jupyter_client.manager import AsyncKernelManager

        os.environ.update(KERNEL_ENVIRONMENT)
        self._folder = tempfile.TemporaryDirectory(prefix="im-")  # short: a socket's path has 107 characters at most
        self.manager = AsyncKernelManager(kernel_name="python3", connection_file=f"{self._folder.name}/kernel.json")
        if platform.system() != "Windows":
            self.manager.transport = "ipc"
        if os.environ.get(warm.SERVER):
            self.manager.provisioner = _provisioner()(kernel_spec=self.manager.kernel_spec, parent=self.manager)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    @property
    def process(self) -> Any:
        """The kernel's `subprocess.Popen`; None until nbclient has started it."""
        return getattr(self.manager.provisioner, "process", None)

    def _watch(self) -> None:
        import psutil

        deadline = time.monotonic() + self.timeout_s
        while not self._stop.wait(0.25):
            with contextlib.suppress(psutil.Error, AttributeError):
                kernel = psutil.Process(self.process.pid)
                family = [kernel, *kernel.children(recursive=True)]
                self.peak_memory_gb = max(self.peak_memory_gb, sum(p.memory_info().rss for p in family) / 1e9)
                if time.monotonic() > deadline:
                    self.timed_out = True
                    kernel.kill()
                    return

    @property
    def dead(self) -> bool:
        return self.timed_out or (bool(self.process) and self.process.poll() is not None)

    def death(self) -> str:
        """Why the kernel is gone, in words."""
        if self.timed_out:
            return f"time-out: stopped after {self.timeout_s:.0f} s (raise --timeout to allow more)"
        code, memory = self.process.poll(), f"peak memory {self.peak_memory_gb:.1f} GB"
        if code < 0:
            name = signal.Signals(-code).name
            guess = "; most likely out of memory" if name == "SIGKILL" else ""
            return f"kernel killed by {name}{guess} ({memory})"
        return f"kernel died with exit code {code} ({memory})"

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        if self.process:
            with contextlib.suppress(ProcessLookupError):  # the kernel leads a session: this takes what it started, too
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        self._folder.cleanup()
