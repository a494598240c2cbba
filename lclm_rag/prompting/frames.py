"""Frames: the words around the memory spans of a prompt, as data.

A decoder answers best in the frame that it was trained in. The frames that come with the package are the TOML
files in `frames/`. A file of your own has the same entries: those of `Frame` and, in a table `expansion`,
those of `Expansion`. A placeholder in braces is replaced if its entry's description names it;
other braces stay.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_type_hints

from lclm_rag.checkpoint import Checkpoint

__all__ = ["FRAMES", "Expansion", "Frame", "fill", "frame_of", "load_frame"]

FRAMES = ("numbered", "card", "block", "chunks", "segments")
"""The frames that come with the package."""

DEFAULT_FRAME = "card"
"""For checkpoints whose `model_config.json` names no frame, as those published in June 2026."""


@dataclass(frozen=True)
class Expansion:
    """How a decoder asks for passages verbatim, and how it gets them.

    Attributes:
        rounds: Most prompts for one question, at least 1.
        must_expand: Whether an answer before the first expansion is not accepted.
        name: What a passage is called: {number}.
        offer: The words that offer passages: {rounds}. Not used if there is a `tool`.
        offer_in: Where the offer is added: to the "instruction", or to the "system" turn.
        given: The user's turn with passages: {passages}, {left}, {no_more}, {question}.
        given_passage: One passage of it: {number}, {text}.
        given_between: What stands between two of them.
        left: The words in {left} while more can be expanded: {left}, how many rounds.
        no_more: The words in {no_more} once nothing more can be expanded.
        remind: The words before passages that are given because of `must_expand`.
        final: A last turn, beyond `rounds`, for a decoder that still asks for passages; "" gives it none.
        tool: The tool's function, in the format of OpenAI's API: name, description, parameters. If it is
            None, passages are asked for in words.
    """

    rounds: int = 3
    must_expand: bool = False
    name: str = "passage {number}"
    offer: str = (
        " Reply ANSWER: and the answer. To read passages word for word first, reply EXPAND: and their "
        "numbers."
    )
    offer_in: Literal["instruction", "system"] = "instruction"
    given: str = "Word for word:\n{passages}{no_more}\nQuestion: {question}"
    given_passage: str = "[{number}] {text}\n"
    given_between: str = ""
    left: str = ""
    no_more: str = "Nothing more can be expanded. Reply ANSWER: and the answer.\n"
    remind: str = ""
    final: str = ""
    tool: dict[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Frame:
    """The words around the memory spans of a prompt.

    Between two memory spans all words are tokenized as one text, but for what follows {passage} in `passage`,
    which is tokenized by itself.

    Attributes:
        name: The frame's name, or the path of its file.
        passage: A passage: {passage}, which is the memory span or the text, and {number}, from 1.
        question: The question, after the passages: {question}.
        instruction: The instruction, unless the knowledge base has its own.
        system: The system turn; "" for none.
        preface: How the instruction is put, before all else in the user's turn: {instruction}. It is left out
            if there is no instruction.
        header: What stands before the first passage.
        between: What stands between two passages.
        memory: What the encoder reads of a passage: {text}.
        history: The turns of a conversation before the question, after the passages: {turns}. "" for decoders
            that know no conversations: they are asked the last questions together.
        turn: One of these turns: {role}, {words}.
        follow_up: How a decoder is asked to put a question so that it can be understood without the turns
            before it: {turns}, {question}. Not used without `history`.
        trained_positions: Decoder positions of the longest prompts that such decoders were trained on; None
            if unknown. Longer prompts are answered, with a warning.
        expansion: How passages are asked for and given.
    """

    name: str
    passage: str
    question: str
    instruction: str = ""
    system: str = ""
    preface: str = "{instruction}\n\n"
    header: str = ""
    between: str = ""
    memory: str = "{text}"
    history: str = "\n\nThe conversation until now:\n{turns}"
    turn: str = "{role}: {words}\n"
    follow_up: str = (
        "{turns}User: {question}\n\nWrite the user's last question so that it can be understood without the "
        "conversation: put names in place of words such as it, they or there. Write only the question."
    )
    trained_positions: int | None = None
    expansion: Expansion = field(default_factory=Expansion)

    def __post_init__(self) -> None:
        for entry, placeholder in (
            ("passage", "{passage}"),
            ("question", "{question}"),
            ("preface", "{instruction}"),
            ("memory", "{text}"),
        ):
            if getattr(self, entry).count(placeholder) != 1:
                raise ValueError(f"Frame {self.name}: {entry} must hold {placeholder}, once.")
        if self.history:
            for entry, placeholders in (
                ("history", ("{turns}",)),
                ("turn", ("{role}", "{words}")),
                ("follow_up", ("{turns}", "{question}")),
            ):
                for placeholder in placeholders:
                    if getattr(self, entry).count(placeholder) != 1:
                        raise ValueError(
                            f"Frame {self.name}: {entry} must hold {placeholder}, once."
                        )
        if self.expansion.rounds < 1:
            raise ValueError(f"Frame {self.name}: rounds must be at least 1.")

    def to_json(self) -> str | dict[str, Any]:
        """The frame as JSON holds it: the name of one that comes with the package, else all entries."""
        return self.name if self.name in FRAMES else asdict(self)


def fill(words: str, /, **values: object) -> str:
    """Replace the placeholders of some words, all at once; braces inside the values stay as they are.

    Args:
        words: Words with placeholders such as {number}.
        **values: The values, by placeholder.

    Returns:
        The filled words.
    """
    return re.sub(r"\{(\w+)\}", lambda m: str(values[m[1]]) if m[1] in values else str(m[0]), words)


def load_frame(frame: str | Path | Mapping[str, Any] | Frame) -> Frame:
    """Find a frame.

    Args:
        frame: The name of one that comes with the package (`FRAMES`), the path of a TOML file, or what
            `Frame.to_json` gave.

    Returns:
        The frame.

    Raises:
        ValueError: When there is no such frame, or its entries are not those of a frame.
    """
    if isinstance(frame, Frame):
        return frame
    if isinstance(frame, Mapping):
        return _frame(dict(frame), str(frame.get("name", "without a name")))
    name = str(frame)
    if name in FRAMES:
        return _preset(name)
    path = Path(name).expanduser()
    if path.suffix != ".toml":
        raise ValueError(
            f"Unknown frame {name!r}; use {', '.join(FRAMES)}, or the path of a .toml file."
        )
    try:
        entries = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Frame {name} cannot be read: {error}.") from error
    return _frame(entries, name)


def frame_of(checkpoint: Checkpoint) -> Frame:
    """The frame that a checkpoint names in its `model_config.json`, else `DEFAULT_FRAME`.

    Args:
        checkpoint: The checkpoint. The name may also be that of a TOML file in its folder.

    Returns:
        The frame.

    Raises:
        ValueError: As for `load_frame`.
    """
    named = checkpoint.config.frame or DEFAULT_FRAME
    beside = checkpoint.path / named
    return load_frame(beside if named not in FRAMES and beside.is_file() else named)


@cache
def _preset(name: str) -> Frame:
    file = resources.files("lclm_rag.prompting") / "frames" / f"{name}.toml"
    return _frame(tomllib.loads(file.read_text("utf-8")), name)


def _frame(entries: dict[str, Any], name: str) -> Frame:
    entries = {"name": name, **entries}
    expansion = entries.get("expansion", {})
    if not isinstance(expansion, dict):
        raise ValueError(f"Frame {name}: expansion must be a table.")
    _check_entries(name, Expansion, expansion)
    entries["expansion"] = Expansion(**expansion)
    _check_entries(name, Frame, entries)
    return Frame(**entries)


def _check_entries(name: str, kind: type[Any], entries: Mapping[str, Any]) -> None:
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(entries.keys() - known.keys())
    if unknown:
        raise ValueError(f"Frame {name}: unknown entry {unknown[0]!r}; it has {', '.join(known)}.")
    missing = [
        entry for entry in ("passage", "question") if entry in known and entry not in entries
    ]
    if missing:
        raise ValueError(f"Frame {name}: {missing[0]} is missing.")
    for entry, hint in get_type_hints(kind).items():
        if entry in entries and not _fits(entries[entry], hint):
            raise ValueError(f"Frame {name}: {entry} cannot be {entries[entry]!r}.")


def _fits(value: object, hint: Any) -> bool:
    options = getattr(hint, "__args__", ())
    if getattr(hint, "__origin__", None) is Literal:
        return value in options
    kinds = tuple(getattr(option, "__origin__", option) for option in options) or (hint,)
    if getattr(hint, "__origin__", None) is dict:
        kinds = (dict,)
    return isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
