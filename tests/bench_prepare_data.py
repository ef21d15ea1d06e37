"""How `01_prepare_data` grows: the whole notebook on 100,000 and 1,000,000 synthetic rows, under the run contract.

    make bench                     or: python tests/bench_prepare_data.py ROWS [ROWS ...]

Every 50th question repeats the one before it but for a word, so that near duplicates are there to be found. Memory is what
the process holds for itself; pages of files that it maps are left out, since the system takes them back when it needs them.
"""

import json
import random
import sys
import threading
import time
from pathlib import Path

import psutil

from interviewmate_utils import config, run

PROFILE = "bench"


def write_rows(count: int, path: Path) -> None:
    """Rows of random words, about 650 bytes each."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(30_000)]
    question = ""
    with path.open("w", encoding="utf-8") as stream:
        for i in range(count):
            if i % 50 == 49:
                changed = question.split()
                changed[rng.randrange(len(changed))] = "changed"
                question = " ".join(changed)
            else:
                question = " ".join(rng.choices(words, k=rng.randint(10, 20)))
            row = {"question": question, "answer": " ".join(rng.choices(words, k=rng.randint(50, 80))), "subfield": f"s{i % 8}"}
            stream.write(json.dumps(row) + "\n")


class Watch(threading.Thread):
    """Peak of this process's children's own memory, in GB."""

    peak_gb = 0.0

    def run(self) -> None:
        self.going = True
        while self.going:
            try:
                infos = [p.memory_info() for p in psutil.Process().children(recursive=True)]
                self.peak_gb = max(self.peak_gb, sum(i.rss - getattr(i, "shared", 0) for i in infos) / 1e9)
            except psutil.Error:
                pass
            time.sleep(0.25)


def main(counts: list[int]) -> int:
    folder = config.ROOT / "reports" / PROFILE
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for count in counts:
        path = folder / f"{count}.jsonl"
        write_rows(count, path)
        watch, begun = Watch(daemon=True), time.perf_counter()
        watch.start()
        values = {"profile": PROFILE, "raw_file": str(path.relative_to(config.ROOT)), "strict": "false"}
        options = [word for name, value in values.items() for word in ("-p", name, value)]
        code = run.main(
            [str(config.NOTEBOOKS / "01_prepare_data.ipynb"), "-o", str(folder / "01_prepare_data.ipynb"), *options]
        )
        watch.going = False
        if code:
            return code
        metrics = json.loads((folder / "01_prepare_data" / "results.json").read_text())["metrics"]
        seconds = time.perf_counter() - begun
        found.append((count, seconds, 1e6 * seconds / count, watch.peak_gb, metrics["set_aside_count"]))
        path.unlink()
    print(f"{'rows':>10} {'seconds':>9} {'us a row':>9} {'GB':>5} {'set aside':>10}")
    for count, seconds, each, memory, aside in found:
        print(f"{count:>10,} {seconds:>9.0f} {each:>9.0f} {memory:>5.1f} {aside:>10,.0f}")
    print(f"time per row, last against first: {found[-1][2] / found[0][2]:.2f} (1 is linear)")
    return 0


if __name__ == "__main__":
    sys.exit(main([int(word.replace("_", "").replace(",", "")) for word in sys.argv[1:]] or [100_000, 1_000_000]))
