"""The same DAG on Slurm: a throw-away cluster of two nodes on this machine, and what becomes of a run whose node dies."""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from interviewmate_utils import training
from interviewmate_utils.config import ROOT

RUNS = ("A_seed1", "A_seed2")
MEASURED = {"train_tps", "train_time_s", "peak_memory_gb"}  # differ from run to run
TINY = {
    "shared": {"profile": "tiny", "model": "data/models/embedded", "runs": ["A"], "seeds": [1, 2]},
    "workflow": {"threads": 1},
    "01_prepare_data": {"raw_file": "data/raw/few.jsonl", "max_length": 128},
    "04_train_lora": {"learning_rate": 0.002, "epochs": 8.0, "warmup_steps": 5},
}
# A machine of its own as far as processes and names go; it ends with whoever started it, and what runs on it ends with it.
MACHINE = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
NODE = 'hostname "$1" && mount --bind "$2" /etc/slurm && exec slurmd -D -N "$1"'
SLURM_CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdTimeout=15
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=5,sched_interval=5
NodeName=node1 NodeHostname=node1 NodeAddr=127.0.0.1 Port={first} CPUs=1 RealMemory=4000
NodeName=node2 NodeHostname=node2 NodeAddr=127.0.0.1 Port={second} CPUs=1 RealMemory=4000
PartitionName=main Nodes=node1,node2 Default=YES
"""


def lacking() -> str:
    """What keeps this machine from being a cluster; empty if nothing does."""
    if os.name != "posix" or os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch", "squeue"))):
        return "needs slurmctld, slurmd, munged and root: apt-get install slurm-wlm munge"
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        return "needs Snakemake's plugin: make setup EXECUTOR=slurm"
    if subprocess.run([*MACHINE, "true"], capture_output=True, check=False).returncode:
        return f"needs leave to start `{shlex.join(MACHINE)}`"
    return ""


if reason := lacking():
    pytest.skip(reason, allow_module_level=True)
pytestmark = pytest.mark.timeout(1800)  # about four minutes on two cores that nobody else uses


class Cluster:
    """munged, slurmctld and two slurmd, all children of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.settings, self.daemons = folder, folder / "etc", {}
        self.environment = os.environ | {"SLURM_CONF": str(self.settings / "slurm.conf")}

    def start(self) -> None:
        self.folder.chmod(0o755)
        self.settings.mkdir()
        with contextlib.ExitStack() as stack:
            bound = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
            ports = dict(zip(("control", "first", "second"), (s.getsockname()[1] for s in bound), strict=True))
        (self.settings / "slurm.conf").write_text(SLURM_CONF.format(folder=self.folder, **ports))
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._daemon("munged", "munged", "--foreground", *(f"--{k}={self.folder}/munge.{v}" for k, v in names.items()))
        wait_for((self.folder / "munge.socket").exists, 20)
        self._daemon("slurmctld", "slurmctld", "-D")
        for node in ("node1", "node2"):
            self._daemon(node, "sh", "-c", NODE, "sh", node, str(self.settings))
        wait_for(lambda: self.ask("sinfo", "-h", "-N", "-o", "%N %t") == ["node1 idle", "node2 idle"], 60)

    def _daemon(self, name: str, *command: str) -> None:
        output = (self.folder / f"{name}.out").open("w")
        self.daemons[name] = subprocess.Popen(
            [*MACHINE, *command], env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )

    def ask(self, *command: str) -> list[str]:
        """Lines that a Slurm command prints; none while there is no one to answer."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        return sorted(line.strip() for line in done.stdout.splitlines())

    def jobs(self) -> dict[str, dict[str, str]]:
        """What Slurm says of the job of each training run."""
        lines = self.ask("scontrol", "--oneliner", "show", "job")
        jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if line.startswith("JobId=")]
        return {job["Comment"].split("_wildcards_")[1]: job for job in jobs if "_wildcards_" in job.get("Comment", "")}

    def kill(self, name: str) -> None:
        """SIGKILL a daemon and everything below it, as when a machine loses power."""
        self.daemons[name].kill()
        self.daemons[name].wait()

    def stop(self) -> None:
        for name in reversed(self.daemons):
            self.kill(name)


def wait_for(condition, seconds: float, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        assert process is None or process.poll() is None, "Snakemake ended before it"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:  # pytest's own are private, which munged refuses
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@contextlib.contextmanager
def snakemake(folder: Path, environment: dict[str, str], *options: str) -> Iterator[subprocess.Popen]:
    """Train both runs; what Snakemake says goes to a file."""
    command = [*MACHINE, sys.executable, "-m", "snakemake", *options, "--"]
    command += [f"reports/tiny/04_train_lora_{run}.ipynb" for run in RUNS]
    environment = environment | {"PYTHONPATH": str(folder)}
    with (folder / "snakemake.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which both runs were trained on this machine, each with one thread."""
    folder = tmp_path_factory.mktemp("local")
    for name in ("interviewmate_utils", "notebooks", "data/raw", "data/models"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "Snakefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    questions = (folder / "data/raw/interview_qa.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "data/raw/few.jsonl").write_text("".join(questions[:40]), encoding="utf-8")
    (folder / "notebooks/params/profiles/tiny.yaml").write_text(yaml.safe_dump(TINY))
    options = ["--cores", "2", "--set-threads", "train_lora=1", "--nolock", "--config", "profile=tiny"]
    with snakemake(folder, dict(os.environ), *options) as process:
        assert process.wait(900) == 0, (folder / "snakemake.txt").read_text()[-3000:]
    return folder


