"""The run contract: execute one notebook so that its report can be trusted.

    python -m interviewmate_utils.run notebooks/01_prepare_data.ipynb -o reports/mine/01.ipynb -p max_length 256

Parameters are checked before a kernel starts. The report replaces its target, atomically, only if every code cell ran
and none failed; otherwise the last good report stays and `*.failed.ipynb` beside it says why. Exit codes: 0 done,
1 the notebook failed, 2 the parameters or inputs are wrong, 3 another run holds the target, 130 interrupted.
"""

import argparse
import contextlib
import fcntl
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config, provenance, tracking
from .kernel import Kernel
from .progress import Progress

if TYPE_CHECKING:
    import nbformat


class RunError(RuntimeError):
    """The notebook did not run to its end; the text is the reason, for people."""


def collect_parameters(notebook: Path, files: list[Path], pairs: list[tuple[str, str]]) -> tuple[dict, Any]:
    """Overrides (from files, then `-p` pairs, later ones win) and the validated whole; raises ParameterError.

    A later file may scale what an earlier one or the notebook says: `learning_rate: {times: 20}`.
    """
    defaults = config.parameters_cell(notebook)
    overrides: dict[str, Any] = {}
    for path in files:
        for name, value in config.read_parameters(path, notebook.stem).items():
            if config.is_factor(value) and name in defaults:
                value = _scaled((defaults | overrides)[name], value["times"], f"{path}: {name}")
            overrides[name] = value
    for name, text in pairs:
        overrides[name] = config.parse_yaml(text, f"-p {name}")
    return overrides, config.validate(config.parameters_class(notebook), defaults | overrides)


def _scaled(value: Any, factor: Any, where: str) -> int | float:
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in (value, factor)):
        kinds = f"{type(value).__name__} by {type(factor).__name__}"  # the values stay unsaid: one may be a secret
        raise config.ParameterError(f"{where}: {{times: ...}} multiplies a number by a number, not {kinds}")
    if isinstance(value, int) and isinstance(factor, int):
        return value * factor
    return float(f"{value * factor:.12g}")  # 0.0002 x 20 is 0.004, not 0.0040000000000000001


def check_inputs(notebook: Path, parameters: Any) -> list[Path]:
    """Files that this run reads; raises ParameterError naming those that are missing and the notebook that makes them."""
    inputs = parameters.inputs() if isinstance(parameters, config.Parameters) else []
    missing = [str(p.relative_to(config.ROOT) if p.is_relative_to(config.ROOT) else p) for p in inputs if not p.exists()]
    if missing:
        makers = sorted({maker for p in inputs if not p.exists() and (maker := config.made_by(p))})
        hint = f"run {', '.join(makers)} with profile '{parameters.profile}' first" if makers else "no notebook makes it"
        raise config.ParameterError(f"missing input: {', '.join(missing)}; {hint} (`make report` runs all notebooks in order)")
    return inputs


def check_output(notebook: Path, output: Path) -> None:
    """Raise ParameterError for a target that the report could not replace, or that is the notebook itself."""
    if output.suffix != ".ipynb" or output.is_dir():
        raise config.ParameterError(f"-o {output}: a report is a file whose name ends in .ipynb")
    if output.resolve() == notebook.resolve():
        raise config.ParameterError(f"-o {output}: the report would replace its own notebook")


