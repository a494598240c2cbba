"""The fixed parts of every prompt, as token ids: header, passage marks, question and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from lclm_rag.checkpoint import MEMORY, MEMORY_END, MEMORY_START, Checkpoint
from lclm_rag.checks import check_unicode
from lclm_rag.errors import CheckpointError
from lclm_rag.prompting.frames import Frame, fill, frame_of

if TYPE_CHECKING:
    import torch

__all__ = ["HistoryTurn", "PromptEnds", "PromptTemplate", "plain_ids", "render_chat"]

# Takes the place of a message's words while the chat template is rendered; no template writes it itself.
_WORDS_MARK = "\ue000lclm-rag-words\ue000"


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokenize text that comes from a document or a user.

    Special tokens are plain letters here: `<|im_end|>` in a document ends nothing.

    Args:
        tokenizer: A tokenizer with `encode_special_tokens` set, such as `Checkpoint.inert_decoder_tokenizer`.
        text: The text.

    Returns:
        The token ids.

    Raises:
        ValueError: When the text cannot be written as UTF-8.
    """
    check_unicode(text, "The text of the prompt")
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True)
class PromptEnds:
    """What comes before and after the passages of a prompt.

    Attributes:
        before: Token ids before `lead`.
        lead: Words right before the first passage; they are tokenized together with that passage's name.
        after: Token ids after the passages, up to where the answer begins.
        memories: The latents in `after`, each with the offset of its first position there.
    """

    before: list[int]
    lead: str
    after: list[int]
    memories: tuple[tuple[int, torch.Tensor], ...] = ()


@dataclass(frozen=True)
class HistoryTurn:
    """A turn of the conversation before a question.

    Attributes:
        role: Who said it.
        words: What was said.
        latents: The words as latents [n, width]; None puts them in as text.
    """

    role: str
    words: str
    latents: torch.Tensor | None = None


