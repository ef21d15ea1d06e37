"""Reading files from elsewhere: text is normalised, every bad row is named, nothing is lost."""

import io
import json
import random
import unicodedata
from pathlib import Path

import pytest
from conftest import FOREIGN, RAW, foreign_data

from interviewmate_utils.rows import DataError, Problem, clean_text, read_rows, write_quarantine

GOOD = '{"question": "What is a p-value?", "answer": "A tail probability."}'


def read(folder: Path, content: bytes | str, name: str = "rows.jsonl") -> tuple[list[dict], list[Problem]]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(path, "question", "answer")


def named(problems: list[Problem]) -> list[tuple[int, str]]:
    return [(p.line, p.field) for p in problems]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Cafe\u0301", "Caf\u00e9"),  # NFC
        ("A\u030angstro\u0308m", "\u00c5ngstr\u00f6m"),
        ("e\u200b\u0301", "\u00e9"),  # an accent that a zero-width space kept from its letter
        ("\ufeffzero\u200b-\u2060width\u00ad", "zero-width"),
        ("\u202eevil\u202c \u2066isolate\u2069", "evil isolate"),
        ("be\x07ll\x00 \x1b[1m", "bell [1m"),
        ("page one\x0cpage two", "page one page two"),  # a control character that is white space keeps words apart
        ("a\x85b\u2028c\u00a0d\te", "a b c d e"),
        ("one\r\ntwo\rthree\n\n \n four", "one\ntwo\nthree\nfour"),
        ("  a  \t b \n", "a b"),
        ("x\u00b2 \u2264 \ufb01 \u212b \U0001f600", "x\u00b2 \u2264 \ufb01 \u00c5 \U0001f600"),  # not NFKC: x² is not x2
        ("<script>alert('x')</script> & <b>", "<script>alert('x')</script> & <b>"),
        ("\u200b \n\x00", ""),
    ],
)
def test_clean_text(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


def test_clean_text_is_idempotent_and_normal_on_any_text() -> None:
    rng = random.Random(0)
    nasty = "e\u0301\u0327a\u030a\u0344\u1100\u1161\u11a8\u212b\u200b\u200d\u00ad\u2060\ufeff"
    nasty += " \t\n\r\x0b\x0c\x1c\x85\u2028\u3000\x00\x1b\u2000"
    for _ in range(5_000):
        alphabet = nasty if rng.random() < 0.7 else [chr(rng.randrange(0x3100)) for _ in range(20)]
        text = "".join(rng.choices(alphabet, k=rng.randrange(20)))
        once = clean_text(text)
        assert clean_text(once) == once, ascii(text)
        assert unicodedata.is_normalized("NFC", once), ascii(text)
        assert not any(unicodedata.category(c) == "Cc" and c != "\n" for c in once), ascii(text)
        assert not any(double in once for double in ("  ", " \n", "\n ", "\n\n")), ascii(text)


BAD_LINES = {
    "bad UTF-8 byte": (b'{"question": "caf\xe9", "answer": "b"}', "line", "not UTF-8: byte 0xe9 at position 17"),
    "half a line": (b'{"question": "What", "ans', "line", "not a JSON object: Unterminated string"),
    "missing field": (b'{"question": "What?", "reply": "b"}', "answer", "missing; the row has question, reply"),
    "empty object": (b"{}", "question", "missing; the row has nothing"),
    "empty answer": (b'{"question": "What?", "answer": ""}', "answer", "empty"),
    "blank answer": (b'{"question": "What?", "answer": " \\n\\u200b "}', "answer", "empty"),
    "number": (b'{"question": "What?", "answer": 7}', "answer", "expected text, found int"),
    "null": (b'{"question": null, "answer": "b"}', "question", "expected text, found NoneType"),
    "list of texts": (b'{"question": "What?", "answer": ["b"]}', "answer", "expected text, found list"),
    "array": (b'["What?", "b"]', "line", "expected an object, found list"),
    "bare text": (b'"What?"', "line", "expected an object, found str"),
    "two objects": (b'{"question": "a", "answer": "b"} {}', "line", "not a JSON object: Extra data"),
    "not JSON": (b"question: What?", "line", "not a JSON object: Expecting value"),
    "10 MB": (b'{"question": "What?", "answer": "' + b"x" * 10_000_000 + b'"}', "line", "has 10.0 MB, allowed is 1 MB"),
    "deep": (b'{"question": "a", "answer": "b", "c": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "line", "nested too deeply"),
    "less deep": (b'{"question": "a", "answer": "b", "c": ' + b"[" * 200 + b"]" * 200 + b"}", "line", "nested too deeply"),
    "long number": (b'{"question": "a", "answer": "b", "c": ' + b"9" * 5_000 + b"}", "line", "4300 digits"),
    "half a character": (b'{"question": "What \\ud83d?", "answer": "b"}', "question", "half a surrogate pair"),
    "half in another": (b'{"question": "What?", "answer": "b", "tags": ["\\udc00"]}', "tags", "half a surrogate pair"),
    "half in a name": (b'{"question": "What?", "answer": "b", "\\ud83d": 1}', "\\ud83d", "half a surrogate pair"),
    "UTF-16": ('{"question": "a", "answer": "b"}'.encode("utf-16-le"), "line", "not a JSON object"),
}


@pytest.mark.parametrize("fault", BAD_LINES)
def test_bad_json_line_is_named_and_the_others_are_read(tmp_path: Path, fault: str) -> None:
    line, field, reason = BAD_LINES[fault]
    good = GOOD.encode()
    rows, problems = read(tmp_path, b"\n".join([good, b"", b"  ", line, good, b""]))
    assert [row["line"] for row in rows] == [1, 5]
    assert {p.line for p in problems} == {4}
    assert (problems[0].file, problems[0].field) == ("rows.jsonl", field)
    assert reason in problems[0].reason
    assert problems[0].content[:6] == line.decode("utf-8", "backslashreplace")[:6]
    assert str(problems[0]) == f"rows.jsonl:4: {field}: {problems[0].reason}"
    assert len(problems[0].reason) < 2_200
    write_quarantine(problems, tmp_path / "quarantine.jsonl")  # whatever it was, it can be written
    assert json.loads((tmp_path / "quarantine.jsonl").read_text().splitlines()[0])["line"] == 4


def test_two_faults_of_a_line_are_two_problems(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, '{"question": "", "answer": 3}')
    assert rows == []
    assert [str(p) for p in problems] == ["rows.jsonl:1: question: empty", "rows.jsonl:1: answer: expected text, found int"]


def test_nothing_is_lost_whatever_is_broken(tmp_path: Path) -> None:
    """Cut, flip and insert bytes in the corpus' own lines: each line that is not blank is a row or a problem."""
    rng = random.Random(3)
    source = (RAW / "interview_qa.jsonl").read_bytes().splitlines()[:40]
    for _ in range(60):
        lines = [bytearray(line) for line in source]
        for line in rng.sample(lines, 10):
            at = rng.randrange(len(line))
            match rng.randrange(4):
                case 0:
                    del line[at:]
                case 1:
                    line[at] = rng.randrange(256)
                case 2:
                    line.insert(at, rng.choice(b'\xff"\\{}[],\n\x00\r'))
                case 3:
                    del line[at : at + rng.randrange(80)]
        content = b"\n".join(lines)
        rows, problems = read(tmp_path, content)
        filled = [number for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
        assert sorted([row["line"] for row in rows] + list({p.line for p in problems})) == filled


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n" + GOOD.encode() + b"\r\n")
    assert problems == []
    assert [row["line"] for row in rows] == [1, 2]
    rows, problems = read(tmp_path, b"\xef\xbb\xbfquestion,answer\r\nWhat?,That.\r\n", "rows.csv")
    assert (rows, problems) == ([{"file": "rows.csv", "line": 2, "question": "What?", "answer": "That."}], [])


def test_markup_is_data(tmp_path: Path) -> None:
    answer = "<script>alert(1)</script> <img src=x onerror=y> &amp; {{ braces }} **bold**"
    rows, problems = read(tmp_path, json.dumps({"question": "Is <b> bold?", "answer": answer}))
    assert problems == []
    assert rows == [{"file": "rows.jsonl", "line": 1, "question": "Is <b> bold?", "answer": answer}]


def test_other_columns_stay_and_are_cleaned(tmp_path: Path) -> None:
    row = {"id": 3, "tags": ["cafe\u0301 ", {"k": "a\u200bb"}], "question": "Q", "answer": "A", "score": None}
    rows, _ = read(tmp_path, json.dumps(row))
    others = {"id": 3, "tags": ["caf\u00e9", {"k": "ab"}], "score": None}
    assert rows == [others | {"file": "rows.jsonl", "line": 1, "question": "Q", "answer": "A"}]


def test_line_is_ours_even_if_the_file_has_such_a_column(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, '\n{"line": "forty", "question": "Q", "answer": "A"}')
    assert rows[0]["line"] == 2


def test_columns_of_other_names(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"prompt": "Q", "reply": "A", "question": "another"}')
    rows, problems = read_rows(tmp_path / "x.jsonl", "prompt", "reply")
    assert (rows, problems) == ([{"file": "x.jsonl", "line": 1, "question": "Q", "answer": "A"}], [])


@pytest.mark.parametrize(
    ("name", "content"), [("x.jsonl", '{"q": "", "a": ""}'), ("x.csv", "q,a\nb,c\n"), ("x.csv", "q;a\nb;c")]
)
def test_a_file_without_the_columns_is_refused_and_its_columns_named(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(ValueError, match=r"x\.(jsonl|csv): no column 'question' with 'answer'; there are: (a, q|q;a)"):
        read(tmp_path, content, name)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.xlsx: expected a \.jsonl or \.csv file"):
        read(tmp_path, "x", "x.xlsx")


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "X.CSV"])
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, "", name) == ([], [])
    assert read(tmp_path, "\n\n", name) == ([], [])


CSV = '''id,question,answer

1,"What is
a p-value?","Line one
line two, with ""quotes"""
2,What is bias?,A systematic error.

3,Too,many,values
4,Too few
5,"never closed,An answer.
6,"Quoted, twice","<script>x</script>"
7,"quote" behind,An answer.
8,Is it empty?,
'''


def test_csv_names_the_physical_line_where_a_row_starts(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, CSV, "rows.csv")
    assert [(row["line"], row["id"]) for row in rows] == [(3, "1"), (6, "2"), (11, "6")]
    assert rows[0]["question"] == "What is\na p-value?"
    assert rows[0]["answer"] == 'Line one\nline two, with "quotes"'
    assert rows[2]["answer"] == "<script>x</script>"
    expected = {8: "4 values for 3 columns", 9: "2 values for 3 columns", 10: "not CSV", 12: "not CSV", 13: "empty"}
    assert [p.line for p in problems] == list(expected)
    assert all(p.reason.startswith(expected[p.line]) for p in problems)
    lines = CSV.splitlines()
    assert [p.content for p in problems] == [lines[p.line - 1] for p in problems]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_line_numbers_hold_for_every_line_end(tmp_path: Path, end: str) -> None:
    rows, problems = read(tmp_path, CSV.replace("\n", end), "rows.csv")
    assert [row["line"] for row in rows] == [3, 6, 11]
    assert sorted({p.line for p in problems}) == [8, 9, 10, 12, 13]


def test_an_unclosed_quote_takes_no_other_row_with_it(tmp_path: Path) -> None:
    lines = [f"Question {i}?,Answer {i}." for i in range(500)]
    lines[100] = 'Question 100?,"Answer 100.'
    rows, problems = read(tmp_path, "question,answer\n" + "\n".join(lines), "rows.csv")
    assert len(rows) == 499
    assert named(problems) == [(102, "line")]


def test_csv_bytes_that_are_not_utf8_are_named_row_by_row(tmp_path: Path) -> None:
    text = "question,answer,note\nWhat is a caf\u00e9?,A place.,x\nPlain?,Yes.,y\nWhy?,Because.,\u00fc\n"
    rows, problems = read(tmp_path, text.encode("latin-1"), "rows.csv")
    assert [row["question"] for row in rows] == ["Plain?"]
    assert named(problems) == [(2, "question"), (4, "note")]
    assert all("cp1252 or latin-1" in p.reason for p in problems)
    assert problems[0].content == r"What is a caf\xe9?,A place.,x"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("question,r\u00e9ponse\na,b".encode("latin-1"), "rows.csv:1: the header is not UTF-8"),
        ("question,answer\na,b".encode("utf-16"), "rows.csv:1: the header is not UTF-8"),
        ("question,answer,answer\na,b,c", "rows.csv:1: columns named more than once: 'answer'"),
        ('\n"question,answer\na,b', "rows.csv:2: the header is not CSV"),
    ],
)
def test_a_broken_csv_header_is_refused(tmp_path: Path, content: bytes | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content, "rows.csv")


