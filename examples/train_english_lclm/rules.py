"""Rules that ask about a sentence. Each answer is a span of the sentence, letter by letter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["GAPS", "RULES", "Asked", "sentences"]


@dataclass(frozen=True)
class Asked:
    """A question and its answer."""

    question: str
    answer: str


Rule = Callable[[str], Iterator[Asked]]

_ABBREVIATIONS = re.compile(r"\b(?:e\.g|i\.e|etc|vs|Mr|Mrs|Dr|St|Op|Cit|No|p|pp|cf|[A-Z])\.$")

_POINTING = set(
    "it this that these those they he she we you i there here what which who whoever whatever such "
    "one ones some many most all each both none other others another nothing everything neither "
    "either and but or so if when while where as for in on at by with from to of not then thus "
    "however therefore thus yet hence now also instead only even its his her their "
    "our your my let how why".split()
)
"""Words with which a subject needs the sentence before, or is none."""

_TURNED = set("happy blessed cursed great better worse important enough good likewise".split())
"""Words with which a sentence begins when its subject comes last."""

_DOING = set(
    "click select choose use press open type enter run drag set add call see go hold double-click "
    "right-click enable disable create specify make put move turn check uncheck tick mark insert "
    "place write give start stop close save copy paste delete remove change switch edit connect "
    "install reduce increase define try apply keep take read look pick return provide ensure "
    "pull push lift lower wait ask rinse wash cut "
    "disconnect tap scroll draw import export print pass do".split()
)

_DID = (
    "called wrote went came took gave saw made built sent found "
    "brought became died lived created invented developed founded designed published killed "
    "married returned entered left begat conquered defeated opened discovered introduced"
).split()

_NO_NAMES = _POINTING | set(
    "the a an after before because since although though yes no please note use click god lord him "
    "son true false none home end spirit father chapter section figure table example op cit".split()
)


def sentences(text: str) -> list[str]:
    """Cut a text into sentences.

    Args:
        text: The text, with single spaces.

    Returns:
        Its sentences, each a span of it.
    """
    found: list[str] = []
    for part in re.split(r"(?<=[.!?])\s+(?=[\"“(‘]?[A-Z])", text):
        if found and _ABBREVIATIONS.search(found[-1]):
            found[-1] += " " + part
        else:
            found.append(part)
    return found


def _words(text: str) -> int:
    return len(text.split())


def _balanced(text: str) -> bool:
    """Whether brackets and quotes that open in a text close in it."""
    pairs = all(text.count(a) == text.count(b) for a, b in ("()", "[]", "“”"))
    return pairs and text.count('"') % 2 == 0


def _subject(text: str, longest: int = 7) -> bool:
    """Whether a text can be the subject of a sentence that is understood alone."""
    words = text.split()
    if words[0] == "The" and len(words) == 2 and words[1].islower():
        return False  # "The function": of which nobody knows without the text.
    return (
        len(words) <= longest
        and words[0].lower() not in _POINTING | _TURNED
        and words[-1].lower() not in _POINTING
        and bool(re.fullmatch(r"[\w .'’/+-]+", text))
        and not re.search(r"\b(that|which|who|is|are|was|were|has|can|will|and)\b", text)
        and not re.match(r"(?:The |A )?(?:\w+ )?(?:following|result|reason|above|former)\b", text)
    )


def _inner(text: str) -> str:
    """A beginning of a sentence, for the middle of a question."""
    first = text.split()[0]
    common = first.lower() in _POINTING | {"the", "a", "an", "any", "no"}
    return text[0].lower() + text[1:] if common and first != "I" else text


def define(sentence: str) -> Iterator[Asked]:
    """X is Y → What is X?"""
    found = re.match(
        r"((?:[A-Z]|\d)[^,;:()]{1,60}?) (is|are) ((?:an?|the|one of|any|used) [^;:]+?)"
        r"(?=[.;!?]|, (?:and|but|so|which|because|although|while)\b| because\b)",
        sentence,
    )
    if found and _subject(found[1]) and 3 <= _words(found[3]) <= 25 and _balanced(found[3]):
        used = found[3].startswith("used ")
        if used and (what := re.match(r"used (?:to|for|by|as|in|when) .+", found[3])):
            yield Asked(f"What {found[2]} {_inner(found[1])} used for?", what[0][5:])
        elif not used:
            yield Asked(f"What {found[2]} {_inner(found[1])}?", found[3])


def called(sentence: str) -> Iterator[Asked]:
    """X is called Y → What is X called? X stands for Y, means Y → What does X mean?"""
    found = re.match(
        r"([A-Z][^,;:()]{1,80}?) (is|are) (?:also )?(?:called|known as|named) ([^.,;:()]+)(?=[.,;:(])",
        sentence,
    )
    if found and _subject(found[1]) and 1 <= _words(found[3]) <= 6:
        yield Asked(f"What {found[2]} {_inner(found[1])} called?", found[3].strip())
    found = re.match(r"([A-Z][^,;:()]{1,50}?) (means|stands for) ([^;:.]+)(?=[.;:])", sentence)
    if found and _subject(found[1], 5) and 2 <= _words(found[3]) <= 20 and _balanced(found[3]):
        verb = {"means": "mean", "stands for": "stand for"}[found[2]]
        yield Asked(f"What does {_inner(found[1])} {verb}?", found[3])


def because(sentence: str) -> Iterator[Asked]:
    """X because Y. → X. Why?"""
    found = re.match(r"([^;:]+?),? because (?!of\b)([^;:]+?)[.!]$", sentence)
    if not found or re.search(r"\b(?:not|only|just|partly|is|perhaps|simply|and)$", found[1]):
        return
    if not (4 <= _words(found[1]) <= 25 and 3 <= _words(found[2]) <= 30):
        return
    if _balanced(found[1]) and _balanced(found[2]) and not re.match(r"[\"“(]", found[1]):
        yield Asked(f"{found[1]}. Why?", found[2])


def how(sentence: str) -> Iterator[Asked]:
    """To X, do Y. → How do you X?"""
    found = re.match(r"To ([a-z][^,;:()]+), ([^;:]+?)\.$", sentence)
    if not found or not (2 <= _words(found[1]) <= 15 and 2 <= _words(found[2]) <= 30):
        return
    first = found[2].split()[0].lower()
    if (first in _DOING or re.match(r"you (?:can|must|have to|need to|should) ", found[2])) and (
        _balanced(found[2])
    ):
        yield Asked(f"How do you {found[1]}?", found[2])


def condition(sentence: str) -> Iterator[Asked]:
    """If X, Y. → What happens, or what should you do, if X?"""
    found = re.match(r"(If|When) ([^,;:()]+), (?:then )?([^;:]+?)\.$", sentence)
    if not found or not (3 <= _words(found[2]) <= 18 and 3 <= _words(found[3]) <= 25):
        return
    if not _balanced(found[3]) or re.search(r"\b(?:however|possible|necessary)$", found[2]):
        return
    link, first = found[1].lower(), found[3].split()[0].lower()
    wanted = re.match(r"you (?:want|wish|need|would like)\b", found[2])
    past = link == "when" and re.search(r"\b(?:had|was|were|came|saw|heard|\w+ed)\b", found[3])
    if wanted or first in _DOING or re.match(r"you (?:must|need to|should|have to) ", found[3]):
        yield Asked(f"What should you do {link} {found[2]}?", found[3])
    elif found[3].startswith("you can "):
        yield Asked(f"What can you do {link} {found[2]}?", found[3])
    elif first not in {"why", "what", "how", "or", "and", "but", "who"}:
        happens = "happened" if past and " is " not in found[2] else "happens"
        yield Asked(f"What {happens} {link} {found[2]}?", found[3])


def purpose(sentence: str) -> Iterator[Asked]:
    """Use X to Y. → What do you use to Y? Or: what is X used for?"""
    found = re.match(r"Use (?!this|these|it|them)([^,;:()]{2,60}?) to ([a-z][^;:]+?)\.$", sentence)
    if found and _words(found[1]) <= 8 and 3 <= _words(found[2]) <= 20 and _balanced(found[2]):
        if len(sentence) % 2:
            yield Asked(f"What do you use to {found[2]}?", found[1])
        else:
            yield Asked(f"What do you use {found[1]} for?", f"to {found[2]}")


def who(sentence: str) -> Iterator[Asked]:
    """NAME did X → Who did X? NAME said, "X" → Who said, "X"?"""
    person = r"(?:(?:Mr|Mrs|Miss|Sir|Lady|King|Captain|Colonel|Dr|Saint)\.? )?[A-Z][a-z]+(?: [A-Z][a-z]+)?"
    found = re.match(rf"({person}) ({'|'.join(_DID)}) ([^\"“;:?]+?)(?=[.;:!]|, [\"“])", sentence)
    verbs = "said|asked|answered|replied|cried"
    said = re.match(rf"({person}) ({verbs})\b[^\"“.]*, [\"“]([^\"“”]+)", sentence)
    if said and said[1].split()[0].lower() not in _NO_NAMES and 3 <= _words(said[3]) <= 25:
        yield Asked(f"Who {said[2]}: “{said[3]}”", said[1])
    if not found or found[1].split()[0].lower() in _NO_NAMES:
        return
    if 2 <= _words(found[3]) <= 20 and _balanced(found[3]):
        yield Asked(f"Who {found[2]} {found[3]}?", found[1])


_MISSING = {
    "option": r"(?<![\w-])--?[a-z][\w-]*(?![\w=])",
    "path": r"(?<![\w/<])(?:~|\.{1,2})?/(?:[\w.+-]+/)*[\w.+-]*\w"
    r"|\b\w+\.(?:txt|py|conf|html|xml|ini|cfg|csv|odt)\b",
    "year": r"(?<!RFC )\b(?:1[5-9]|20)\d\d\b(?!\.\d)",
    "number": r"(?<![\w.,:#(-])(?<![.!?] )\d{1,3}(?:,\d{3})*(?:\.\d+)?(?![\w:-]|\.\d)",
    "word in quotes": r"(?<=[\"“‘])[A-Za-z][\w-]{2,}(?: [\w-]+){0,3}(?=[\"”’](?!\w))",
    "name": r"(?<=[a-z,] )(?:Mr\. |Mrs\. |Miss )?[A-Z][a-z]{2,}(?: [A-Z][a-z]{2,}){0,2}(?![\w-])",
}


def _gap(kind: str, pattern: str) -> Rule:
    """A sentence with a gap, if what is missing stands in it once."""

    def rule(sentence: str) -> Iterator[Asked]:
        if not 7 <= _words(sentence) <= 28 or not _balanced(sentence):
            return
        for found in re.finditer(pattern, sentence):
            answer = found[0]
            if kind == "name" and (
                set(answer.lower().split()) & _NO_NAMES or sentence[found.end() :].startswith(".")
            ):
                continue
            if len(re.findall(rf"(?<!\w){re.escape(answer)}(?!\w)", sentence)) == 1:
                gapped = f"{sentence[: found.start()]}___{sentence[found.end() :]}"
                asked = (f"Which {kind} is missing: {gapped}", f"{gapped} Which {kind} is it?")
                yield Asked(asked[len(sentence) % 2], answer)

    return rule


RULES: dict[str, Rule] = {
    "define": define,
    "called": called,
    "because": because,
    "how": how,
    "condition": condition,
    "purpose": purpose,
    "who": who,
}
"""Rules that ask about a whole sentence, by name."""

GAPS: dict[str, Rule] = {kind: _gap(kind, pattern) for kind, pattern in _MISSING.items()}
"""Rules that ask what is missing in a sentence, by what it is."""