def _execute(notebook: Path, draft: Path, overrides: dict, timeout_s: float, progress: Progress) -> float:
    """Run into `draft`; return the kernel's peak memory in GB. Raises RunError with the reason."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    def started(cell: Any, cell_index: int, **_: Any) -> None:
        progress.cell(cell_index, cell)

    with Kernel(timeout_s) as kernel:
        try:
            papermill.execute_notebook(
                notebook, draft, overrides, cwd=config.ROOT, progress_bar=False, km=kernel.manager, on_cell_start=started
            )
        except PapermillExecutionError as error:
            raise RunError(f"{error.ename}: {error.evalue} (code cell {error.exec_count})") from None
        except Exception as error:  # a dead kernel shows in several ways, from its start to its last cell
            raise RunError(kernel.death() if kernel.dead else f"{type(error).__name__}: {error}") from None
        return kernel.peak_memory_gb


def check_complete(report: "nbformat.NotebookNode") -> None:
    """Raise RunError unless every code cell ran, in order, without an error: `sys.exit(0)` and killed kernels leave gaps."""
    ran = 0
    for index, cell in enumerate(report.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        for output in cell.outputs:
            if output.output_type == "error":
                raise RunError(f"{output.ename}: {output.evalue} (cell {index + 1}); the cells after it did not run")
        if not cell.execution_count:
            raise RunError(f"cell {index + 1} never ran, though nothing reported an error")
        ran += 1
    if not ran:
        raise RunError("the notebook has no code cell that ran")


def run_notebook(notebook: Path, output: Path, overrides: dict, parameters: Any, inputs: list[Path], timeout_s: float) -> Path:
    """Execute under the contract and return the report's path.

    Raises
    ------
    RunError
        If the notebook failed; the previous report is untouched and the failed copy lies beside it.
    BlockingIOError
        If another process is running into the same target.
    """
    import nbformat

    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{output.stem}.tmp.ipynb")
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    with target_lock(output), Progress(output.stem) as progress:
        record = provenance.collect(notebook, overrides, parameters, inputs)
        started = time.time()
        with tracking.tracked(output, parameters, record) as tracked:
            try:
                peak = _execute(notebook, draft, overrides, timeout_s, progress)
                report = nbformat.read(draft, as_version=4)
                check_complete(report)
                record |= {"duration_s": round(time.time() - started, 1), "peak_memory_gb": round(peak, 2)}
                provenance.attach(report, record)
                nbformat.write(report, draft)
                draft.replace(output)
            except (RunError, OSError) as error:
                provenance.mark_failed(draft, failed, record, str(error))
                raise RunError(str(error)) from None
            finally:
                draft.unlink(missing_ok=True)
            failed.unlink(missing_ok=True)
            tracked.finish(record)
    return output


@contextlib.contextmanager
def target_lock(output: Path):
    """Hold the target for this process; the kernel of the operating system lets go of it when the process dies."""
    path = output.with_name(f".{output.stem}.lock")
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise BlockingIOError(f"{output} is being written by {lock.read().strip() or 'another run'}") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} since {time.strftime('%H:%M:%S')}")
        lock.flush()
        yield


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m interviewmate_utils.run", description="Run one notebook under the contract."
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="executed report (.ipynb)")
    parser.add_argument("-f", "--file", type=Path, action="append", default=[], help="YAML of parameters; later files win")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--timeout", type=float, default=6 * 3600, help="seconds for the whole notebook (default: six hours)")
    options = parser.parse_args(argv)
    try:
        if not options.notebook.is_file():
            known = ", ".join(sorted(p.name for p in config.NOTEBOOKS.glob("*.ipynb")))
            raise config.ParameterError(f"{options.notebook}: no such notebook; there are {known}")
        check_output(options.notebook, options.output)
        overrides, parameters = collect_parameters(options.notebook, options.file, options.parameter)
        inputs = check_inputs(options.notebook, parameters)
    except config.ParameterError as error:
        print(f"{options.notebook.name}: nothing was run.\n  " + str(error).replace("\n", "\n  "), file=sys.stderr)
        return 2
    try:
        run_notebook(options.notebook, options.output.absolute(), overrides, parameters, inputs, options.timeout)
    except BlockingIOError as error:
        print(f"{options.notebook.name}: nothing was run. {error}; wait for it, or choose another output.", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(f"{options.notebook.name}: interrupted; nothing was replaced.", file=sys.stderr)
        return 130
    except (RunError, OSError) as error:
        failed = options.output.with_name(f"{options.output.stem}.failed.ipynb")
        kept = f"The last good report {options.output} is untouched. " if options.output.exists() else ""
        where = f"The failed copy is {failed}." if failed.exists() else "No failed copy could be written."
        print(f"{options.notebook.name} FAILED: {error}\n  {kept}{where}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
