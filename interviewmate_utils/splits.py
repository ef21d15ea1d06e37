"""Which rows a corpus keeps and which part each may be in: conversations, duplicates, split, leakage."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .rows import FILE, ID, LINE, PARENT, QUESTION, Problem

if TYPE_CHECKING:
    import pandas as pd

# What a speaker would not hear; the rest stays, because C, C# and C++ are three questions
_PUNCTUATION = re.compile(r"[\s.,;:!?\"'`‘’“”()\[\]…–—-]+")  # noqa: RUF001


def find_roots(rows: Sequence[Mapping]) -> tuple[list[int | None], list[Problem]]:
    """For each row the index of the question that its conversation began with: itself, but for a follow-up.

    A follow-up names in `parent_id` the `id` of the row that it follows up. One that names no row, or whose parents lead
    in a circle, has no root (None) and a Problem, and so has a row that repeats an earlier `id`, where there are follow-ups.
    """
    parents = [row.get(PARENT) for row in rows]
    if not any(parents):
        return list(range(len(rows))), []
    by_id: dict = {}
    for i, row in enumerate(rows):
        by_id.setdefault(row.get(ID), i)
    roots: list[int | None] = [None] * len(rows)
    problems = []
    for i, row in enumerate(rows):
        seen, j = set(), i
        while j is not None and j not in seen and parents[j]:
            seen.add(j)
            j = by_id.get(parents[j])
        roots[i] = None if j in seen else j
        if by_id.get(row.get(ID), i) != i and row.get(ID) is not None:
            roots[i], reason = None, f"'{row[ID]}' is also the id of {_place(rows[by_id[row[ID]]])}"
            problems.append(Problem(row[FILE], row[LINE], ID, reason, _content(row)))
        elif roots[i] is None:
            reason = f"follows up '{parents[i]}', which leads to no row" if j is None else "its parents lead in a circle"
            problems.append(Problem(row[FILE], row[LINE], PARENT, reason, _content(row)))
    return roots, problems


def drop_duplicates(rows: Sequence[Mapping], pairs: "pd.DataFrame", threshold: float) -> tuple[list[int], list[Problem]]:
    """Indices of the rows to keep, and a Problem for each later row that repeats an earlier one.

    Exact means the same question but for case, punctuation and space; near means that `pairs` (of row numbers, see
    `similarity.close_pairs`) has it at a cosine of at least `threshold` with a row that is kept. A follow-up may be near
    the question that it follows up.
    """
    close: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for pair in pairs[pairs.cosine >= threshold].itertuples():
        if not _are_family(rows[pair.first], rows[pair.second]):
            close[pair.second].append((pair.cosine, pair.first))
    kept, problems, seen = {}, [], {}
    for i, row in enumerate(rows):
        key = _PUNCTUATION.sub(" ", row[QUESTION].casefold()).strip() or row[QUESTION]
        near = max(((cosine, j) for cosine, j in close.get(i, ()) if j in kept), default=None)
        if key in seen:
            reason = f"exact duplicate of {_place(rows[seen[key]])}"
        elif near:
            reason = f"near duplicate of {_place(rows[near[1]])} (cosine {near[0]:.3f})"
        else:
            kept[i], reason = None, ""
        seen.setdefault(key, i)
        if reason:
            problems.append(Problem(row[FILE], row[LINE], QUESTION, reason, _content(row)))
    return list(kept), problems


def keep_rows(rows: Sequence[Mapping], pairs: "pd.DataFrame", threshold: float) -> tuple[list[int], list[Problem]]:
    """Indices of the rows that are fit to split, and a Problem for each other: duplicates, and follow-ups without a root."""
    kept, problems = drop_duplicates(rows, pairs, threshold)
    roots, lost = find_roots([rows[i] for i in kept])
    return [i for i, root in zip(kept, roots, strict=True) if root is not None], problems + lost


def renumber(pairs: "pd.DataFrame", kept: Sequence[int]) -> "pd.DataFrame":
    """The `pairs` among the `kept` rows, by their places in `kept`."""
    place = {row: i for i, row in enumerate(kept)}
    pairs = pairs[pairs["first"].isin(place) & pairs["second"].isin(place)]
    return pairs.assign(first=pairs["first"].map(place), second=pairs["second"].map(place)).reset_index(drop=True)


def _are_family(row: Mapping, other: Mapping) -> bool:
    return any(a.get(PARENT) and a[PARENT] == b.get(ID) for a, b in ((row, other), (other, row)))


def _place(row: Mapping) -> str:
    return f"{row[FILE]}:{row[LINE]}"


def _content(row: Mapping) -> str:
    return json.dumps(row, ensure_ascii=False)[:2000]


def split_rows(
    rows: Sequence[Mapping],
    roots: Sequence[int],
    validation_share: float,
    test_share: float,
    stratify_by: str,
    seed: int,
    only_train: str = "",
) -> dict[str, list[int]]:
    """Indices of train, validation, test and, where there is any, multi_turn; a conversation is never torn apart.

    The first questions of conversations are split, stratified by a column (not at all when the rows lack it): training
    gets the floor of its share, validation the nearest whole number, test the rest: 302 -> 211/45/46. Groups of fewer
    than 7 rows cannot be in all three parts and are stratified as one. Rows of the file named `only_train` are not split: they
    join the training part, so that another file added to a corpus leaves its validation and test part as they are. A
    follow-up goes where its `roots` entry goes, to training, or else to multi_turn, the follow-ups of held-out questions.
    """
    firsts = [i for i, root in enumerate(roots) if root == i and rows[i][FILE] != only_train]
    drawn = _stratified([str(rows[i].get(stratify_by, "")) for i in firsts], validation_share, test_share, seed)
    part_of = {firsts[k]: part for part, members in drawn.items() for k in members}
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": [], "multi_turn": []}
    for i, root in enumerate(roots):
        part = part_of.get(root, "train")
        parts[part if part == "train" or i == root else "multi_turn"].append(i)
    return {name: members for name, members in parts.items() if members}


def _stratified(labels: list[str], validation_share: float, test_share: float, seed: int) -> dict[str, list[int]]:
    from sklearn.model_selection import train_test_split

    n = len(labels)
    if n < 10:
        raise ValueError(f"{n} rows are too few to split; 10 are the least")
    n_train, n_validation = int(n * (1 - validation_share - test_share) + 1e-9), round(n * validation_share)
    n_test = n - n_train - n_validation
    if min(n_train, n_validation, n_test) < 1:
        shares = f"validation_share = {validation_share} and test_share = {test_share}"
        raise ValueError(f"{shares} leave a part without rows: {n} become {n_train}/{n_validation}/{n_test}")
    counts = Counter(labels)
    labels = [label if counts[label] >= 7 else "(rare)" for label in labels]
    if labels.count("(rare)") < 7:
        labels = [counts.most_common(1)[0][0] if label == "(rare)" else label for label in labels]
    if len(set(labels)) > min(n_train, n_validation, n_test):
        labels = [""] * n
    rest, test = train_test_split(range(n), test_size=n_test, stratify=labels, random_state=seed)
    kept = [labels[i] for i in rest]
    by = kept if min(Counter(kept).values()) > 1 else None
    train, validation = train_test_split(rest, test_size=n_validation, stratify=by, random_state=seed)
    return {"train": train, "validation": validation, "test": test}


def check_leakage(
    rows: Sequence[Mapping], roots: Sequence[int], parts: Mapping[str, Sequence[int]], pairs: "pd.DataFrame", threshold: float
) -> "pd.DataFrame":
    """The `pairs` with one question in training and one held out, or one in validation and one in test, closest first.

    Raises ValueError when such a pair is at or above `threshold`, or when one conversation is on both sides.
    """
    import numpy as np

    part = np.empty(len(rows), object)
    for name, members in parts.items():
        part[list(members)] = name
    joined = [(i, root, f"follows up {_place(rows[root])}") for i, root in enumerate(roots) if i != root]
    joined += [(p.second, p.first, f"cosine {p.cosine:.3f}") for p in pairs[pairs.cosine >= threshold].itertuples()]
    apart = {("train", other) for other in ("validation", "test", "multi_turn")} | {("validation", "test")}
    leaks = [
        f"{_place(rows[i])} ({part[i]}) and {_place(rows[j])} ({part[j]}): {why}"
        for i, j, why in joined
        if {(part[i], part[j]), (part[j], part[i])} & apart
    ]
    if leaks:
        raise ValueError(f"split refused: {len(leaks)} pair(s) across parts:\n  " + "\n  ".join(leaks[:20]))
    ends = pairs.assign(part=part[pairs["first"]], other=part[pairs["second"]])
    across = np.array([bool({(a, b), (b, a)} & apart) for a, b in zip(ends.part, ends.other, strict=True)], bool)
    ends = ends[across].reset_index(drop=True)
    for column, index in ((QUESTION, "first"), ("nearest", "second")):
        ends[column] = [rows[i][QUESTION] for i in ends[index]]
        ends[f"{column}_line"] = [_place(rows[i]) for i in ends[index]]
    return ends