def test_a_huge_csv_field_is_named(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, "question,answer\nWhat?," + "x" * 10_000_000 + "\nWhy?,So.\n", "rows.csv")
    assert [row["line"] for row in rows] == [3]
    assert named(problems) == [(2, "line")]
    assert "field limit" in problems[0].reason
    assert len(problems[0].content) == 2_000


def test_csv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    import csv

    rng = random.Random(5)
    items = [{"question": f"{i}?", "answer": "".join(rng.choices("ab\"',;\n\r\t \u00e9", k=12)) + "."} for i in range(200)]
    out = io.StringIO()
    writer = csv.DictWriter(out, ["question", "answer"])
    writer.writeheader()
    writer.writerows(items)
    from_csv, csv_problems = read(tmp_path, out.getvalue(), "rows.csv")
    from_json, json_problems = read(tmp_path, "\n".join(map(json.dumps, items)))
    assert csv_problems == json_problems == []
    nowhere = {"line": 0, "file": ""}
    assert [row | nowhere for row in from_csv] == [row | nowhere for row in from_json]
    starts = [row["line"] for row in from_csv]
    assert starts == sorted(set(starts))
    lines = list(io.StringIO(out.getvalue(), newline=""))
    assert all(lines[start - 1].startswith(f"{i}?,") for i, start in enumerate(starts))


