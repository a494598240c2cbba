"""The data of the English recipe: prose is told from what is none, and answers stand in their passages."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.english import with_differences
from lclm_rag.training.examples import Questions, example_of
from lclm_rag.training.start import start_checkpoint
from support.language_models import random_language_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_english_lclm"

PARAGRAPH = (
    "The harbour office is a small brick building beside the old crane. It was painted by Maria "
    "Holm in 1987. To report a lost boat, call the night desk at once. If the bell rings twice, the "
    'gate stays closed. Boats may not leave because the ice is too thick. Use --night to print "late '
    'arrivals" into /var/harbour/list.txt every evening.'
)
OTHERS = [
    "A gull is a bird that eats what fishermen leave. " * 3,
    "To paint a boat, choose a dry day with little wind. " * 3,
]


@pytest.fixture(scope="module", autouse=True)
def _example_on_the_path() -> Iterator[None]:
    sys.path.insert(0, str(EXAMPLE))
    yield
    sys.path.remove(str(EXAMPLE))


def _asked(rule: str, sentence: str) -> list[tuple[str, str]]:
    from rules import GAPS, RULES

    return [(asked.question, asked.answer) for asked in (RULES | GAPS)[rule](sentence)]


@pytest.mark.parametrize(
    ("rule", "sentence", "question", "answer"),
    [
        ("define", "A crane is a machine that lifts.", "What is a crane?", "a machine that lifts"),
        ("define", "The Pen tool is used to draw lines.", "What is the Pen tool used for?", "to draw lines"),
        ("called", "The first page is called the cover.", "What is the first page called?", "the cover"),
        ("because", "The bus was late because it snowed hard.", "The bus was late. Why?", "it snowed hard"),
        ("how", "To close the gate, pull the red lever.", "How do you close the gate?", "pull the red lever"),
        (
            "condition",
            "If the bell rings twice, the gate stays closed.",
            "What happens if the bell rings twice?",
            "the gate stays closed",
        ),
        (
            "condition",
            "When you hear the bell, close the door.",
            "What should you do when you hear the bell?",
            "close the door",
        ),
        ("who", "Jonah built a hut on the hill.", "Who built a hut on the hill?", "Jonah"),
        (
            "option",
            "Give --all to see files that have no name.",
            "Which option is missing: Give ___ to see files that have no name.",
            "--all",
        ),
    ],
)  # fmt: skip
def test_rules_ask_what_the_sentence_says(
    rule: str, sentence: str, question: str, answer: str
) -> None:
    assert _asked(rule, sentence) == [(question, answer)]


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("define", "This is a function that returns nothing."),
        ("define", "Happy is the man who waits."),
        ("because", "They left not because they were tired."),
        ("how", "To our surprise, the door was open."),
        ("who", "Then came the king of the hills."),
        ("number", "There are 3 cats and 3 dogs in the garden of the house."),
    ],
)
def test_rules_leave_out_what_cannot_be_asked(rule: str, sentence: str) -> None:
    assert _asked(rule, sentence) == []


def test_questions_are_the_same_each_time_and_their_answers_stand_in_one_passage_only() -> None:
    from questions import PER_PARAGRAPH, records

    made = list(records(PARAGRAPH, "harbour", [PARAGRAPH, *OTHERS]))
    assert made == list(records(PARAGRAPH, "harbour", [PARAGRAPH, *OTHERS]))
    assert 1 < len(made) <= PER_PARAGRAPH
    for record in made:
        assert record["passages"][record["number"] - 1] == PARAGRAPH
        assert [record["answer"] in p for p in record["passages"]].count(True) == 1
        example = example_of(json.loads(json.dumps(record)))
        assert isinstance(example, Questions)
        (ask,) = example.asks
        assert (ask.answer, ask.number) == (record["answer"], record["number"])


def test_every_rule_answers_with_a_span() -> None:
    from rules import GAPS, RULES, sentences

    asked = [
        one
        for sentence in sentences(PARAGRAPH)
        for rule in (RULES | GAPS).values()
        for one in rule(sentence)
    ]
    assert len(asked) >= 8
    for one in asked:
        assert one.answer in PARAGRAPH
        assert one.answer == one.answer.strip()


def test_spans_of_prose_are_asked_for_and_stand_in_one_passage_once() -> None:
    from spans import MOST_QUESTIONS, asked_about, records

    asked = {each.answer: each.question for each in asked_about(PARAGRAPH)}
    assert len(asked) >= 4
    for answer, question in asked.items():
        assert PARAGRAPH.count(answer) == 1
        assert answer not in question
    (record,) = records(PARAGRAPH, "harbour", OTHERS)
    assert [record] == list(records(PARAGRAPH, "harbour", OTHERS))
    example = example_of(json.loads(json.dumps(record)))
    assert isinstance(example, Questions)
    assert 1 < len(example.asks) <= MOST_QUESTIONS
    for ask in example.asks:
        assert [ask.answer in each for each in example.passages].count(True) == 1
        assert ask.number is not None
        assert ask.answer in example.passages[ask.number - 1]
    assert list(records("It is what it is.", "harbour", ["It is so."])) == []


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("The hedge along plot 12 has been cut at last.", ["hedge", "plot 12", "cut", "last"]),
        ("Ask Maria Holm, the smith, for it.", ["Ask Maria Holm", "smith"]),
        ("He said “come home soon.”", ["said “come home soon"]),
    ],
)
def test_a_span_ends_at_function_words_and_punctuation(sentence: str, found: list[str]) -> None:
    from spans import spans

    assert [sentence[a:b] for a, b in spans(sentence)] == found


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        (PARAGRAPH, True),
        ("Too short to be a paragraph.", False),
        (PARAGRAPH.lower(), False),
        (PARAGRAPH[:-1], False),
        ("Words. " * 201, False),
        ("Der Hafen ist klein und wird im Winter nicht angefahren. " * 4, False),
        ("The table has 1 2 3 4 5 6 7 8 9 0 + - * / % 11 12 13 14 15 16 17 18 19 20 21.", False),
    ],
)
def test_paragraphs_of_prose_are_kept(text: str, prose: bool) -> None:
    from paragraphs import is_prose

    assert is_prose(text.strip()) == prose


def test_long_paragraphs_are_cut_between_sentences_and_nothing_is_lost() -> None:
    from paragraphs import LONGEST, pieces

    text = " ".join(f"This is sentence number {n} of a long story." for n in range(60))
    cut = pieces(text)
    assert " ".join(cut) == text
    assert all(LONGEST / 4 < len(each.split()) <= LONGEST for each in cut)


def test_paragraphs_come_once() -> None:
    from paragraphs import distinct

    seen: set[str] = set()
    assert [*distinct(["Git 2.1 is out.", "One more.", "Git 2.2 is out!"], seen)] == [
        "Git 2.1 is out.",
        "One more.",
    ]
    assert [*distinct(["One more.", "Another."], seen)] == ["Another."]


def test_html_is_read_by_its_blocks(tmp_path: Path) -> None:
    from readers import read_html

    page = tmp_path / "page.html"
    page.write_text(
        "<title>No</title><h1>No</h1><p>One &amp; <code>two</code>\n three.<pre>no</pre>"
        "<ul><li>Four<li>Five</ul>no<script>no</script><div class='para'>Six</div><div>no</div>"
    )
    assert read_html(page) == ["One & two three.", "Four", "Five", "Six"]


def test_scripture_is_read_from_its_blocks(tmp_path: Path) -> None:
    from readers import read_scripture

    texts = ["<title>No</title>In the <w>beginning</w>.<note>no</note>", "<div/>And <div/>then."]
    packed = [zlib.compress(text.encode()) for text in texts]
    starts = [0, len(packed[0])]
    index = b"".join(
        struct.pack("<III", start, len(data), 0) for start, data in zip(starts, packed, strict=True)
    )
    (tmp_path / "ot.bzs").write_bytes(index)
    (tmp_path / "ot.bzz").write_bytes(b"".join(packed))
    assert read_scripture(tmp_path / "ot.bzs") == ["In the beginning.", "And", "then."]


def test_the_program_writes_what_training_reads(tmp_path: Path) -> None:
    lines = [{"text": text, "source": "harbour"} for text in [PARAGRAPH, *OTHERS]]
    written = "".join(json.dumps(line) + "\n" for line in lines)
    for name in ("texts", "held_out"):
        (tmp_path / f"{name}.jsonl").write_text(written)
    program = [sys.executable, str(EXAMPLE / "questions.py"), "--work", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    asked = (tmp_path / "questions.jsonl").read_text().splitlines()
    assert f"\nquestions: {len(asked)}\n" in f"\n{done.stdout}"
    assert all(isinstance(example_of(json.loads(line)), Questions) for line in asked)


@pytest.mark.parametrize(
    ("name", "questions", "texts", "genres"),
    [("evaluation", 60, 20, 20), ("notes", 130, 32, 15), ("fresh_notes", 143, 31, 15)],
)
def test_the_answers_that_count_stand_in_the_passages(
    name: str, questions: int, texts: int, genres: int
) -> None:
    lines = (EXAMPLE / f"{name}.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == questions
    assert len({record["passages"][0] for record in records}) == texts
    assert len({record["genre"] for record in records}) == genres
    for record in records:
        (passage,) = record["passages"]
        assert record["answers"][0] in passage, record["question"]
        assert record["question"].endswith("?")


def test_every_everyday_question_is_answered_by_every_wording_of_its_fact() -> None:
    from everyday import HERE, Genre, make_text, read_genres

    genres, lists = read_genres(HERE / "everyday.txt")
    rng = random.Random(7)
    never = []
    for genre in genres:
        for fact in genre.facts:
            alone = [
                Genre(genre.name, facts=[type(fact)([wording], [question])])
                for wording in fact.wordings
                for question in fact.questions
            ]
            never += [
                one for one in alone if not any(make_text(one, lists, rng).asked for _ in range(20))
            ]
    assert [(one.facts[0].wordings, one.facts[0].questions) for one in never] == []


def test_everyday_questions_are_answered_letter_by_letter_and_none_is_of_the_evaluation() -> None:
    from everyday import HERE, MEASURED_BY, asked_elsewhere, make_records, read_genres

    genres, lists = read_genres(HERE / "everyday.txt")
    records = make_records(genres, lists, OTHERS, 300, seed=3)
    assert records == make_records(genres, lists, OTHERS, 300, seed=3)
    assert len(records) > 290
    asked = [(record, each) for record in records for each in record["questions"]]
    assert len(asked) > 4 * len(records)
    for record, each in asked:
        assert record["passages"][each["number"] - 1].count(each["answer"]) == 1
    example = example_of(json.loads(json.dumps(records[0])))
    assert isinstance(example, Questions)
    assert len(example.asks) == len(records[0]["questions"])
    for name in MEASURED_BY:
        assert not {each["question"].lower() for _, each in asked} & asked_elsewhere(HERE / name)


def test_an_everyday_question_of_the_evaluation_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import everyday

    genres, lists = everyday.read_genres(everyday.HERE / "everyday.txt")

    def questions() -> set[str]:
        made = everyday.make_records(genres, lists, OTHERS, 50, seed=3)
        return {each["question"] for record in made for each in record["questions"]}

    some = sorted(questions())[0]
    monkeypatch.setattr(everyday, "asked_elsewhere", lambda path: {some.lower()})
    assert some not in questions()


def test_written_notes_come_equally_often_with_questions_that_are_answered_in_them() -> None:
    from everyday import HERE, MEASURED_BY, MOST_PASSAGES, MOST_QUESTIONS, asked_elsewhere
    from paragraphs import read_lines
    from written import make_records

    notes = read_lines(HERE / "written.jsonl")
    for note in notes:
        for each in note["questions"]:
            assert each["answer"] in note["text"], each
    measured = {
        json.loads(line)["passages"][0]
        for name in MEASURED_BY
        for line in (HERE / name).read_text("utf-8").splitlines()
    }
    assert not measured & {note["text"] for note in notes}
    written = {each["question"].lower() for note in notes for each in note["questions"]}
    assert not any(written & asked_elsewhere(HERE / name) for name in MEASURED_BY)

    some = notes[:50]
    records = make_records(some, OTHERS, rounds=3, seed=5)
    assert records == make_records(some, OTHERS, rounds=3, seed=5)
    shown = Counter(text for record in records for text in record["passages"])
    assert [shown[note["text"]] for note in some] == [3] * 50
    for record in records:
        assert 1 <= len(record["passages"]) <= MOST_PASSAGES
        assert 1 <= len(record["questions"]) <= MOST_QUESTIONS
        for each in record["questions"]:
            assert each["answer"] in record["passages"][each["number"] - 1]
    example = example_of(json.loads(json.dumps(records[0])))
    assert isinstance(example, Questions)


def test_a_codec_is_compared_with_bf16_question_by_question() -> None:
    from measure import Asked, codec_losses, summary

    def asked(codec: str, question: str, contained: bool) -> Asked:
        row = (codec, "given", "latents", "letter", question, ["noon"], "noon", contained, False)
        return Asked(*row, positions=10, first_token=0.5)  # type: ignore[arg-type]

    right = {"bf16": (1, 1, 1, 0), "int8": (1, 1, 1, 0), "int4": (1, 0, 0, 1)}
    rows = [
        asked(codec, str(n), bool(x)) for codec, each in right.items() for n, x in enumerate(each)
    ]
    losses = {row["codec"]: (row["lost"], row["won"]) for row in codec_losses(rows)}
    assert losses == {"int8": (0, 0), "int4": (2, 1)}
    shares = {row["codec"]: row["contained"][0] for row in summary(rows)}
    assert shares == {"bf16": 0.75, "int8": 0.75, "int4": 0.5}


def test_the_tables_in_the_documentation_are_those_of_the_answers() -> None:
    from answer_tables import codec_table, read_answers, table

    files = [EXAMPLE / f"{name}_answers.json" for name in ("notes", "fresh")]
    text = (EXAMPLE / "README.md").read_text("utf-8")
    everything = [each for file in files for each in read_answers(file)]
    for asked in (everything, *(read_answers(file) for file in files)):
        assert table(asked) in text
    assert codec_table(everything) in text


def test_the_decoder_first_reads_a_latent_as_the_word_that_is_no_function_word(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    from start import quiet_tokens, quieten

    model = random_language_model(tmp_path / "model", checkpoint)
    made = start_checkpoint(
        model, tmp_path / "start", layers=1, ratio=2, identity=True, dtype="float32"
    )
    quieten(made)
    made = Checkpoint.open(made.path)
    quiet = quiet_tokens(made)
    the = made.encoder_tokenizer.encode(" the", add_special_tokens=False).ids
    assert len(quiet) > 10
    assert the[0] in quiet
    others = [token for token in range(300, 600) if token not in quiet][:20]
    compressor = Compressor.from_pretrained(made, device="cpu", dtype="float32")
    table = load_file(made.decoder_folder / "model.safetensors")[
        "model.embed_tokens.weight"
    ].float()
    like, unlike = [], []
    for other in others:
        for pair in ((the[0], other), (other, the[0])):
            (latent,) = compressor.compress_token_ids([list(pair)])[0]
            like.append(float(torch.cosine_similarity(latent, table[other], dim=0)))
            unlike.append(float(torch.cosine_similarity(latent, table[the[0]], dim=0)))
    assert min(like) > 0.7
    assert sum(like) > 2 * sum(unlike)


def test_what_is_packed_gives_the_trained_tensors_back_and_nothing_that_did_not_change() -> None:
    from pack import differences

    random = torch.Generator().manual_seed(0)
    base = {
        name: torch.randn(40, 30, generator=random) for name in ("table", "still", "projection")
    }
    base["norm"] = torch.ones(30)
    change = torch.randn(40, 3, generator=random) @ torch.randn(3, 30, generator=random)
    trained = base | {"projection": base["projection"] + change, "norm": torch.full((30,), 1.5)}
    trained["table"] = base["table"].index_add(
        0, torch.tensor([7]), torch.randn(1, 30, generator=random)
    )
    trained["new"] = torch.randn(5, 5, generator=random)
    packed = differences(trained, base, rank=8)
    assert {name: tuple(value.shape) for name, value in packed.items()} == {
        "table.left": (40, 1),
        "table.right": (1, 30),
        "projection.left": (40, 3),
        "projection.right": (3, 30),
        "norm": (30,),
        "new": (5, 5),
    }
    again = with_differences(base, packed)
    assert again.keys() == trained.keys()
    for name, value in trained.items():
        torch.testing.assert_close(again[name].float(), value, rtol=0.02, atol=0.05)
    # A lower rank keeps what matters most.
    (lost, kept) = (
        (
            with_differences(base, differences(trained, base, rank))["projection"].float()
            - trained["projection"]
        ).norm()
        for rank in (1, 2)
    )
    assert kept < lost < change.norm()