@dataclass(frozen=True)
class PromptTemplate:
    """A frame, in the words and tokens of a checkpoint's decoder.

    Passages and question are in one user turn of the decoder's own chat template, after a system turn if the
    frame has one. Everything before the question depends on the passages alone, so an engine's prefix cache
    is hit by every further question about them. A passage's body is either a memory span (latents) or text.

    Attributes:
        markup: The decoder's tokenizer, which recognizes special tokens.
        inert: The same tokenizer with `encode_special_tokens`: special tokens are plain letters.
        opening: The chat template's text before the words of the first turn.
        between_turns: Its text between the words of the system turn and those of the user's turn; "" if there
            is no system turn.
        closing: Its text after the words of the user's turn.
        end_tokens: The tokens that end the decoder's turn: first that of the chat template, such as
            `<|im_end|>`, then others that its generation_config.json names.
        frame: The words around passages and question.
        instruction: The instruction; "" for none.
        system: The words of the system turn; "" for none.
        tools: Tools that the chat template describes to the decoder, in the format of OpenAI's API.
    """

    markup: Tokenizer
    inert: Tokenizer
    opening: str
    closing: str
    end_tokens: tuple[int, ...]
    frame: Frame
    instruction: str
    system: str = ""
    between_turns: str = ""
    tools: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        frame: Frame | None = None,
        instruction: str | None = None,
    ) -> PromptTemplate:
        """Make the template of a checkpoint's decoder. The chat template is rendered once, here.

        Args:
            checkpoint: The checkpoint.
            frame: The frame; default: the one that the checkpoint names.
            instruction: The instruction; default: the frame's.

        Returns:
            The template.

        Raises:
            CheckpointError: When there is no usable chat template.
            ValueError: When the checkpoint names a frame that does not exist.
        """
        frame = frame or frame_of(checkpoint)
        made = cls(
            markup=checkpoint.decoder_tokenizer,
            inert=checkpoint.inert_decoder_tokenizer,
            opening="",
            closing="",
            end_tokens=_end_tokens(checkpoint),
            frame=frame,
            instruction=frame.instruction if instruction is None else instruction,
            system=frame.system.strip(),
        )
        return made._rendered(checkpoint)

    def offering(self, checkpoint: Checkpoint, tool: dict[str, Any] | None) -> PromptTemplate:
        """Offer passages verbatim to the decoder.

        Args:
            checkpoint: The template's checkpoint.
            tool: The tool that gives them, in the format of OpenAI's API; None offers them in the frame's
                words.

        Returns:
            The same template, with the offer.

        Raises:
            CheckpointError: When the decoder's chat template does not support tools, or a system turn.
        """
        if tool is not None:
            with_tool = replace(self, tools=(tool,))._rendered(checkpoint)
            if (with_tool.opening, with_tool.closing) == (self.opening, self.closing):
                raise CheckpointError(
                    f"The chat template in {checkpoint.path / 'decoder'} offers no tools to the decoder."
                )
            return with_tool
        expansion = self.frame.expansion
        offer = fill(expansion.offer, rounds=expansion.rounds)
        if expansion.offer_in == "system":
            return replace(self, system=(self.system + offer).strip())._rendered(checkpoint)
        return replace(self, instruction=(self.instruction + offer).strip())

    def closed_book(self, checkpoint: Checkpoint) -> PromptTemplate:
        """Ask without passages: leave out what the frame says of them.

        Args:
            checkpoint: The template's checkpoint.

        Returns:
            The same template, with no instruction but one that is not the frame's own.
        """
        own = "" if self.instruction == self.frame.instruction else self.instruction
        frame = replace(self.frame, header="")
        plain = replace(self, frame=frame, instruction=own, system="")
        return plain._rendered(checkpoint) if self.system else plain

    def _rendered(self, checkpoint: Checkpoint) -> PromptTemplate:
        """The same template with what the chat template writes around its turns."""
        *opening, closing = render_chat(checkpoint, self.roles, self.tools)
        return replace(
            self, opening=opening[0], between_turns="".join(opening[1:]), closing=closing
        )

    @property
    def roles(self) -> list[str]:
        """The roles of a prompt's turns."""
        return ["system", "user"] if self.system else ["user"]

    @cached_property
    def start(self) -> PromptEnds:
        """What comes before the passages, and nothing after them."""
        before = self.markup_ids(self.opening)
        if self.system:
            before += plain_ids(self.inert, self.system) + self.markup_ids(self.between_turns)
        return PromptEnds(before, self._lead, [])

    @property
    def _lead(self) -> str:
        preface = fill(self.frame.preface, instruction=self.instruction) if self.instruction else ""
        return preface + self.frame.header

    def ends(self, question: str, history: Sequence[HistoryTurn] = ()) -> PromptEnds:
        """What comes before the passages, and after them up to the answer.

        Args:
            question: The question.
            history: The turns before it, oldest first; none for a frame without `history`.

        Returns:
            The ends of the prompt.

        Raises:
            ValueError: When the question is empty.
        """
        if not question.strip():
            raise ValueError("The question is empty.")
        asked = fill(self.frame.question, question=question)
        ids, memories = (
            self._history(history, asked) if history else (plain_ids(self.inert, asked), ())
        )
        return replace(self.start, after=ids + self._end, memories=memories)

    def _history(
        self, history: Sequence[HistoryTurn], asked: str
    ) -> tuple[list[int], tuple[tuple[int, torch.Tensor], ...]]:
        """Token ids of the turns and of what is asked then, and the latents among them."""
        first, _, last = self.frame.history.partition("{turns}")
        ids: list[int] = []
        memories: list[tuple[int, torch.Tensor]] = []
        text = first
        for turn in history:
            if turn.latents is None:
                text += self.turn_words(turn)
                continue
            words = fill(self.frame.turn, role=turn.role.capitalize())
            before, _, after = words.partition("{words}")
            ids += plain_ids(self.inert, text + before)
            memories.append((len(ids) + 1, turn.latents))  # After <|memory_start|>.
            ids += self.memory_span(len(turn.latents))
            text = after
        ids += plain_ids(self.inert, text + last + asked)
        return ids, tuple(memories)

    def turn_words(self, turn: HistoryTurn) -> str:
        """A turn of a conversation, in the frame's words."""
        return fill(self.frame.turn, role=turn.role.capitalize(), words=turn.words)

    def words(self, passages: str, question: str) -> str:
        """The user's turn in words, for callers that render the chat themselves.

        Args:
            passages: The passages' text, as it goes into the turn.
            question: The question.

        Returns:
            The content of the user's turn.
        """
        return f"{self._lead}{passages}{fill(self.frame.question, question=question)}"

    @property
    def end_of_turn(self) -> int:
        """The token with which the chat template ends the decoder's turn."""
        return self.end_tokens[0]

    @cached_property
    def _end(self) -> list[int]:
        return self.markup_ids(self.closing)

    def markup_ids(self, text: str) -> list[int]:
        """Token ids of the chat template's own text, in which special tokens are recognized."""
        return list(self.markup.encode(text, add_special_tokens=False).ids)

    def special_id(self, token: str) -> int:
        """Look up the id of a special token.

        Args:
            token: The token.

        Returns:
            The id.

        Raises:
            ValueError: When the tokenizer has no such token.
        """
        found = self.markup.token_to_id(token)
        if found is None:
            raise ValueError(f"The decoder's tokenizer has no token {token}.")
        return int(found)

    def memory_span(self, n_latents: int) -> list[int]:
        """Token ids of `<|memory_start|>`, one placeholder per latent, and `<|memory_end|>`."""
        return [
            self.special_id(MEMORY_START),
            *([self.special_id(MEMORY)] * n_latents),
            self.special_id(MEMORY_END),
        ]

    def before_passage(self, lead: str, number: int) -> list[int]:
        """Token ids between a passage and what comes before it.

        Args:
            lead: The words before the first passage.
            number: The passage's number, from 1.

        Returns:
            The token ids; those of the first passage include `lead`.
        """
        name = self.frame.passage.partition("{passage}")[0]
        words = fill(name, number=number)
        return plain_ids(self.inert, (lead if number == 1 else self.frame.between) + words)

    @cached_property
    def _after_passage(self) -> list[int]:
        return plain_ids(self.inert, self.frame.passage.partition("{passage}")[2])

    def marks_length(self, lead: str, number: int) -> int:
        """The number of positions that passage `number` takes besides its body, `lead` not counted."""
        length = len(self.before_passage(lead, number)) + len(self._after_passage)
        return length - len(plain_ids(self.inert, lead)) if number == 1 else length

    def context(
        self, ends: PromptEnds, bodies: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[int]]:
        """Put numbered passages after what comes before them.

        Args:
            ends: What comes before the passages.
            bodies: Token ids of each passage's body.

        Returns:
            The token ids up to the end of the last passage, and the offset at which each body begins.
        """
        if not bodies:
            return [*ends.before, *plain_ids(self.inert, ends.lead)], []
        ids, starts = list(ends.before), []
        for number, body in enumerate(bodies, start=1):
            ids += self.before_passage(ends.lead, number)
            starts.append(len(ids))
            ids += body
            ids += self._after_passage
        return ids, starts


