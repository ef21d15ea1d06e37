"""Read and check parameters, whatever the notebook: literals in its cell, YAML from outside, errors written for people."""

import ast
import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

SECRET_NAME = re.compile(r"(^|[_-])(token|key)$|api_?key|passw(or)?d|passphrase|secret|credential", re.I)
_SECRET_VALUE = re.compile(r"(?<!\w)(hf_|sk-|ghp_|github_pat_|AKIA)(?=[\w-]*\d)[\w-]{12,}")


class _Yaml(yaml.SafeLoader):
    """YAML whose numbers are those of Python and JSON: YAML 1.1 reads 2e-4 as a string, for want of a point."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class ParameterError(ValueError):
    """A parameter that is unknown, of the wrong type, out of range, or a secret. The text is written for people."""


def read_cells(notebook: Path) -> list[dict[str, Any]]:
    """A notebook's cells: `cell_type`, `source`, `tags`. Read as JSON: nbformat takes 2.5 s to import, on every `make`.

    Raises
    ------
    ParameterError
        If the file is not a notebook of format 4.
    """
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
        cells = [c | {"source": "".join(c["source"]), "tags": c["metadata"].get("tags", [])} for c in content["cells"]]
    except (OSError, ValueError) as error:
        raise ParameterError(f"{notebook}: not a notebook: {one_line(error)}") from None
    except (KeyError, TypeError, AttributeError):
        raise ParameterError(f"{notebook}: not a notebook of format 4 (JSON with cells)") from None
    return cells


def parameters_cell(notebook: Path) -> dict[str, Any]:
    """Names and default values of the notebook's cell tagged `parameters`, in order.

    Raises
    ------
    ParameterError
        If there is no such cell, or a value in it is not a literal.
    """
    tagged = [c["source"] for c in read_cells(notebook) if "parameters" in c["tags"]]
    if len(tagged) != 1:
        raise ParameterError(f"{notebook.name}: {len(tagged)} cells are tagged `parameters`, exactly one is needed")
    values: dict[str, Any] = {}
    try:
        statements = ast.parse(tagged[0]).body
    except SyntaxError as error:
        raise ParameterError(f"{notebook.name}, parameters cell, line {error.lineno}: {error.msg}") from None
    for node in statements:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        try:
            (target,) = targets
            values[target.id] = ast.literal_eval(node.value)
        except (AttributeError, TypeError, ValueError):
            where = f"{notebook.name}, parameters cell, line {node.lineno}"
            raise ParameterError(f"{where}: only `name: type = literal` is allowed, not `{ast.unparse(node)}`") from None
    return values


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _holds_secret(value: Any) -> bool:
    if isinstance(value, dict):
        return any(SECRET_NAME.search(str(key)) or _holds_secret(item) for key, item in value.items())
    if isinstance(value, list | tuple | set):
        return any(map(_holds_secret, value))
    return isinstance(value, str) and bool(_SECRET_VALUE.search(value))


def validate(cls: type[BaseModel], values: Mapping[str, Any]) -> Any:
    """An instance of `cls`, or a ParameterError that names each parameter, its value, and what is allowed."""
    problems = []
    for name, value in values.items():
        if SECRET_NAME.search(name) or _holds_secret(value):
            problems.append(
                f"{name}: looks like a secret, and a report stores its parameters. Set it in the environment "
                "instead (for Hugging Face: HF_TOKEN)"
            )
        elif name not in cls.model_fields:
            near = difflib.get_close_matches(name, cls.model_fields, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            problems.append(f"{name} = {value!r}: unknown parameter; {hint}known: {', '.join(cls.model_fields)}")
    if problems:
        raise ParameterError("\n".join(problems))
    try:
        return cls(**values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            name = ".".join(map(str, item["loc"])) or "parameters"
            if item["type"] == "missing":
                lines.append(f"{name}: missing")
            else:
                given = "" if item["loc"] == () else f" = {item['input']!r} ({type(item['input']).__name__})"
                lines.append(f"{name}{given}: {item['msg'].removeprefix('Value error, ')}")
        raise ParameterError("\n".join(lines)) from None


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text holds. An error names the place but quotes nothing: a secret may stand there."""
    try:
        return yaml.load(text, Loader=_Yaml)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ParameterError(f"{where}: not valid YAML{place}: {getattr(error, 'problem', None) or 'unreadable'}") from None
