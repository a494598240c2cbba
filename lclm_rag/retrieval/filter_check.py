"""Conditions that no passage can meet, because no passage has such metadata: mostly misspelt keys."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from lclm_rag.retrieval.filters import (
    And,
    Compare,
    Contains,
    Filter,
    FilterValue,
    In,
    Kind,
    Missing,
    Not,
    Or,
    ordered_kind,
    value_kind,
)

__all__ = ["filter_keys", "unmatchable"]

_SHOWN = 8
_NAMES: dict[Kind, str] = {
    "string": "text",
    "number": "number",
    "boolean": "true or false",
    "date": "date",
}


def unmatchable(filter: Filter, fields: Mapping[str, Collection[Kind]]) -> list[str]:
    """A sentence for each condition that cannot hold for any passage.

    Args:
        filter: The filter to check.
        fields: The kinds of values that passages have under each metadata key.

    Returns:
        The sentences, each once, in the order of the conditions; empty if every condition can hold.
    """
    sentences = []
    for key, wanted in _conditions(filter):
        held = fields.get(key)
        if not held:
            sentences.append(f"No passage has the metadata key {key!r}; there {_listed(fields)}.")
        elif wanted and not any(kind in held for _, kind in wanted):
            sentences.append(_of_another_kind(key, *wanted[0], held))
    return list(dict.fromkeys(sentences))


def filter_keys(filter: Filter) -> list[str]:
    """The metadata keys that a filter refers to, each once."""
    return list(dict.fromkeys(key for key, _ in _conditions(filter)))


def _conditions(filter: Filter) -> Iterator[tuple[str, list[tuple[FilterValue, Kind]]]]:
    """The key of each condition, its values and the kinds that they meet; no values if it accepts any."""
    match filter:
        case And(parts) | Or(parts):
            for part in parts:
                yield from _conditions(part)
        case Not(part):
            yield from _conditions(part)
        case Missing(key):
            yield key, []
        case In(key, values):
            yield key, [(value, value_kind(value)) for value in values]
        case Contains(key, text):
            yield key, [(text, "string")]
        case Compare(key, "==" | "!=", value):
            yield key, [(value, value_kind(value))]
        case Compare(key, _, value):
            yield key, [(value, ordered_kind(value))]


def _of_another_kind(key: str, wanted: FilterValue, kind: Kind, held: Collection[Kind]) -> str:
    kinds = " or ".join(_NAMES[kind] for kind in sorted(held))
    shown = str(wanted) if kind == "date" else repr(wanted)
    sentence = f"The filter compares {key!r} with the {_NAMES[kind]} {shown}"
    if kind == "date":
        return (
            f"{sentence}, and none of its values is one ({kinds}): dates are texts such as 2024-05-01 and "
            "2024-05-01T10:00:00Z."
        )
    if isinstance(wanted, str):
        return f"{sentence}, and its values are of another kind: {kinds}. Leave out the quotes."
    if "string" not in held:
        return f"{sentence}, and its values are of another kind: {kinds}."
    written = str(wanted).lower() if isinstance(wanted, bool) else wanted
    return (
        f'{sentence}, and its values are text: write {key}="{written}" for the text, or build with --numbers '
        f"{key} to have numbers."
    )


def _listed(fields: Mapping[str, Collection[Kind]]) -> str:
    names = [repr(name) for name in sorted(fields)]
    if not names:
        return "are no metadata"
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    shown = [*names[:_SHOWN], *more]
    if len(shown) == 1:
        return f"is {shown[0]}"
    return f"are {', '.join(shown[:-1])} and {shown[-1]}"