def _end_tokens(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The tokens that end the decoder's turn, that of the chat template first.

    Between an answer and its end there may be other tokens: " </s>" is how Llama 2 ends a turn.
    """
    tokenizer, chat_tokenizer = checkpoint.decoder_tokenizer, checkpoint.chat_tokenizer
    *_, ending = render_chat(checkpoint, ["user", "assistant"], replying=False)
    added = tokenizer.get_added_tokens_decoder()
    written = [i for i in tokenizer.encode(ending, add_special_tokens=False).ids if i in added]
    special = [i for i in written if added[i].special]
    plain = [i for i in written if added[i].content.strip()]
    configured = checkpoint.generation_config.get("eos_token_id")
    others = [configured] if isinstance(configured, int) else list(configured or [])
    if chat_tokenizer.eos_token_id is not None and not (special or plain or others):
        others.append(chat_tokenizer.eos_token_id)
    ends = tuple(dict.fromkeys([*(special[:1] or plain[:1]), *others]))
    if not ends:
        raise CheckpointError(
            f"Nothing says which token ends an answer of the decoder in {checkpoint.decoder_folder}: set "
            "eos_token_id in its generation_config.json."
        )
    return ends


def render_chat(
    checkpoint: Checkpoint,
    roles: Sequence[str],
    tools: Sequence[dict[str, Any]] = (),
    *,
    replying: bool = True,
) -> list[str]:
    """Render what the chat template of a checkpoint's decoder writes around the words of messages.

    Args:
        checkpoint: The checkpoint.
        roles: The role of each message.
        tools: Tools that the chat template describes to the decoder, in the format of OpenAI's API.
        replying: Whether the decoder is to reply next, so that the text goes on up to where that begins.

    Returns:
        The text before the first message's words, between each two, and after the last.

    Raises:
        CheckpointError: When there is no chat template, or it does not show each message exactly once and in
            order.
    """
    decoder, tokenizer = checkpoint.path / "decoder", checkpoint.chat_tokenizer
    if not tokenizer.chat_template:
        raise CheckpointError(f"The tokenizer in {decoder} has no chat template.")
    marks = [f"{_WORDS_MARK}{number}{_WORDS_MARK}" for number in range(len(roles))]
    messages = [{"role": r, "content": mark} for r, mark in zip(roles, marks, strict=True)]
    turns = " → ".join(roles)
    try:
        rest = tokenizer.apply_chat_template(
            messages, tools=list(tools) or None, tokenize=False, add_generation_prompt=replying
        )
    except Exception as error:  # Templates raise what they like, through jinja2.
        raise CheckpointError(
            f"The chat template in {decoder} does not render the turns {turns}: {error}"
        ) from error
    around = []
    for mark in marks:
        before, found, rest = str(rest).partition(mark)
        around.append(before)
        if not found:
            rest = _WORDS_MARK
    if any(_WORDS_MARK in piece for piece in (*around, rest)):
        raise CheckpointError(
            f"The chat template in {decoder} does not show each of the turns {turns} exactly once."
        )
    return [*around, rest]
