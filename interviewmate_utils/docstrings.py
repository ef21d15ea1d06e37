"""Prose from the docstrings of installed, permissively licensed packages.

The embedded model is pretrained on this text because every installation already holds it: nothing is downloaded, the
licences allow it, and it shares no sentence with our interview corpus. Sources are parsed with `ast`, never imported.
"""

import ast
import gc
import inspect
import re
import sys
import sysconfig
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

PERMISSIVE = re.compile(r"\b(MIT|BSD|Apache|ISC|PSF|Python Software Foundation|HPND|Unlicense|0BSD|CC0)\b", re.I)
COPYLEFT = re.compile(r"\b(A?GPL|LGPL|General Public|MPL|Mozilla|EPL|CDDL|proprietary)", re.I)
STDLIB = "python-stdlib"  # the interpreter's own library, under the PSF licence
_FIELD = re.compile(r"@\w+|:[A-Za-z][\w*, .-]*:(?=\s|$)|:\w+ [^:`]+:(?=\s|$)")  # :param x: of Sphinx, @param x of epydoc
_SKIP_PARTS = re.compile(r"(^|/)(tests?|testing|_vendor|vendor|vendored|conftest|doc|externals?|_generated)(/|\.|_)", re.I)
_SECTION = re.compile(r"^(-{3,}|={3,}|~{3,}|\^{3,}|\*{3,})\s*$")
_KEPT_SECTIONS = {"notes", "extended summary", "description", "background", "overview", "introduction", "details"}
_GOOGLE_LIST = re.compile(
    r"^(Args|Arguments|Parameters|Params|Returns?|Yields|Raises|Attributes|Examples?|Usage|Inputs?|Outputs?|Shape|"
    r"Keyword Arg(?:ument)?s|References|See Also|Methods|Todo)\s*:{0,2}\s*$",
    re.I,
)


@dataclass(frozen=True)
class Package:
    """One installed distribution whose licence allows reuse of its docstrings."""

    name: str
    version: str
    licence: str
    files: tuple[Path, ...]


def _licences_of(dist: metadata.Distribution) -> list[str]:
    """What a distribution declares, the most exact statement first: SPDX expression, classifiers, free text."""
    meta = dist.metadata
    classifiers = [c.split(" :: ")[-1] for c in meta.get_all("Classifier") or [] if c.startswith("License ::")]
    stated = [meta.get("License-Expression"), "; ".join(classifiers), (meta.get("License") or "").strip().split("\n")[0]]
    return [text.strip() for text in stated if text and text.strip()]


def list_packages() -> list[Package]:
    """Installed distributions under a permissive licence, by name, and the standard library.

    A distribution without a readable licence, or with a copyleft one beside it, is left out.
    """
    found = {}
    for dist in metadata.distributions():
        licences, name = _licences_of(dist), (dist.metadata["Name"] or "").lower().replace("_", "-")
        if not name or name == "interviewmate-utils" or not licences or any(map(COPYLEFT.search, licences)):
            continue
        if not PERMISSIVE.search(licences[0]):
            continue
        files = sorted(str(f) for f in dist.files or [] if f.suffix == ".py" and not _SKIP_PARTS.search(str(f)))
        if files and name not in found:
            found[name] = Package(name, dist.version, licences[0][:60], tuple(Path(str(dist.locate_file(f))) for f in files))
    root = Path(sysconfig.get_paths()["stdlib"])
    files = (p for p in root.rglob("*.py") if "site-packages" not in p.parts and "lib2to3" not in p.parts)
    files = sorted(p for p in files if not _SKIP_PARTS.search(str(p.relative_to(root))))
    found[STDLIB] = Package(STDLIB, sys.version.split()[0], "PSF-2.0", tuple(files))
    return [found[name] for name in sorted(found)]


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """What `ast.walk` gives, in its order, without the expressions, which hold no docstring and are nearly all of it."""
    waiting = deque([tree])
    while waiting:
        yield (node := waiting.popleft())
        inside = ast.iter_child_nodes(node)
        waiting.extend(child for child in inside if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case))


