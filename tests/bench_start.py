"""What a notebook spends before its first cell has run: started fresh, and forked from the process that `make report` keeps.

The table goes to reports/published/.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from bench_falcon import machine

from interviewmate_utils import warm
from interviewmate_utils.config import NOTEBOOKS, ROOT

STEMS = [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
REPEATS = 3


def only_imports(stem: str, folder: Path) -> Path:
    """The notebook's import cell alone, with what training and generating import besides."""
    cells = [c for c in nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4).cells if c.cell_type == "code"]
    first = nbformat.v4.new_code_cell(cells[0].source)
    more = nbformat.v4.new_code_cell("from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, Trainer")
    parameters = nbformat.v4.new_code_cell("n: int = 1  # a number", metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(metadata=kernel, cells=[parameters, first, *([] if stem.startswith("13") else [more])])
    path = folder / f"imports_of_{stem}.ipynb"  # its own name would ask for its own parameters
    nbformat.write(notebook, path)
    return path


def measure(way: str, notebook: Path, out: Path) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-m", *way.split(), str(notebook), "-o", str(out / f"{notebook.stem}_out.ipynb")]
    environment = {k: v for k, v in os.environ.items() if k != warm.SERVER or "warm" in way}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        said = ["# Start-up of each notebook, up to its imports", "", f"{machine()}; median of {REPEATS}.", ""]
        said += ["| notebook | fresh, s | forked, s | ratio |", "| --- | ---: | ---: | ---: |"]
        print("\n".join(said), flush=True)
        for stem in STEMS:
            notebook = only_imports(stem, folder)
            times = {}
            for label, way in {"fresh": "interviewmate_utils.run", "forked": "interviewmate_utils.warm run"}.items():
                if label == "forked":
                    measure(way, notebook, folder)  # the first one pays for the imports
                times[label] = statistics.median(measure(way, notebook, folder) for _ in range(REPEATS))
            fresh, forked = times["fresh"], times["forked"]
            said.append(f"| {stem} | {fresh:.1f} | {forked:.1f} | {forked / fresh:.2f} |")
            print(said[-1], flush=True)
    (ROOT / "reports" / "published" / "start.md").write_text("\n".join(said) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        command = ["-m", "interviewmate_utils.warm", "serve", sys.executable, __file__, "served"]
        sys.exit(subprocess.run([sys.executable, *command], check=False).returncode)
    main()
