"""Docstrings are cleaned to prose, from permissive packages only, the same in every process, with nothing of our corpus."""

import ast
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from interviewmate_utils import config, docstrings
from interviewmate_utils.docstrings import Package

NUMPYDOC = """
    Compute the mean of an array along the given axis, ignoring all the missing values.

    The algorithm of :func:`~numpy.mean` runs on every block, and *pairwise* summation [1]_ keeps the ``error`` small.

    Parameters
    ----------
    a : array_like
        BAD Array of numbers whose mean is wanted. It is converted where it is not an array.

        BAD A second paragraph of the same parameter that also speaks in full sentences.

    Returns
    -------
    m : ndarray
        BAD A new array that holds the mean values of all the blocks in the input.

    Notes
    -----
    The arithmetic mean is the sum of the elements along the axis divided by their number.

    .. note::
        BAD This directive holds a warning for readers that is kept out of the text.

    .. versionadded:: 1.2
       BAD Something was added here that nobody needs to know about any more.

    After the directives the prose goes on and is kept, since it stands at the margin again.

    Code follows in a literal block that is set in by four spaces::

        BAD This looks like a sentence of prose but is really a program in here.

    >>> mean([1, 2, 3])  # BAD This is an example of how to call the function in here.
    2.0

    ===== =====
    BAD A row of a table looks like prose when it holds many words in it.
    ===== =====

    References
    ----------
    .. [1] BAD Somebody wrote a long paper about this and it was published somewhere.

    Examples
    --------
    BAD The following example shows how to use the function with an array of numbers.
"""
NUMPYDOC_KEPT = [
    "Compute the mean of an array along the given axis, ignoring all the missing values.",
    "The algorithm of numpy.mean runs on every block, and pairwise summation keeps the error small.",
    "The arithmetic mean is the sum of the elements along the axis divided by their number.",
    "After the directives the prose goes on and is kept, since it stands at the margin again.",
    "Code follows in a literal block that is set in by four spaces:",
]
GOOGLE = """
    Loads a model from disk and moves it to the device that was asked for by the caller.

    It reads weights lazily, so that a large model does not need twice its size in memory:

    - A bullet with a full sentence in it is a paragraph of the text of its own.
    2. A numbered point with a full sentence in it is a paragraph as well as that one.

    Args:
        path (str): BAD The folder from which the weights are read. It must hold a configuration file.
            BAD More about the folder follows on a line that is set in even further.
        device: BAD Where the model goes. The default is the fastest device of this machine.

    Keyword Arguments:
        strict: BAD Whether weights that are missing in the file stop the loading at once.

    Returns:
        BAD The model that was loaded, in evaluation mode, on the device that was asked for.

    Raises:
        ValueError: BAD If the folder holds no configuration file at all, or a broken one in it.

    Note that models are cached, so that a second call with the same path returns the same object.

    Example:

        BAD This is a sentence inside of an example which must not be kept either.
"""
GOOGLE_KEPT = [
    "Loads a model from disk and moves it to the device that was asked for by the caller.",
    "It reads weights lazily, so that a large model does not need twice its size in memory:",
    "A bullet with a full sentence in it is a paragraph of the text of its own.",
    "A numbered point with a full sentence in it is a paragraph as well as that one.",
    "Note that models are cached, so that a second call with the same path returns the same object.",
]
SPHINX = """
    Open a connection to the server and wait until it answers or the time is over.

    See :meth:`Client.close` and `the manual <http://x.y/z>`_ for how **long** a connection may stay open.
    :class:`Client` objects do the same, and :py:mod:`socket <the.socket>` is what stands behind them.

    :param host: BAD The name of the server to which the connection should be opened.
        BAD Defaults to the local machine where it is not given by the caller.

        BAD A second paragraph of the same field that also speaks in full sentences.
    :param int port: BAD The port of the server on which it waits for connections.
    :type port: int
    :returns: BAD A connection which is open and should be closed after use by the caller.
    :raises OSError: BAD If the server does not answer within the time that was given.
    :keyword timeout: BAD How long to wait for the server before the call gives up on it.
    :Example: BAD Some example that shows how the function is used by everybody else.

    .. code-block:: python

        BAD Connect to the server with this code and it should work for every user.

    The connection is closed when the object is collected, but nobody should rely on that.

    @param old: BAD A field of epydoc which describes a parameter of the function to you.
"""
SPHINX_KEPT = [
    "Open a connection to the server and wait until it answers or the time is over.",
    "See Client.close and the manual for how long a connection may stay open. Client objects do the same, and socket is what "
    "stands behind them.",
    "The connection is closed when the object is collected, but nobody should rely on that.",
]
CHILD = """
import hashlib, json
from interviewmate_utils import docstrings
wanted = [p for p in docstrings.list_packages() if p.name in ("seaborn", "joblib")]
print(hashlib.sha256(json.dumps(docstrings.prose_of(wanted)).encode()).hexdigest())
"""