def docstrings_of(path: Path) -> Iterator[str]:
    """Docstrings of one source file, in order; none where the file does not parse."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError):  # templates and syntax fixtures of a package
        return
    if path.name == "topics.py":  # pydoc's language reference: a dictionary of long texts, no docstrings
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 400:
                yield node.value
        return
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and len(text) > 60:
                yield inspect.cleandoc(text)


def _strip_markup(text: str) -> str:
    text = re.sub(r":[a-z:]+:`~?([^`<]+)(?:<[^`>]*>)?`", r"\1", text)  # :func:`~a.b` -> a.b
    text = re.sub(r"`([^`<]+?)\s*<[^`>]*>`_*", r"\1", text)  # `text <url>`_ -> text
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)  # [text](url) -> text
    text = re.sub(r"\s*\[[\d,\s]+\]_?", "", text)  # [1]_ -> nothing
    text = re.sub(r"`+([^`]+)`+_*", r"\1", text)
    text = re.sub(r"\*{1,2}([^*\s][^*]*)\*{1,2}", r"\1", text)
    return re.sub(r"\s+", " ", text).strip()


def _blocks(docstring: str) -> Iterator[str]:
    """Paragraphs of a docstring without parameter lists, code, tables and directives."""
    lines, kept, skipping = docstring.splitlines(), [], False
    code_indent = None
    for i, line in enumerate(lines):
        indent, bare = len(line) - len(line.lstrip()), line.strip()
        if i + 1 < len(lines) and bare and _SECTION.match(lines[i + 1].strip()):
            skipping = bare.lower() not in _KEPT_SECTIONS
            kept.append("")
            continue
        if indent == 0 and _GOOGLE_LIST.match(bare):
            skipping = True
        elif skipping and indent == 0 and bare and i and not lines[i - 1].strip() and len(bare.split()) > 6:
            skipping = bool(re.match(r"^[\w*, ]+\s*:\s", bare))  # prose at the margin ends a Google-style list
        if code_indent is not None and bare and indent <= code_indent:
            code_indent = None
        if skipping or code_indent is not None or _SECTION.match(bare):
            kept.append("")
        elif (field := _FIELD.match(bare)) or bare.startswith((">>>", "...", "|", "+-", "..", "$", "#")):
            code_indent = indent if field or bare.startswith("..") else None
            kept.append("")
        else:
            kept.append(re.sub(r"^\s*([-*+•]|\d+[.)])\s+", "\n", line))
            if bare.endswith("::"):
                code_indent = indent
    for block in re.split(r"\n\s*\n", "\n".join(kept)):
        yield _strip_markup(block.replace("::", ":"))


def _is_prose(block: str) -> bool:
    words = block.split()
    if not 8 <= len(words) <= 400 or not re.match(r"[A-Z\"(]", block) or block[-1] not in ".!?:)":
        return False
    plain = sum(bool(re.fullmatch(r"[\"'(]?[A-Za-z][A-Za-z'-]*[.,;:!?)\"']*", w)) for w in words)
    lower = sum(w[0].islower() for w in words)
    return (
        plain >= 0.78 * len(words) and lower >= 0.55 * len(words) and "http" not in block and "copyright" not in block.lower()
    )


def _prose_in(path: Path) -> list[list[str]]:
    return [list(filter(_is_prose, _blocks(docstring))) for docstring in docstrings_of(path)]


def prose_of(packages: Sequence[Package], seen: set[int] | None = None) -> dict[str, list[str]]:
    """Documents (the prose of one docstring each) by package name, near-repeats removed across all packages.

    A paragraph goes when more than 40 % of its eight-word sequences occurred before, in any package; `seen` carries
    the hashes of those sequences from one call to the next, so that no held-out paragraph shares more with training.
    """
    seen = set() if seen is None else seen
    files = [(package.name, path) for package in packages for path in package.files]
    result: dict[str, list[str]] = {package.name: [] for package in packages}
    # Spawned, because a fork of a process with torch's threads may hang. Looking for cycles, of which a tree has none, would
    # take twice the time of parsing
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=gc.disable) as pool:
        parsed = pool.map(_prose_in, [path for _, path in files], chunksize=64)
        for (name, _), docstrings in zip(files, parsed, strict=True):
            for blocks in docstrings:
                fresh = []
                for block in blocks:
                    words = re.findall(r"[a-z]+", block.lower())
                    grams = {hash(tuple(words[i : i + 8])) for i in range(max(1, len(words) - 7))}
                    if len(grams & seen) <= 0.4 * len(grams):
                        fresh.append(block)
                    seen |= grams
                if fresh:
                    result[name].append("\n".join(fresh))
    return result