def test_strict_lists_the_problems_and_what_to_do() -> None:
    error = DataError([Problem("f.jsonl", i // 2, "answer", "empty") for i in range(50)])
    assert len(error.problems) == 50
    assert str(error).startswith("50 problem(s) in 25 row(s):\n  f.jsonl:0: answer: empty\n")
    assert "... and 30 more" in str(error)
    assert "strict = False" in str(error)
    assert "more" not in str(DataError(error.problems[:20]))


def test_quarantine_holds_each_problem_with_its_content(tmp_path: Path) -> None:
    _, problems = read(tmp_path, GOOD + '\n{"question": "caf\u00e9 \\ud83d", "answer": ""}\n' + "x" * 5_000)
    write_quarantine(problems, tmp_path / "quarantine.jsonl")
    kept = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(k["file"], k["line"], k["field"]) for k in kept] == [
        ("rows.jsonl", 2, "question"),
        ("rows.jsonl", 2, "answer"),
        ("rows.jsonl", 3, "line"),
    ]
    assert kept[0]["content"] == '{"question": "caf\u00e9 \\ud83d", "answer": ""}'
    assert kept[2]["content"] == "x" * 2_000
    write_quarantine([], tmp_path / "quarantine.jsonl")
    assert (tmp_path / "quarantine.jsonl").read_text() == ""


@foreign_data
@pytest.mark.parametrize(("name", "count"), [("ajitsingh98", 532), ("kalyanks_llm", 115)])
def test_real_foreign_files_lose_nothing(name: str, count: int) -> None:
    rows, problems = read_rows(FOREIGN / f"{name}.jsonl", "question", "answer")
    assert len(rows) + len({p.line for p in problems}) == count
    assert all(row["source"] and clean_text(row["answer"]) == row["answer"] for row in rows)
    assert len(problems) <= 0.02 * count
