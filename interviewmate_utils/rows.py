"""Rows from elsewhere: read a JSONL or CSV file, clean its text, validate each row.

Nothing is dropped silently: whatever does not become a row becomes a `Problem` that names file, line, field and reason.
"""

import csv
import io
import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

QUESTION, ANSWER, LINE, FILE = "question", "answer", "line", "file"
ID, PARENT = "id", "parent_id"  # columns of a corpus with follow-ups
MAX_LINE_BYTES = 1_000_000
MAX_DEPTH = 32  # levels of lists and objects in one JSON line; deeper ones break what reads them later
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Problem:
    """One reason why a line did not become a row. `line` is where the row starts, counted from 1."""

    file: str
    line: int
    field: str
    reason: str
    content: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.reason}"


class DataError(ValueError):
    """Rows that strict mode refuses; the text lists each problem and what to do."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        shown = "\n  ".join(map(str, self.problems[:20]))
        more = f"\n  ... and {len(self.problems) - 20} more" if len(self.problems) > 20 else ""
        super().__init__(
            f"{len(self.problems)} problem(s) in {len({p.line for p in self.problems})} row(s):\n  {shown}{more}\n"
            "Mend them, or set strict = False to set them aside in a quarantine file and go on with the rest."
        )


def clean_text(text: str) -> str:
    """NFC, no invisible or control characters, every run of white space one blank (line breaks in answers stay one)."""
    if text.isascii() and text.isprintable() and "  " not in text:  # most texts of most files
        return text.strip()
    text = _INVISIBLE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    text = "".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cc")
    text = unicodedata.normalize("NFC", text)  # after the removals, which can bring a letter and its accent together
    return re.sub(r"\n{2,}", "\n", re.sub(r" *\n *", "\n", re.sub(r"[^\S\n]+", " ", text))).strip()


def _clean(value: Any) -> Any:
    """The same for every text inside a value."""
    if isinstance(value, dict):
        return {name: _clean(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_clean(v) for v in value]
    return clean_text(value) if isinstance(value, str) else value


def _depth(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, children), default=0)


def _shown(text: str) -> str:
    """`text` as it can be printed and written: half a surrogate pair becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode()[:2000]


def _json_lines(path: Path) -> Iterator[tuple[int, str, dict | str]]:
    """Line number, content, and the object or what is wrong with it."""
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            line = raw.removeprefix(b"\xef\xbb\xbf").strip()
            if not line:
                continue
            content = line[:8000].decode("utf-8", "backslashreplace")
            try:
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"the line has {len(line) / 1e6:.1f} MB, allowed is {MAX_LINE_BYTES / 1e6:.0f} MB")
                item = json.loads(line.decode("utf-8"))
                if _depth(item) > MAX_DEPTH:
                    raise RecursionError
                yield number, content, item if isinstance(item, dict) else f"expected an object, found {type(item).__name__}"
            except UnicodeDecodeError as error:
                yield number, content, f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}"
            except json.JSONDecodeError as error:
                yield number, content, f"not a JSON object: {error.msg} (column {error.colno})"
            except RecursionError:
                yield number, content, f"nested too deeply: more than {MAX_DEPTH} levels"
            except ValueError as error:  # our own limit, and Python's on the digits of a number
                yield number, content, str(error)


def _csv_records(lines: list[str]) -> Iterator[tuple[int, str, list[str] | csv.Error]]:
    """Number of each record's first line, its content, its values. After a broken one, such as a quote that is never
    closed, reading goes on at the line below its first, so that it takes no other row with it."""
    skipped, reader = 0, csv.reader(lines, strict=True)
    while True:
        first = last = skipped + reader.line_num
        try:
            record: list[str] | csv.Error = next(reader)
            last = skipped + reader.line_num
        except StopIteration:
            return
        except csv.Error as error:
            record, last = error, first + 1
            skipped, reader = last, csv.reader(lines[last:], strict=True)
        content = "".join(lines[first:last]).strip()[:8000]
        yield first + 1, content.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"), record


def _csv_rows(path: Path) -> Iterator[tuple[int, str, dict | str]]:
    """Number of a row's first line, its content, and the row or what is wrong with it."""
    csv.field_size_limit(MAX_LINE_BYTES)
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    header: list[str] = []
    for number, content, record in _csv_records(list(io.StringIO(text, newline=""))):
        if isinstance(record, csv.Error):
            if not header:
                raise ValueError(f"{path.name}:{number}: the header is not CSV: {record}")
            yield number, content, f"not CSV: {record}"
        elif not content:
            continue
        elif not header:
            header = [clean_text(name) for name in record]
            if _SURROGATE.search("".join(header)):
                raise ValueError(f"{path.name}:{number}: the header is not UTF-8; save the file as UTF-8")
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise ValueError(f"{path.name}:{number}: columns named more than once: {', '.join(map(repr, twice))}")
        elif len(record) != len(header):
            yield number, content, f"{len(record)} values for {len(header)} columns"
        else:
            yield number, content, dict(zip(header, record, strict=True))


_READERS = {
    ".jsonl": (_json_lines, "half a surrogate pair: the text was cut inside a character"),
    ".csv": (_csv_rows, "not UTF-8 (was the file saved as cp1252 or latin-1?)"),
}


def _complaint(item: Mapping[str, Any], name: str, wanted: bool, broken: str) -> str:
    """What is wrong with one field of a row; empty if nothing is."""
    value = item.get(name)
    if name not in item:
        return f"missing; the row has {_shown(', '.join(item)) or 'nothing'}"
    if wanted and not isinstance(value, str):
        return f"expected text, found {type(value).__name__}"
    if _SURROGATE.search(name + (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))):
        return broken
    return "empty" if wanted and not clean_text(value) else ""


def read_rows(path: Path, question_column: str, answer_column: str) -> tuple[list[dict], list[Problem]]:
    """Clean rows and problems of a JSONL or CSV file, in file order.

    Its question and answer columns become `question` and `answer`, and `file` and `line` say where the row begins; it
    keeps its other columns, except those of the same four names. Raises ValueError for another kind of file, a broken
    CSV header, or a file in which no row has the two columns.
    """
    if path.suffix.lower() not in _READERS:
        raise ValueError(f"{path.name}: expected a .jsonl or .csv file")
    reader, broken = _READERS[path.suffix.lower()]
    wanted = dict.fromkeys((question_column, answer_column))
    rows, problems, columns = [], [], set()
    for number, content, item in reader(path):
        if isinstance(item, dict):
            columns |= set(item)
            checks = {name: _complaint(item, name, name in wanted, broken) for name in [*wanted, *item]}
            found = [(name, reason) for name, reason in checks.items() if reason]
        else:
            found = [("line", item)]
        if found:
            problems += [Problem(path.name, number, _shown(field), reason, _shown(content)) for field, reason in found]
        else:
            others = {sys.intern(name): _clean(value) for name, value in item.items() if name not in wanted}
            texts = {QUESTION: clean_text(item[question_column]), ANSWER: clean_text(item[answer_column])}
            rows.append(others | {FILE: path.name, LINE: number} | texts)
    if not rows and columns and not set(wanted) <= columns:
        there = _shown(", ".join(sorted(columns)))
        raise ValueError(f"{path.name}: no column '{question_column}' with '{answer_column}'; there are: {there}")
    return rows, problems


def write_quarantine(problems: Sequence[Problem], path: Path) -> None:
    """One JSON object per problem, with as much of the line's content as is fit to print."""
    path.write_text("".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in problems), encoding="utf-8")
