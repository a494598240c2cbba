"""Training data: any record is read directly, each comes once in an epoch, steps depend on nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_rag.checkpoint import MEMORY_END, MEMORY_START, Checkpoint
from lclm_rag.errors import CorpusError
from lclm_rag.prompting import PromptTemplate
from lclm_rag.training import sources
from lclm_rag.training.blocks import Block
from lclm_rag.training.data import Mixture, Part, read_mixture
from lclm_rag.training.examples import Ask, Chat, MarkedText, Questions, Text, example_of
from lclm_rag.training.shuffling import Order, permuted
from lclm_rag.training.sources import Source
from support.corpus_files import write_jsonl


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"text": f"Text number {n} of all."} for n in range(count)]


# --- records --------------------------------------------------------------------------------------


def as_stream(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


WRITERS: dict[str, Callable[[Path, pa.Table], Any]] = {
    "rows.jsonl": lambda path, table: write_jsonl(path, table.to_pylist()),
    "rows.parquet": lambda path, table: pq.write_table(table, path, row_group_size=7),
    "rows.feather": lambda path, table: feather.write_feather(table, str(path), chunksize=7),
    "rows.arrow": as_stream,
}


@pytest.mark.parametrize("name", WRITERS)
def test_any_record_is_read_directly(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, pa.Table.from_pylist(numbered(50)))
    source = Source.open(tmp_path / name)
    assert len(source) == 50
    for n in (49, 0, 7, 6, 30, 49):
        assert source[n] == Text(f"Text number {n} of all.")
    for n in (-1, 50):
        with pytest.raises(IndexError, match="has 50 examples"):
            source[n]
    assert source.groups == ((50,) if name.endswith("jsonl") else (7,) * 7 + (1,))


@pytest.mark.parametrize("name", WRITERS)
def test_the_three_kinds_of_records(tmp_path: Path, name: str) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    several = [{"question": "Q?", "answer": "a", "number": 1}, {"question": "R?", "answer": "b"}]
    rows: list[dict[str, Any]] = [
        {"text": "One."},
        {"passages": ["A", "B"], "question": "Q?", "answer": " a ", "number": 2},
        {"passages": ["A", "B"], "questions": several},
        {"messages": turns, "tools": tools},
        {"messages": turns},
    ]
    WRITERS[name](tmp_path / name, pa.Table.from_pylist(rows, schema_of(rows)))
    assert list(map(Source.open(tmp_path / name).__getitem__, range(5))) == [
        Text("One."),
        Questions(("A", "B"), (Ask("Q?", " a ", 2),)),
        Questions(("A", "B"), (Ask("Q?", "a", 1), Ask("R?", "b"))),
        Chat(tuple(turns), tuple(tools)),
        Chat(tuple(turns)),
    ]


def schema_of(rows: list[dict[str, Any]]) -> pa.Schema:
    return pa.unify_schemas([pa.Table.from_pylist([row]).schema for row in rows])


def test_a_folder_is_read_in_the_order_of_paths(tmp_path: Path) -> None:
    for name, part in (("b/0.jsonl", [2, 3]), ("a.parquet", [0, 1]), (".hidden/x.jsonl", [9])):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"text": f"{n}"} for n in part]
        WRITERS[f"rows{path.suffix}"](path, pa.Table.from_pylist(rows))
    (tmp_path / "data" / "README.md").write_text("No records.")
    source = Source.open(tmp_path / "data")
    assert [source[n] for n in range(4)] == [Text(f"{n}") for n in range(4)]
    assert len(source) == 4
    assert source.place(3) == f"{tmp_path}/data/b/0.jsonl, line 2"


@given(st.lists(st.sampled_from(["\n", "  \n", '{"text": "a\\nb\u2028c"}\n', '{"text": "é"}\r\n'])))
@settings(max_examples=60, deadline=None)
def test_lines_that_are_blank_are_no_records_and_are_counted(lines: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patched, TemporaryDirectory() as temporary:
        folder = Path(temporary)
        patched.setenv("LCLM_RAG_CACHE", str(folder / "cache"))
        path = folder / "rows.jsonl"
        path.write_text("\ufeff" * bool(lines) + "".join(lines) + '{"text": "z"}', newline="")
        source = Source.open(path)
        expected = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
        assert len(source) == len(expected) + 1
        for place, (number, line) in enumerate(expected):
            assert source[place] == Text(json.loads(line)["text"])
            assert source.place(place) == f"{path}, line {number}"
        assert source[len(expected)] == Text("z")


def test_lines_are_counted_once_and_again_when_the_file_has_changed(
    tmp_path: Path, cache: Path
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", numbered(3))
    assert len(Source.open(path)) == len(Source.open(path)) == 3
    assert len(list((cache / "lines").iterdir())) == 1
    write_jsonl(path, numbered(5))
    assert len(Source.open(path)) == 5
    assert Source.open(path)[4] == Text("Text number 4 of all.")


# --- the public rows ------------------------------------------------------------------------------


def public_rows(folder: Path) -> Path:
    """A few rows in the schema of leonli66/stage3-final-mixture-20260910-raw."""
    remembered = f"Of {MEMORY_START}Long ago.{MEMORY_END} tell."
    turns = [
        {"role": "user", "content": remembered},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "expand"}}]},
        {"role": "tool", "content": "Long ago."},
        {"role": "assistant", "content": "FINAL: Ages ago."},
    ]
    agents = {
        "messages": json.dumps(turns),
        "tools": json.dumps([{"type": "function", "function": {"name": "expand"}}]),
        "source_dataset": "made-up",
        "compression_scope": "input_segments",
    }
    prompt = [{"role": "user", "content": remembered}]
    base = [
        {"prompt": prompt, "compression_prompt": prompt, "target": "Ages.", "sub_dataset": "a"},
        {"prompt": prompt, "compression_prompt": prompt, "target": "NA_string_only"},
    ]
    for name, rows in (("expanded_agents", [agents]), ("base", base)):
        (folder / "raw" / name).mkdir(parents=True)
        table = pa.Table.from_pylist(rows, schema_of(rows))
        pq.write_table(table, folder / "raw" / name / "0.parquet")
    return folder


def test_the_public_rows_are_chats_and_marked_texts(
    tmp_path: Path, checkpoint: Checkpoint, template: PromptTemplate
) -> None:
    source = Source.open(public_rows(tmp_path))
    last, marked, agent = (source[n] for n in range(3))
    assert isinstance(last, Chat)
    assert last.last_only
    assert last.messages[-1] == {"role": "assistant", "content": "Ages."}
    assert isinstance(marked, MarkedText)
    assert isinstance(agent, Chat)
    assert [m["role"] for m in agent.messages] == ["user", "assistant", "tool", "assistant"]
    assert "content" not in agent.messages[1]
    assert agent.tools[0]["function"]["name"] == "expand"
    mixture = Mixture(checkpoint, template, (Part("messages", source),), 0, 3)
    learned = {words(checkpoint, block) for block in mixture.blocks(0, 0, 1, 1000)}
    assert learned == {
        "Ages.<|im_end|>",
        "f  tell.",
        "<|im_end|>FINAL: Ages ago.<|im_end|>",
    }


def words(checkpoint: Checkpoint, block: Block) -> str:
    ids = [i for i, learned in zip(block.token_ids, block.learned, strict=True) if learned]
    return str(checkpoint.decoder_tokenizer.decode(ids, skip_special_tokens=False))


def test_a_data_set_on_the_hub_is_fetched_or_a_folder_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Any]] = []

    def fetch(name: str, **options: Any) -> Path:
        asked.append((name, options))
        return tmp_path / "snapshot"

    public_rows(tmp_path / "snapshot")
    monkeypatch.setattr(sources, "fetch", fetch)
    assert len(Source.open("owner/rows")) == 3
    assert len(Source.open("hf://owner/rows/raw/base")) == 2
    (_, everything), (name, options) = asked
    assert name == "owner/rows"
    assert options["repo_type"] == "dataset"
    assert "*.parquet" in everything["allow_patterns"]
    assert "raw/base/*.parquet" in options["allow_patterns"]

    def unreachable(name: str, **options: Any) -> Path:
        raise OSError("there is no network")

    monkeypatch.setattr(sources, "fetch", unreachable)
    with pytest.raises(CorpusError, match=r"owner/rows is neither a file.*there is no network"):
        Source.open("owner/rows")
    with pytest.raises(CorpusError, match="write hf://OWNER/NAME"):
        Source.open("hf://owner")


# --- bad records ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": ', "not valid JSON"),
        ("[1]", "not an object"),
        ('{"words": "x"}', "neither text, nor passages, nor messages"),
        ('{"text": 3}', "text is not a text"),
        ('{"text": " "}', "text is not a text, or blank"),
        ('{"passages": "A", "question": "Q", "answer": "a"}', "passages is not a list of texts"),
        ('{"passages": ["A"], "answer": "a"}', "question is missing"),
        ('{"passages": ["A"], "question": "Q", "answer": "a", "number": 2}', "number is 2"),
        ('{"passages": ["A"], "question": "Q", "answer": "a", "number": true}', "number is True"),
        ('{"messages": "[1"}', "messages is a text, but not JSON"),
        ('{"messages": [1]}', "messages is not a list of objects"),
        ('{"messages": [], "tools": {}}', "tools is not a list"),
        ('{"compression_prompt": []}', "target is missing"),
        ('{"compression_prompt": [], "target": "NA_string_only"}', "content is missing"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "good"}}\n\n{line}\n')
    source = Source.open(path)
    assert source[0] == Text("good")
    with pytest.raises(CorpusError, match=problem) as caught:
        source[1]
    assert str(caught.value).startswith(f"{path}, line 3: ")


def test_a_line_of_other_bytes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(CorpusError, match="line 1: The line is not UTF-8"):
        Source.open(path)[0]


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a", None, "c"]}), path, row_group_size=2)
    source = Source.open(path)
    assert source[2] == Text("c")
    with pytest.raises(CorpusError, match=r"rows\.parquet, row 2: It has neither"):
        source[1]


def test_bad_files_are_named(tmp_path: Path) -> None:
    for name in ("rows.parquet", "rows.arrow"):
        (tmp_path / name).write_bytes(b"no such thing")
        with pytest.raises(CorpusError, match=f"{name}: not readable"):
            Source.open(tmp_path / name)
    (tmp_path / "rows.jsonl.gz").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"rows\.jsonl\.gz: not a file of records"):
        Source.open(tmp_path / "rows.jsonl.gz")
    with pytest.raises(CorpusError, match=r"none\.jsonl: cannot be read"):
        Source.open(tmp_path / "none.jsonl")
    with pytest.raises(CorpusError, match=r"x/none\.jsonl: cannot be read"):
        Source.open("x/none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(CorpusError, match=r"empty\.jsonl: there is no record"):
        Source.open(tmp_path / "empty.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CorpusError, match="folder: there is no record"):
        Source.open(tmp_path / "folder")
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(CorpusError, match=r"other\.parquet: it has none of the columns text"):
        Source.open(tmp_path / "other.parquet")


def test_null_is_as_if_a_field_were_missing() -> None:
    assert example_of({"messages": None, "passages": None, "text": "x"}) == Text("x")


# --- orders ---------------------------------------------------------------------------------------


@given(count=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_a_permutation_has_every_number_once(count: int, key: int) -> None:
    assert sorted(permuted(n, count, key) for n in range(count)) == list(range(count))


def test_permutations_look_random() -> None:
    orders = {tuple(permuted(n, 6, key) for n in range(6)) for key in range(20_000)}
    assert len(orders) == 720
    firsts = Counter(permuted(0, 6, key) for key in range(6000))
    assert all(900 < firsts[n] < 1100 for n in range(6))
    order = [permuted(n, 1000, 3) for n in range(1000)]
    assert sum(abs(a - b) == 1 for a, b in pairwise(order)) < 12


def test_a_permutation_of_any_size_costs_nothing() -> None:
    assert 0 <= permuted(10**14, 10**15, 1) < 10**15


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=30),
    key=st.integers(0, 2**64 - 1),
    together=st.integers(1, 5),
)
@settings(max_examples=80, deadline=None)
def test_an_order_has_every_record_once_and_few_groups_at_a_time(
    sizes: list[int], key: int, together: int
) -> None:
    order = Order.of(sizes, key, together)
    records = [order[place] for place in range(len(order))]
    assert sorted(records) == list(range(sum(sizes)))
    group_of = [group for group, size in enumerate(sizes) for _ in range(size)]
    done: set[int] = set()
    alive: dict[int, int] = {}
    for record in records:
        group = group_of[record]
        alive[group] = alive.get(group, 0) + 1
        assert group not in done
        assert len(alive) <= together
        if sum(alive.values()) == sum(sizes[g] for g in alive) and (
            len(alive) == together or len(done) + len(alive) == len(sizes)
        ):
            done |= alive.keys()
            alive = {}


# --- mixtures -------------------------------------------------------------------------------------


@pytest.fixture
def mixture(tmp_path: Path, checkpoint: Checkpoint, template: PromptTemplate) -> Mixture:
    facts = [
        {"passages": [f"The code of {n} is {n * n}.", "Other."], "question": f"{n}?", "answer": "x"}
        for n in range(7)
    ]
    write_jsonl(tmp_path / "texts.jsonl", numbered(13))
    write_jsonl(tmp_path / "facts.jsonl", facts)
    data: list[dict[str, Any]] = [
        {"objective": "interleave", "source": str(tmp_path / "texts.jsonl"), "weight": 2},
        {"objective": "answer_mixed", "source": str(tmp_path / "facts.jsonl")},
        {"objective": "copy_random", "weight": 1},
    ]
    return read_mixture(checkpoint, template, data, seed=4, per_step=10)


def test_a_step_depends_on_seed_and_number_alone(mixture: Mixture) -> None:
    later = mixture.blocks(7, 0, 1, 1000)
    anew = Mixture(mixture.checkpoint, mixture.template, mixture.parts, 4, 10)
    first = [anew.blocks(step, 0, 1, 1000) for step in range(8)]
    assert first[7] == later
    assert first[0] != first[1]
    other = Mixture(mixture.checkpoint, mixture.template, mixture.parts, 5, 10)
    assert other.blocks(7, 0, 1, 1000) != later
    assert all(len(blocks) == 10 for blocks in first)
    random_ones = [
        Mixture(mixture.checkpoint, mixture.template, mixture.parts[2:], seed, 1).blocks(
            0, 0, 1, 99
        )
        for seed in (1, 2)
    ]
    assert random_ones[0] != random_ones[1]


@given(step=st.integers(0, 10_000), world=st.integers(1, 13))
@settings(max_examples=30, deadline=None)
def test_processes_share_out_what_one_would_have(step: int, world: int) -> None:
    checkpoint = Checkpoint.open()
    parts = (Part("copy_random", weight=3),)
    mixture = Mixture(checkpoint, PromptTemplate.of(checkpoint), parts, 1, 9)
    # Some are refused, which must not move others to another process.
    shared = [mixture.blocks(step, rank, world, 50) for rank in range(world)]
    assert [b for blocks in shared for b in blocks] == mixture.blocks(step, 0, 1, 50)


def test_two_processes_share_out_a_mixture(mixture: Mixture) -> None:
    for step in range(5):
        both = mixture.blocks(step, 0, 2, 1000) + mixture.blocks(step, 1, 2, 1000)
        assert both == mixture.blocks(step, 0, 1, 1000)


def test_every_record_comes_once_before_any_comes_twice(mixture: Mixture) -> None:
    seen: dict[int, list[Any]] = {}
    for number in range(12_000):  # Over more than two cycles.
        part, record = mixture.drawn(number)
        seen.setdefault(part, []).append(record)
    assert set(seen[2]) == {None}
    for part, count in ((0, 13), (1, 7)):
        drawn = seen[part]
        epochs = [drawn[i : i + count] for i in range(0, len(drawn) - count, count)]
        assert all(sorted(e) == list(range(count)) for e in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > len(epochs) // 2
    shares = [len(seen[part]) / 12_000 for part in range(3)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.01)


def test_a_part_of_almost_no_weight_comes_all_the_same(mixture: Mixture) -> None:
    parts = (Part("copy_random", weight=1e9), Part("copy_random", weight=1e-9))
    of = Mixture(mixture.checkpoint, mixture.template, parts, 0, 1)
    assert Counter(of.drawn(n)[0] for n in range(8192)) == {0: 8190, 1: 2}


def test_long_texts_are_cut_to_the_budget_and_counted(
    tmp_path: Path, checkpoint: Checkpoint, template: PromptTemplate
) -> None:
    long = " ".join(f"word{n}" for n in range(3000))
    path = write_jsonl(tmp_path / "texts.jsonl", [{"text": long}, {"text": "A short one."}])
    for objective in ("reconstruct", "continue", "interleave"):
        mixture = Mixture(checkpoint, template, (Part(objective, Source.open(path)),), 0, 10)
        blocks = mixture.blocks(0, 0, 1, 200)
        assert len(blocks) == 10
        assert mixture.counts == {(objective, "cut"): 5}
        assert all(len(block) <= 200 for block in blocks)
        cut = [block for block in blocks if len(block) > 60]
        assert len(cut) == 5
        assert min(map(len, cut)) > 100
        # Another stretch each time.
        assert len({block.token_ids for block in cut}) == 5
        assert blocks == mixture.blocks(0, 0, 1, 200)


def test_a_cut_text_is_given_back_whole(
    tmp_path: Path, checkpoint: Checkpoint, template: PromptTemplate
) -> None:
    long = " ".join(f"word{n}" for n in range(3000))
    source = Source.open(write_jsonl(tmp_path / "texts.jsonl", [{"text": long}]))
    mixture = Mixture(checkpoint, template, (Part("reconstruct", source),), 0, 1)
    (block,) = mixture.blocks(0, 0, 1, 200)
    said = words(checkpoint, block).removesuffix("<|im_end|>")
    assert f" {said} " in f" {long} "
    (memory,) = block.memories
    assert checkpoint.encoder_tokenizer.decode(list(memory)) == said


def test_what_cannot_be_cut_is_refused_and_counted(
    tmp_path: Path, checkpoint: Checkpoint, template: PromptTemplate
) -> None:
    rows = [{"passages": ["Word " * n], "question": "Q?", "answer": "a"} for n in (5, 400)]
    source = Source.open(write_jsonl(tmp_path / "facts.jsonl", rows))
    for objective, budget in (("answer", 90), ("distill", 400)):
        mixture = Mixture(checkpoint, template, (Part(objective, source),), 0, 4)
        blocks = mixture.blocks(0, 0, 1, budget)
        assert len(blocks) == 2
        assert mixture.counts == {(objective, "refused"): 2}
        for block in blocks:
            assert max(len(block), len(block.teacher or ())) <= budget
    # With a teacher, it is the teacher that is too long.
    pasted = Mixture(checkpoint, template, (Part("answer", source),), 0, 4)
    assert len(pasted.blocks(0, 0, 1, 400)) == 4
    # A text of which nothing fits is refused, too.
    texts = Source.open(write_jsonl(tmp_path / "texts.jsonl", numbered(1)))
    mixture = Mixture(checkpoint, template, (Part("reconstruct", texts),), 0, 1)
    assert mixture.blocks(0, 0, 1, 10) == []
    assert mixture.counts == {("reconstruct", "refused"): 1}


def test_a_record_that_no_block_can_be_made_of_is_named(
    tmp_path: Path,
    checkpoint: Checkpoint,
    template: PromptTemplate,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = [{"text": "Good enough."}, {"text": "x"}, {"nothing": 1}]
    source = Source.open(write_jsonl(tmp_path / "texts.jsonl", rows))
    parts = (Part("continue", source),)
    with pytest.raises(CorpusError, match=r"texts\.jsonl, line [23]: "):
        Mixture(checkpoint, template, parts, 0, 3).blocks(0, 0, 1, 100)
    skipping = Mixture(checkpoint, template, parts, 0, 3, "skip")
    assert len(skipping.blocks(0, 0, 1, 100)) == 1
    assert skipping.counts == {("continue", "bad"): 2}
    assert {m.partition(": ")[0][-6:] for m in caplog.messages} == {"line 2", "line 3"}
    wrong = Mixture(checkpoint, template, (Part("answer", source),), 0, 3)
    with pytest.raises(CorpusError, match=r"line \d: "):
        wrong.blocks(0, 0, 1, 100)


def test_an_objective_that_takes_other_records_says_so(
    tmp_path: Path, checkpoint: Checkpoint, template: PromptTemplate
) -> None:
    source = Source.open(write_jsonl(tmp_path / "texts.jsonl", numbered(1)))
    mixture = Mixture(checkpoint, template, (Part("messages", source),), 0, 1)
    with pytest.raises(CorpusError, match="line 1: The objective messages takes a Chat or Marked"):
        mixture.blocks(0, 0, 1, 100)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"objective": "guess"}, "Unknown objective 'guess'; use reconstruct"),
        ({"objective": "answer"}, "answer needs a source"),
        ({"objective": "copy_random", "source": "texts.jsonl"}, "copy_random takes no source"),
        ({"objective": "copy_random", "weight": 0}, "above 0, not 0"),
        ({"objective": "copy_random", "path": "x"}, "Unknown entry 'path'"),
    ],
)
def test_bad_entries_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Checkpoint,
    template: PromptTemplate,
    entry: dict[str, Any],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "texts.jsonl", numbered(1))
    with pytest.raises(ValueError, match=problem):
        read_mixture(checkpoint, template, [entry], 0, 1)


def test_there_is_no_process_beyond_the_last(mixture: Mixture) -> None:
    with pytest.raises(ValueError, match="no process 2 of 2"):
        mixture.blocks(0, 2, 2, 100)
    with pytest.raises(ValueError, match="at least one part"):
        Mixture(mixture.checkpoint, mixture.template, (), 0, 1)