@pytest.fixture(scope="module")
def trained(local: Path, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, str]]:
    """The same trainings on Slurm, by the command that `make report` gives; the node of one is killed after a checkpoint.

    The folder, the killed run and where Slurm had put the runs before.
    """
    folder = tmp_path_factory.mktemp("shared") / "checkout"
    shutil.copytree(local, folder)
    for path in (folder / "reports/tiny").glob("04_train_lora*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    tracked = folder / "notebooks/params/executors/slurm.yaml"
    settings = yaml.safe_load(tracked.read_text())
    settings["default-resources"] |= {"mem_mb": 2000, "cpus_per_task": 1, "runtime": 15}
    settings |= {"slurm-status-command": "squeue", "slurm-keep-successful-logs": True}
    settings["slurm-init-seconds-before-status-checks"] = 2
    tracked.with_name("test.yaml").write_text(yaml.safe_dump(settings))
    planned = subprocess.run(
        ["make", "-n", "report", "EXECUTOR=test", "PROFILE=tiny"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    options = shlex.split(next(line for line in planned.splitlines() if "/snakemake " in line))[1:]
    with snakemake(folder, cluster.environment, *options) as process:
        wait_for(lambda: [job["JobState"] for job in cluster.jobs().values()] == ["RUNNING"] * len(RUNS), 200, process)
        before = {run: job["BatchHost"] for run, job in cluster.jobs().items()}
        saved = "reports/tiny/04_train_lora_{}/checkpoints/checkpoint-*/checksums.json"
        wait_for(lambda: any(any(folder.glob(saved.format(run))) for run in RUNS), 400, process)
        killed = next(run for run in RUNS if any(folder.glob(saved.format(run))))
        cluster.kill(before[killed])
        assert not (folder / f"reports/tiny/04_train_lora_{killed}.ipynb").exists(), "the run ended before the kill"
        assert process.wait(900) == 0, (folder / "snakemake.txt").read_text()[-3000:]
    return folder, killed, before


def output(report: Path) -> str:
    """What the cells of a report printed and showed, as text."""
    shown = [o for cell in nbformat.read(report, as_version=4).cells for o in cell.get("outputs", [])]
    return "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in shown)


def test_runs_spread_over_the_nodes(trained) -> None:
    _, _, before = trained
    assert set(before) == set(RUNS)
    assert set(before.values()) == {"node1", "node2"}


def test_run_of_a_killed_node_is_requeued_and_resumes_on_the_other(trained, cluster: Cluster) -> None:
    folder, killed, before = trained
    (other,) = {"node1", "node2"} - {before[killed]}
    job = cluster.jobs()[killed]
    assert (job["JobState"], job["Restarts"], job["BatchHost"]) == ("COMPLETED", "1", other)
    assert cluster.ask("sinfo", "-h", "-N", "-n", before[killed], "-o", "%t")[0].startswith("down")
    (log,) = (folder / ".snakemake/slurm_logs").glob(f"rule_train_lora/{killed}/*.log")
    assert list(dict.fromkeys(re.findall(r"Host: (\S+)", log.read_text()))) == [before[killed], other]
    text = output(folder / f"reports/tiny/04_train_lora_{killed}.ipynb")
    assert re.search(r"resumed +True", text)
    first = training.schedule(28, TINY["04_train_lora"]["epochs"], 4)["eval_steps"]
    assert int(re.search(r"step (\d+)/", text).group(1)) > first


def test_results_equal_the_local_ones(trained, local: Path) -> None:
    folder, killed, _ = trained
    for run in RUNS:
        mine, theirs = (path / f"reports/tiny/04_train_lora_{run}" for path in (local, folder))
        results = [json.loads((path / "results.json").read_text()) for path in (mine, theirs)]
        assert ("train_time_s" in results[1]["metrics"]) == (run != killed)
        for result in results:
            result["metrics"] = {k: v for k, v in result["metrics"].items() if k not in MEASURED}
        assert results[0] == results[1]
        weights = "trained/adapter_model.safetensors"
        assert (mine / weights).read_bytes() == (theirs / weights).read_bytes()
        history = [pd.read_parquet(path / "tables/history.parquet") for path in (mine, theirs)]
        pd.testing.assert_frame_equal(*history, check_exact=True)
