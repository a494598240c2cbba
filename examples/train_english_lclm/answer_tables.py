"""Print tables of the answers that `measure.py` wrote: of each file, and of all of them together.

    python examples/train_english_lclm/answer_tables.py examples/train_english_lclm/*_answers.json

The tables in README.md are these.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from measure import USED, Asked, codec_losses, summary


def read_answers(path: Path) -> list[Asked]:
    """Read a file that `measure.py` wrote.

    Args:
        path: The file.

    Returns:
        Its answers.
    """
    return [Asked(**line) for line in json.loads(path.read_text("utf-8"))["answers"]]


def table(asked: Sequence[Asked]) -> str:
    """Show the scores.

    Args:
        asked: The answers.

    Returns:
        A table in Markdown: each way with the codec `USED`.
    """
    rows = [row for row in summary(asked) if row["codec"] == USED]
    lines = [
        "| passages | from | contained | exact | positions | first token |",
        "|---|---|---|---|---:|---:|",
    ]
    for row in rows:
        contained, exact = (
            "{:.1f}% ({:.1f}\u2013{:.1f})".format(*(100 * x for x in row[name]))
            for name in ("contained", "exact")
        )
        cells = [row["passages"], row["way"], contained, exact]
        cells += [f"{row['positions']:.0f}", f"{row['first_token_ms']:.0f} ms"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gaps(asked: Sequence[Asked]) -> str:
    """Say how far text is ahead of latents with the codec `USED`.

    Args:
        asked: The answers.

    Returns:
        A line for each kind of passages.
    """
    rows = [row for row in summary(asked) if row["codec"] == USED]
    right = {(row["passages"], row["way"]): row["contained"][0] for row in rows}
    lines = []
    for passages in dict.fromkeys(row["passages"] for row in rows):
        ahead = 100 * (right[passages, "text"] - right[passages, "latents"])
        lines.append(f"{passages}: text is {ahead:.1f} points ahead of latents")
    return "\n".join(lines)


def codec_table(asked: Sequence[Asked]) -> str:
    """Show what the codecs lose and win, from latents alone.

    Args:
        asked: The answers.

    Returns:
        A table in Markdown.
    """
    latents = [row for row in summary(asked) if row["way"] == "latents"]
    losses = {(row["passages"], row["codec"]): row for row in codec_losses(asked)}
    lines = ["| passages | codec | contained | lost | won |", "|---|---|---:|---:|---:|"]
    for row in sorted(latents, key=lambda row: str(row["passages"])):
        loss = losses.get((row["passages"], row["codec"]))
        counts = [str(loss["lost"]), str(loss["won"])] if loss else ["", ""]
        cells = [row["passages"], row["codec"], f"{100 * row['contained'][0]:.1f}%", *counts]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("answers", type=Path, nargs="+", help="Files that measure.py wrote.")
    options = parser.parse_args()
    everything: list[Asked] = []
    for path in options.answers:
        asked = read_answers(path)
        everything += asked
        print(f"{path.name}\n\n{table(asked)}\n\n{gaps(asked)}\n")
    print(f"Together\n\n{table(everything)}\n\n{gaps(everything)}\n\n{codec_table(everything)}")


if __name__ == "__main__":
    main()
