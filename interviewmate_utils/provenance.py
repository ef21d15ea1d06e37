"""Where a report comes from: written into its metadata and shown in it as a box; compared later with what is there now."""

import ast
import functools
import html
import json
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config
from .parameters import read_cells

if TYPE_CHECKING:
    import nbformat
    import pandas as pd

PACKAGE = Path(__file__).parent
VERSIONS = ("torch", "transformers", "peft", "datasets", "evaluate", "papermill")
LOCK = config.ROOT / "requirements.lock"


@functools.cache
def _modules_named(source: str) -> list[str]:
    """Modules of this package that some Python names in its imports."""
    try:
        tree = ast.parse(re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", source))  # magics are not Python
    except SyntaxError:
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            ours = [alias.name for alias in node.names if alias.name.startswith("interviewmate_utils.")]
            names += [name.removeprefix("interviewmate_utils.") for name in ours]
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("interviewmate_utils")):
            module = (node.module or "").removeprefix("interviewmate_utils").strip(".")
            names += [module] if module else [alias.name for alias in node.names]
    return names


def modules_used(notebook: Path) -> list[Path]:
    """Files of this package that a notebook imports, directly or through each other; found by reading, not importing.

    A folder counts as a whole, but for its command line (`__main__.py`), which nothing imports.
    """
    queue, found = [c["source"] for c in read_cells(notebook) if c["cell_type"] == "code"], set()
    while queue:
        for name in _modules_named(queue.pop()):
            base = PACKAGE / name.split(".")[0]
            files = [base.with_suffix(".py")] if base.with_suffix(".py").exists() else sorted(base.rglob("*.py"))
            for path in files:
                if path not in found and path.name != "__main__.py":
                    found.add(path)
                    queue.append(path.read_text(encoding="utf-8"))
    return sorted(found)


def notebook_digest(notebook: Path) -> str:
    """Digest of what a notebook says: its cells' sources and tags, not outputs or editor metadata."""
    return config.digest_of([(c["cell_type"], c["source"], c["tags"]) for c in read_cells(notebook)])


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(config.ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _relative(path: Path) -> str:
    return str(path.relative_to(config.ROOT)) if path.is_relative_to(config.ROOT) else str(path)


def collect(notebook: Path, overrides: dict, parameters: Any, inputs: list[Path]) -> dict:
    """What identifies a run before it starts. Paths are relative to the repository."""
    values = parameters.model_dump(mode="json")
    device = str(values.get("device", "cpu"))
    if re.match(r"auto($|[*+])", device):
        from .models import pick_device

        device = device.replace("auto", pick_device())
    model, _, revision = str(getattr(parameters, "model", "")).partition("@")
    return {
        "notebook": _relative(notebook.resolve()),
        "notebook_digest": notebook_digest(notebook),
        "package_digest": config.digest_of([config.digest(p) for p in modules_used(notebook)]),
        "parameters": values,
        "parameters_digest": config.digest_of(values),
        "overrides": {name: values[name] for name in overrides},
        "inputs": {_relative(p): config.digest(p) for p in inputs},
        "lock_digest": config.digest(LOCK),
        "git_commit": _git("rev-parse", "--short=12", "HEAD") or "none",
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "model": model,
        "model_revision": revision or (config.digest(config.ROOT / model) if model and (config.ROOT / model).exists() else ""),
        "device": device,
        "machine": f"{platform.machine()}, {platform.system()}, Python {sys.version.split()[0]}",
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def overview(parameters: config.Parameters) -> "pd.DataFrame":
    """Parameters, device and versions of this run, one per row, for the top of a notebook."""
    import pandas as pd

    values = {name: json.dumps(value) for name, value in parameters.model_dump().items()}
    if "device" in values:
        from .models import pick_device

        values["device"] += f" -> {pick_device(re.split('[*+]', parameters.device)[0])}"
    values["python"] = sys.version.split()[0]
    values |= {name: metadata.version(name) for name in VERSIONS}
    return pd.DataFrame({"value": values})


def box(record: dict) -> str:
    """The record as a Markdown table."""
    rows = {
        "Notebook": f"`{record['notebook']}` ({record['notebook_digest']})",
        "Package": record["package_digest"],
        "Parameters": "<br>".join(f"`{k} = {json.dumps(v)}`" for k, v in record["parameters"].items())
        + f" ({record['parameters_digest']})",
        "Inputs": "<br>".join(f"`{k}` ({v})" for k, v in record["inputs"].items()) or "none",
        "Lock file": record["lock_digest"],
        "Git": record["git_commit"] + (", with uncommitted changes" if record["git_dirty"] else ""),
        "Model": f"`{record['model']}` at {record['model_revision'] or 'no pinned revision'}" if record["model"] else "none",
        "Machine": f"{record['machine']}; device {record['device']}",
        "Versions": ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
        "Started": record["started"],
        "Took": f"{record['duration_s']} s, peak memory {record['peak_memory_gb']} GB",
    }
    body = "\n".join(f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in rows.items())
    return "**Provenance** of this report\n\n| | |\n|---|---|\n" + body


def _insert(report: "nbformat.NotebookNode", index: int, text: str, tag: str) -> None:
    import nbformat

    report.cells.insert(index, nbformat.v4.new_markdown_cell(text, metadata={"tags": [tag]}))


def attach(report: "nbformat.NotebookNode", record: dict) -> None:
    """Write the record into the report's metadata and, as its last cell, into what a reader sees."""
    report.metadata["interviewmate"] = record
    if config.EMBEDDED_MODEL in (record["model"], *record["inputs"]):
        _insert(report, 1, f"> **{config.CAVEAT}**", "caveat")
    _insert(report, len(report.cells), box(record), "provenance")


def mark_failed(draft: Path, failed: Path, record: dict, reason: str) -> None:
    """Keep the draft as `failed`, with the reason on top; where a full disk cannot hold it, the notebook without outputs."""
    import nbformat

    first = html.escape(reason.split("\n")[0], quote=False)
    text = f"# FAILED: {first}\n\nThis is not a report: the run stopped. Nothing below may be quoted."
    for source in (draft, config.ROOT / record["notebook"]):
        try:
            report = nbformat.read(source, as_version=4)
            for cell in report.cells if source != draft else ():
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
            report.metadata["interviewmate"] = record | {"failed": reason}
            _insert(report, 0, text, "failed")
            draft.unlink(missing_ok=True)  # makes room
            failed.write_text(nbformat.writes(report), encoding="utf-8")
            return
        except (OSError, ValueError):
            failed.unlink(missing_ok=True)


def read(report: Path) -> dict:
    """The provenance record of an executed report; empty for a notebook that was not run under the contract."""
    return json.loads(report.read_text(encoding="utf-8"))["metadata"].get("interviewmate", {})


def changes_since(report: Path) -> list[str]:
    """What differs now from what this report was made of, in words; empty if it is current."""
    record = read(report)
    if not record:
        return ["it was not executed under the run contract"]
    notebook, changes = config.ROOT / record["notebook"], []
    if not notebook.exists():
        return [f"{record['notebook']} is gone"]
    if notebook_digest(notebook) != record["notebook_digest"]:
        changes.append(f"{record['notebook']} changed")
    if config.digest_of([config.digest(p) for p in modules_used(notebook)]) != record["package_digest"]:
        changes.append("code of interviewmate_utils that it uses changed")
    changes += [
        f"{name} {'is gone' if now == 'absent' else 'changed'}"
        for name, then in record["inputs"].items()
        if (now := config.digest(config.ROOT / name)) != then
    ]
    if config.digest(LOCK) != record["lock_digest"]:
        changes.append("requirements.lock changed")
    return changes