def package(folder: Path, name: str, *docs: str) -> Package:
    """A package of one file with these docstrings, one function each."""
    path = folder / f"{name}.py"
    path.write_text("".join(f"def f{i}():\n    {doc!r}\n" for i, doc in enumerate(docs)))
    return Package(name, "1.0", "MIT", (path,))


def install(site: Path, name: str, *lines: str, files: tuple[str, ...] = ("__init__.py",)) -> None:
    """An installed distribution: its files, and metadata as pip writes them."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *lines]) + "\n")
    (info / "RECORD").write_text("".join(f"{name}/{file},,\n" for file in files))
    for file in files:
        (site / name / file).parent.mkdir(parents=True, exist_ok=True)
        (site / name / file).write_text('"""Text."""\n')


@pytest.fixture(scope="module")
def installed() -> dict[str, Package]:
    return {p.name: p for p in docstrings.list_packages()}


@pytest.fixture(scope="module")
def seen() -> set[int]:
    """What `text` below has left of the sequences that it read."""
    return set()


@pytest.fixture(scope="module")
def text(installed: dict[str, Package], seen: set[int]) -> dict[str, list[str]]:
    """The prose of two large packages: 200,000 words."""
    return docstrings.prose_of([installed["scikit-learn"], installed["scipy"]], seen)


@pytest.mark.parametrize(
    ("docstring", "kept"),
    [(NUMPYDOC, NUMPYDOC_KEPT), (GOOGLE, GOOGLE_KEPT), (SPHINX, SPHINX_KEPT)],
    ids=["numpydoc", "google", "sphinx"],
)
def test_cleaning_keeps_prose_and_nothing_else(tmp_path: Path, docstring: str, kept: list[str]) -> None:
    assert docstrings.prose_of([package(tmp_path, "p", docstring)]) == {"p": ["\n".join(kept)]}


@pytest.mark.parametrize(
    "docstring",
    [
        "Return the n-th number of the list.",  # too short
        "return the number that follows the given one in the list of all numbers",  # neither begins nor ends as a sentence
        "X = f(a, b) + g(c) ** 2 - h[i, j] if k > 0 else m.n(o) for p in range(q) or r.",  # a formula
        "Copyright is held by the authors of this file, who have given it to all of us.",
        "See http://example.org for what this function does to the arrays that it is given.",
    ],
)
def test_what_is_not_prose_is_dropped(tmp_path: Path, docstring: str) -> None:
    assert docstrings.prose_of([package(tmp_path, "p", docstring + " " * 60)]) == {"p": []}


def test_docstrings_of_every_kind_are_read_in_order(tmp_path: Path) -> None:
    texts = [
        f"Number {word} of the docstrings, which is quite long enough to be taken." for word in ("one", "two", "three", "four")
    ]
    source = '"""{}"""\nclass A:\n    """{}"""\nasync def f():\n    """{}"""\ndef g():\n    """{}"""\n    "No docstring."\n'
    (tmp_path / "m.py").write_text(source.format(*texts))
    assert list(docstrings.docstrings_of(tmp_path / "m.py")) == texts


@pytest.mark.parametrize("content", [b"def broken(:\n", b'"""\xff\xfe"""', b"x = '\0'", b"("])
def test_files_that_do_not_parse_give_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.py").write_bytes(content)
    assert list(docstrings.docstrings_of(tmp_path / "m.py")) == []
    assert list(docstrings.docstrings_of(tmp_path / "absent.py")) == []


def test_sources_are_never_imported(tmp_path: Path) -> None:
    doc = "This module would do harm if anybody imported it, so its text is only parsed."
    path = tmp_path / "m.py"
    path.write_text(f'"""{doc}"""\nraise SystemExit("imported")\n')
    assert docstrings.prose_of([Package("m", "1", "MIT", (path,))]) == {"m": [doc]}


def test_near_repeats_go_across_packages(tmp_path: Path) -> None:
    text = "The estimator fits one tree after the other, each to the residuals that the trees before it have left behind."
    changed = text.replace("residuals", "errors")  # 8 of 13 eight-word sequences hold the changed word
    other = "A scheduler lowers the learning rate whenever the loss on the validation set has not fallen for some epochs."
    made = docstrings.prose_of(
        [package(tmp_path, "a", text, text), package(tmp_path, "b", text, other), package(tmp_path, "c", changed)]
    )
    assert made == {"a": [text], "b": [other], "c": [changed]}
    nearly = text.replace("behind", "over")  # one sequence of 13
    assert docstrings.prose_of([package(tmp_path, "a", text), package(tmp_path, "b", nearly)])["b"] == []


def test_held_out_shares_nothing_with_training_through_seen(tmp_path: Path) -> None:
    shared = "This paragraph stands in both packages, word for word, and may not count as text that nobody has read."
    own = "That paragraph is found in the package which is held out and nowhere else in the world."
    seen: set[int] = set()
    train = docstrings.prose_of([package(tmp_path, "train", shared)], seen)
    held = docstrings.prose_of([package(tmp_path, "held", shared + "\n\n" + own)], seen)
    assert train == {"train": [shared]}
    assert held == {"held": [own]}


def test_held_out_packages_share_no_paragraph_with_training(installed: dict[str, Package], text: dict, seen: set[int]) -> None:
    def grams(text: str) -> set[tuple]:
        words = re.findall(r"[a-z]+", text.lower())
        return {tuple(words[i : i + 8]) for i in range(max(1, len(words) - 7))}

    names = ("networkx", "seaborn")
    known = {gram for documents in text.values() for d in documents for p in d.split("\n") for gram in grams(p)}
    held = docstrings.prose_of([installed[name] for name in names], set(seen))
    paragraphs = [p for name in names for d in held[name] for p in d.split("\n")]
    assert len(paragraphs) > 1000
    assert all(len(grams(p) & known) <= 0.4 * len(grams(p)) for p in paragraphs)


@pytest.mark.parametrize(
    ("lines", "taken"),
    [
        (["License-Expression: MIT"], True),
        (["Classifier: License :: OSI Approved :: BSD License"], True),
        (["License: Apache 2.0"], True),
        (["Classifier: License :: OSI Approved", "License: BSD"], False),  # the classifier names no licence: left out
        ([], False),
        (["License: UNKNOWN"], False),
        (["License-Expression: GPL-3.0-or-later"], False),
        (["License-Expression: MIT OR GPL-2.0-only"], False),
        (["License: LGPLv3"], False),
        (["License-Expression: MPL-2.0 AND MIT"], False),
        (["Classifier: License :: OSI Approved :: GNU Affero General Public License v3"], False),
        (["Classifier: License :: OSI Approved :: MIT License", "Classifier: License :: Other/Proprietary License"], False),
        (["Classifier: License :: OSI Approved :: MIT License", "License: GPL-3.0"], False),  # a copyleft one beside it
        (
            ["License-Expression: Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause AND BSL-1.0 AND GPL-3.0-only"],
            False,
        ),
        (["License: MITIGATE"], False),
    ],
)
def test_only_permissive_licences_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], taken: bool
) -> None:
    install(tmp_path / "site", "some-package", *lines)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    found = {p.name: p for p in docstrings.list_packages()}
    assert set(found) == {docstrings.STDLIB} | ({"some-package"} if taken else set())
    if taken:
        assert found["some-package"].version == "1.0"
        assert found["some-package"].licence in lines[0]


def test_tests_and_vendored_code_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = (
        "core.py",
        "tests/test_core.py",
        "test_x.py",
        "_vendor/other.py",
        "externals/y.py",
        "conftest.py",
        "contest.py",
        "data.txt",
    )
    install(tmp_path / "site", "own", "License: MIT", files=files)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    own = next(p for p in docstrings.list_packages() if p.name == "own")
    assert [f.name for f in own.files] == ["contest.py", "core.py"]
    assert all(f.is_file() for f in own.files)


def test_installed_packages(installed: dict[str, Package]) -> None:
    assert {"scikit-learn", "scipy", "statsmodels", "torch", "transformers", "pandas", docstrings.STDLIB} <= set(installed)
    assert "interviewmate-utils" not in installed
    assert not {"tqdm", "certifi"} & set(installed), "under the MPL"
    assert list(installed) == sorted(installed)


def test_same_text_in_every_process() -> None:
    digests = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", CHILD], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1
    assert digests != {hashlib.sha256(json.dumps({"joblib": [], "seaborn": []}).encode()).hexdigest()}


def test_real_text_is_prose(text: dict[str, list[str]]) -> None:
    joined = "\n".join(text["scikit-learn"])
    assert len(joined.split()) > 30_000
    for rubbish in (">>>", ":func:", ":class:", "``", ".. ", "----", ":param", "array-like of shape"):
        assert joined.count(rubbish) < 3, rubbish
    assert inspect.cleandoc(joined) == joined


def test_nothing_of_the_corpus_is_in_the_text(text: dict[str, list[str]]) -> None:
    def sequences(text: str) -> set[tuple]:
        words = re.findall(r"[a-z0-9]+", text.lower())
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    rows = [json.loads(line) for line in (config.ROOT / "data/raw/interview_qa.jsonl").read_text().splitlines()]
    corpus = {s: row["id"] for row in rows for s in sequences(row["answer"]) | sequences(row["question"])}
    assert len(rows) == 302
    assert len(corpus) > 25_000
    read = [sequences(d) for documents in text.values() for d in documents]
    assert sum(map(len, read)) > 100_000
    shared = {corpus[s]: " ".join(s) for part in read for s in part & corpus.keys()}
    assert not shared


def test_docstrings_are_found_wherever_a_definition_can_stand_in_the_order_of_a_whole_walk(tmp_path: Path) -> None:
    text = "A sentence that is long enough to count as prose, and says where it stands: {}."
    places = ["if x:", "while x:", "for x in y:", "with x:", "class C:", "async def outer():", "try:", "match x:\n    case 1:"]
    source = []
    for place in places:
        indent = "    " * (1 + place.count("\n"))
        source += [place, f"{indent}def f():", f'{indent}    """{text.format(place.split()[0])}"""']
        if place == "try:":
            source += ["except E:", "    def g():", f'        """{text.format("except")}"""']
    path = tmp_path / "places.py"
    path.write_text("\n".join(source))
    found = list(docstrings.docstrings_of(path))
    walked = [ast.get_docstring(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert found == walked
    assert len(found) == len(places) + 1
