"""The tables of docs/benchmarks.md, made from the committed results. Nothing is measured.

    python benchmarks/tables.py            # rewrites them in the page
    python benchmarks/tables.py --check    # ends with 1 and names those that differ

A table lies on the page between `<!-- table: NAME -->` and `<!-- end -->`; its function, of the same name,
is in one of the tables_*.py beside this file.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import tables_answers
import tables_building
import tables_evaluation
import tables_index
import tables_retrieval
import tables_store

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

TABLES: dict[str, Callable[[], str]] = {
    name: getattr(module, name)
    for module in (
        *(tables_answers, tables_evaluation, tables_store),
        *(tables_index, tables_retrieval, tables_building),
    )
    for name in module.__all__
}

_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Rewrites the page, or checks it.

    Returns:
        The exit code: 0 if the page is as it should be, or now is; 1 if `--check` found a difference.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "page", nargs="?", type=Path, default=PAGE, help="default: docs/benchmarks.md"
    )
    parser.add_argument("--check", action="store_true", help="change nothing, name what differs")
    arguments = parser.parse_args()
    text = arguments.page.read_text("utf-8")
    places = [name for _, name, _ in _MARKED.findall(text)]
    if sorted(places) != sorted(TABLES):
        wrong = sorted(
            {name for name in {*places, *TABLES} if places.count(name) != 1 or name not in TABLES}
        )
        print(f"Not once on {arguments.page}, or unknown: {', '.join(wrong)}", file=sys.stderr)
        return 1
    if not arguments.check:
        arguments.page.write_text(rewritten(text), "utf-8")
    elif differing := differences(text):
        print(
            f"Not as the results have them: {', '.join(differing)}. Run python benchmarks/tables.py.",
            file=sys.stderr,
        )
        return 1
    return 0


def rewritten(page: str) -> str:
    """Puts every table in its place.

    Args:
        page: Markdown with the marks of known tables.

    Returns:
        The same, with the tables that the results give between the marks.
    """
    return _MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", page)


def differences(page: str) -> list[str]:
    """Names the tables of a page that are not those that the results give."""
    return [found[2] for found in _MARKED.finditer(page) if found[0] != rewritten(found[0])]


if __name__ == "__main__":
    sys.exit(main())
