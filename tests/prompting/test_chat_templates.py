"""What ends an answer, in the chat formats of well-known families."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding.decoder import end_token_ids
from lclm_rag.errors import CheckpointError
from lclm_rag.prompting import PromptTemplate, SoftPrompt, next_turn


@dataclass(frozen=True)
class Family:
    """How a family writes a chat.

    `user` and `assistant` are what stands around the words of a turn; `reply` is what opens the decoder's.
    """

    user: tuple[str, str]
    assistant: tuple[str, str]
    reply: str
    ends: tuple[str, ...]
    eos: str = "</s>"
    configured: tuple[str, ...] = ()

    @property
    def template(self) -> str:
        parts = "".join(
            f"{{%- if message.role == '{role}' %}}"
            f"{{{{ {before!r} + message.content + {after!r} }}}}{{%- endif %}}"
            for role, (before, after) in (("user", self.user), ("assistant", self.assistant))
        )
        opening = f"{{%- if add_generation_prompt %}}{{{{ {self.reply!r} }}}}{{%- endif %}}"
        return f"{{%- for message in messages %}}{parts}{{%- endfor %}}{opening}"


FAMILIES = {
    "Qwen": Family(
        ("<|im_start|>user\n", "<|im_end|>\n"), ("<|im_start|>assistant\n", "<|im_end|>\n"),
        "<|im_start|>assistant\n", ("<|im_end|>", "<|endoftext|>"), "<|im_end|>",
        ("<|im_end|>", "<|endoftext|>"),
    ),
    "Llama 2": Family(("<s>[INST] ", " [/INST]"), (" ", " </s>"), "", ("</s>",)),
    "Llama 3": Family(
        ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ("<|eot_id|>", "<|end_of_text|>"), "<|end_of_text|>", ("<|end_of_text|>", "<|eot_id|>"),
    ),
    "Mistral": Family(("[INST] ", " [/INST]"), (" ", "</s>"), "", ("</s>",)),
    "Gemma": Family(
        ("<start_of_turn>user\n", "<end_of_turn>\n"), ("<start_of_turn>model\n", "<end_of_turn>\n"),
        "<start_of_turn>model\n", ("<end_of_turn>", "<eos>"), "<eos>", ("<eos>", "<end_of_turn>"),
    ),
    "Phi 3": Family(
        ("<|user|>\n", "<|end|>\n"), ("<|assistant|>\n", "<|end|>\n"), "<|assistant|>\n",
        ("<|end|>", "<|endoftext|>"), "<|endoftext|>", ("<|endoftext|>",),
    ),
    "Zephyr": Family(
        ("<|user|>\n", "</s>\n"), ("<|assistant|>\n", "</s>\n"), "<|assistant|>\n", ("</s>",)
    ),
    "Vicuna": Family(("USER: ", " "), ("ASSISTANT: ", "</s>"), "ASSISTANT:", ("</s>",)),
    "Alpaca": Family(
        ("### Instruction:\n", "\n\n"), ("### Response:\n", "\n\n"), "### Response:\n", ("</s>",)
    ),
    "Command R": Family(
        ("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", ("<|END_OF_TURN_TOKEN|>",),
        "<|END_OF_TURN_TOKEN|>",
    ),
    "DeepSeek": Family(
        ("<｜User｜>", ""), ("<｜Assistant｜>", "<｜end▁of▁sentence｜>"), "<｜Assistant｜>",
        ("<｜end▁of▁sentence｜>",), "<｜end▁of▁sentence｜>",
    ),
    "ChatGLM": Family(
        ("<|user|>\n", ""), ("<|assistant|>\n", ""), "<|assistant|>\n",
        ("<|endoftext|>", "<|user|>"), "<|endoftext|>", ("<|endoftext|>", "<|user|>"),
    ),
    "a line before the end": Family(
        ("<|im_start|>user\n", "\n<|im_end|>\n"), ("<|im_start|>assistant\n", "\n<|im_end|>\n"),
        "<|im_start|>assistant\n", ("<|im_end|>",), "<|im_end|>",
    ),
}  # fmt: skip


def of_family(folder: Path, checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """The bundled checkpoint with the chat template and the special tokens of a family."""
    shutil.copytree(checkpoint.path, folder)
    decoder = folder / "decoder"
    tokenizer = Tokenizer.from_file(str(decoder / "tokenizer.json"))
    written = {"<s>", family.eos, *family.ends}
    for text in (*family.user, *family.assistant, family.reply):
        written |= {f"<{piece.partition('>')[0]}>" for piece in text.split("<")[1:]}
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in sorted(written)]
    )
    tokenizer.save(str(decoder / "tokenizer.json"))
    settings = json.loads((decoder / "tokenizer_config.json").read_text())
    settings["eos_token"] = family.eos
    (decoder / "tokenizer_config.json").write_text(json.dumps(settings))
    (decoder / "chat_template.jinja").write_text(family.template)
    config = json.loads((decoder / "generation_config.json").read_text())
    config["eos_token_id"] = [tokenizer.token_to_id(t) for t in family.configured] or None
    (decoder / "generation_config.json").write_text(json.dumps(config))
    return Checkpoint.open(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_ends_where_the_family_ends_it(
    name: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """And not at the space or the line break that stands between the words and their end."""
    family = FAMILIES[name]
    opened = of_family(tmp_path / "checkpoint", checkpoint, family)
    tokenizer = opened.decoder_tokenizer
    assert {tokenizer.id_to_token(i) for i in end_token_ids(opened)} == set(family.ends)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_next_turn_follows_as_the_family_writes_it(
    name: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    opened = of_family(tmp_path / "checkpoint", checkpoint, family)
    template = PromptTemplate.of(opened)
    said = template.markup_ids("Nine.")
    grown = [
        next_turn(opened, template, SoftPrompt([]), reply, [("user", "Why?")]).token_ids
        for reply in (said, *([*said, end] for end in template.end_tokens))
    ]
    shown = opened.decoder_tokenizer.decode(grown[0], skip_special_tokens=False)
    assert shown == f"Nine.{family.assistant[1]}{family.user[0]}Why?{family.user[1]}{family.reply}"
    assert all(ids == grown[0] for ids in grown)


def test_a_decoder_of_which_nothing_says_how_it_ends_is_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    opened = of_family(tmp_path / "checkpoint", checkpoint, FAMILIES["Alpaca"])
    settings = opened.decoder_folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token": None}))
    with pytest.raises(CheckpointError, match="set eos_token_id in its generation_config"):
        PromptTemplate.of(Checkpoint.open(opened.path))
