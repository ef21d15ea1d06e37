"""Compare two reports on the command line; what is compared, and how, stands in `compare`."""

import argparse
import sys
from pathlib import Path

from .. import compare, stats

EXPLAINED = """\
A and B are folders of reports (reports/PROFILE) or single ones (NAME.ipynb). Times, memory and paths are left out.
Exit code 0: no score got worse beyond chance; 1: at least one did; 2: A and B cannot be compared."""


def main(arguments: list[str] | None = None) -> int:
    """Write one HTML page with what differs, name each score that differs beyond chance, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m interviewmate_utils.results", description="Work with finished reports.")
    diff = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "diff", help="compare two reports", description=EXPLAINED, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    diff.add_argument("first", type=Path, metavar="A")
    diff.add_argument("second", type=Path, metavar="B")
    diff.add_argument("-o", "--output", type=Path, default=Path("difference.html"), help="page to write (difference.html)")
    chosen = parser.parse_args(arguments)
    try:
        found = compare.compare(chosen.first, chosen.second)
        chosen.output.write_text(compare.page(found, (str(chosen.first), str(chosen.second))), encoding="utf-8")
    except Exception as error:  # whatever it was, exit code 1 must mean a worse score and nothing else
        known = isinstance(error, compare.NotComparable | OSError)
        print(f"Not compared: {'' if known else f'{type(error).__name__}: '}{error}", file=sys.stderr)
        return 2
    for line in compare.sentences(found):
        print(line)
    verdicts = [verdict for one in found if one.verdicts is not None for verdict in one.verdicts.verdict]
    worse, none = verdicts.count("worse"), verdicts.count(stats.TOO_FEW)
    told = (
        f"{worse} of {len(verdicts)} scores got worse." if worse else f"None of {len(verdicts)} scores got worse beyond chance."
    )
    print(told, f"{none} have too few questions for a verdict." if none else "", f"Page: {chosen.output}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
