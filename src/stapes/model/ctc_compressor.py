"""A connector that is taught by CTC and hands the LLM what was said, not how long it took."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .alphabets import LETTERS, PHONES
from .configuration import ConnectorConfig
from .frame_hearer import FrameHearer
from .prenorm import PreNormLayer
from .sound_namer import SOUND_WIDTH, SoundNamer
from .speller import Speller

Objective = Literal["answer", "ctc", "letters", "phones", "sound"]
"""What a stage of training teaches: the LLM's answers, hearing what is said, its letters or phones alone, or naming
sounds."""


class CTCSteps(NamedTuple):
    """What CTC sees of a batch.

    Attributes:
        hidden: (B, S, D) with S = ceil(T / stride).
        logits: (B, S, 1 + C): blank first, then the C tokens.
        mask: (B, S), True on real steps.
    """

    hidden: Tensor
    logits: Tensor
    mask: Tensor


class Heard(NamedTuple):
    """What a batch is to the LLM, and what CTC hears in it.

    Attributes:
        slots, slots_mask: as `CTCCompressor.forward` returns them.
        pieces, pieces_mask: `logits` and `mask` of `CTCSteps`.
        letters: (B, T, 1 + 28) logits, blank first; None if it hears none.
        phones: (B, T, 1 + 40) likewise.
        frames_mask: (B, T), True on real frames.
    """

    slots: Tensor
    slots_mask: Tensor
    pieces: Tensor
    pieces_mask: Tensor
    letters: Tensor | None
    phones: Tensor | None
    frames_mask: Tensor


class CTCCompressor(nn.Module):
    """Convolution → Transformer → CTC over pieces of words → embeddings of what was heard, then of how it sounds.

    A clip has A slots, one for each K encoder frames, as with the other connectors. Runs of steps on which CTC hears
    one and the same token become one slot each: the LLM's own embeddings of the tokens, weighted by their
    probabilities, plus a learnt rest. The slots that speech leaves free, at least one where A > 1, hold the encoder's
    frames, averaged over equal parts of the clip: a clip without speech consists of them. With `sound_layer` they are
    taken from that layer, and name what sounds (`SoundNamer`) in the words of captions, as those of speech hold what is
    said: CTC teaches the encoder's last layers to hear nothing in a sound.

    Source: CTC is Graves et al. 2006, its use to shorten what the LLM reads follows CTC compression (Gaido et al.
    2021, arXiv 2102.01578) and posterior-weighted embeddings Wav2Prompt (Deng et al. 2024, arXiv 2406.00522). Where
    we differ: CTC's output layer is the LLM's own embedding table, frozen, so that words that were seldom heard lie
    near those that mean the like; its tokens are those of the first merges of the LLM's BPE, so that rare words are
    spelt in pieces that are often heard; and the number of slots follows the clip's length alone, so that a processor
    can count it.
    """

    def __init__(self, config: ConnectorConfig, encoder_hidden_size: int, llm_hidden_size: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.frames_per_slot = config.frames_per_window
        self.stride = config.ctc_stride
        self.sharpness = config.ctc_sharpness
        self.norm_in = nn.LayerNorm(encoder_hidden_size)
        self.conv = nn.Conv1d(encoder_hidden_size, width, 2 * self.stride, self.stride, padding=self.stride // 2)
        self.layers = nn.ModuleList(
            PreNormLayer(width, config.num_attention_heads, config.intermediate_size, config.dropout)
            for _ in range(config.num_hidden_layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.to_llm = nn.Linear(width, llm_hidden_size)
        self.norm_llm = nn.LayerNorm(llm_hidden_size)
        self.blank = nn.Linear(llm_hidden_size, 1)
        # The rows are the LLM's own, see `assembly.build`; they never learn.
        self.token_embeddings = nn.Embedding(config.num_ctc_tokens, llm_hidden_size)
        self.speller: Speller | None = None
        if config.ctc_spelling:
            self.speller = Speller(width, config.ctc_spelling, config.num_ctc_tokens, config.num_letter_groups)
        self.letters: FrameHearer | None = None
        if config.ctc_letters:
            self.letters = FrameHearer(encoder_hidden_size, config.ctc_letters, len(LETTERS), config.dropout)
        self.phones: FrameHearer | None = None
        if config.ctc_phones:
            self.phones = FrameHearer(encoder_hidden_size, config.ctc_phones, len(PHONES), config.dropout)
        self.detail = nn.Linear(width, llm_hidden_size, bias=False)
        self.sound_out = nn.Linear(width if config.sound_layer is None else SOUND_WIDTH, llm_hidden_size)
        self.namer: SoundNamer | None = None
        if config.sound_layer is None:
            self.sound_in = nn.Linear(encoder_hidden_size, width)
            self.norm_sound = nn.RMSNorm(llm_hidden_size, eps=1e-6)
        else:
            self.namer = SoundNamer(encoder_hidden_size, llm_hidden_size, config.dropout)

    def forward(self, frames: Tensor, frames_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Fill each clip's slots with what is said in it, then with how it sounds.

        Args:
            frames: (B, T, D) encoder output at 50 Hz; (B, T, 2 D) with the output of the sound layer behind it if there
                is one.
            frames_mask: (B, T), True on real frames, which come first.

        Returns:
            (B, A, D_llm) with A = ceil(T / K), speech before sound, each in time order, and its mask (B, A).

        Raises:
            ValueError: if D is not the encoder's width.
        """
        return self._fill(frames, frames_mask, self.read(frames, frames_mask))

    def _fill(self, frames: Tensor, frames_mask: Tensor, steps: CTCSteps) -> tuple[Tensor, Tensor]:
        num_slots, num_speech, to_speech, to_sound = self._deal(frames_mask, steps)
        slots = torch.arange(to_sound.shape[1], device=frames.device)
        probabilities = (self.sharpness * steps.logits[..., 1:]).softmax(dim=-1)
        speech = to_speech @ (probabilities @ self.token_embeddings.weight + self.detail(steps.hidden))

        sound = self._sound(frames, frames_mask, to_sound.to(frames.dtype))
        is_speech = slots[None] < num_speech[:, None]
        return torch.where(is_speech[:, :, None], speech, sound), slots[None] < num_slots[:, None]

    def _deal(self, frames_mask: Tensor, steps: CTCSteps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Deal a batch's slots out: how many there are and how many hold speech, both (B,), and what is in each.

        The last two are `speech_slots`' weights (B, A, S) of steps and `sound_slots`' (B, A, T) of frames.
        """
        num_slots = -(-frames_mask.sum(dim=1) // self.frames_per_slot)
        to_speech, num_speech = speech_slots(steps.logits, steps.mask, num_slots)
        return num_slots, num_speech, to_speech, sound_slots(frames_mask, num_slots, num_speech, to_speech.shape[1])

    def _sound(self, frames: Tensor, frames_mask: Tensor, to_sound: Tensor) -> Tensor:
        """Fill all slots with sound: (B, A, D_llm)."""
        if self.namer is None:
            return self.norm_sound(self.sound_out(nn.functional.silu(self.sound_in(to_sound @ self.norm_in(frames)))))
        hidden, logits = self._name(frames, frames_mask, to_sound)
        return logits.softmax(dim=-1) @ self.token_embeddings.weight + self.sound_out(hidden)

    def _name(self, frames: Tensor, frames_mask: Tensor, to_sound: Tensor) -> tuple[Tensor, Tensor]:
        assert self.namer is not None
        return self.namer(frames.chunk(2, dim=-1)[1], frames_mask, to_sound, self.token_embeddings.weight)

    def read(self, frames: Tensor, frames_mask: Tensor) -> CTCSteps:
        """Run the part that CTC teaches, see `CTCSteps`; arguments as in `forward`."""
        frames = self._of_speech(frames)
        num_steps = -(-frames_mask.sum(dim=1) // self.stride)
        # Zeros past a clip's end, in a batch as alone, where the convolution pads.
        hidden = self.norm_in(frames) * frames_mask[:, :, None]
        hidden = nn.functional.pad(hidden, (0, 0, 0, -frames.shape[1] % self.stride))
        hidden = self.dropout(nn.functional.gelu(self.conv(hidden.transpose(1, 2)).transpose(1, 2)))
        hidden = hidden[:, : int(num_steps.max())]
        mask = torch.arange(hidden.shape[1], device=frames.device)[None] < num_steps[:, None]
        for layer in self.layers:
            hidden = layer(hidden, mask)
        hidden = self.norm_out(hidden)
        return CTCSteps(hidden, self._logits(hidden), mask)

    def hear(self, frames: Tensor, frames_mask: Tensor) -> Heard:
        """Fill the slots, and tell what is heard in words, too; arguments as in `forward`."""
        steps = self.read(frames, frames_mask)
        letters, phones = (
            None if hearer is None else hearer(self._of_speech(frames), frames_mask)
            for hearer in (self.letters, self.phones)
        )
        return Heard(*self._fill(frames, frames_mask, steps), steps.logits, steps.mask, letters, phones, frames_mask)

    def _of_speech(self, frames: Tensor) -> Tensor:
        """Take the encoder's output, (B, T, D), from what may hold a sound layer's too."""
        width = self.norm_in.normalized_shape[0]
        wanted = width if self.namer is None else 2 * width
        if frames.shape[-1] != wanted:
            raise ValueError(f"encoder frames are {frames.shape[-1]} wide, the connector was built for {wanted}")
        return frames[..., :width]

    def _logits(self, hidden: Tensor) -> Tensor:
        like_llm = self.norm_llm(self.to_llm(hidden))
        pieces = like_llm @ self.token_embeddings.weight.T
        if self.speller is not None:
            pieces = pieces + self.speller(hidden)
        return torch.cat([self.blank(like_llm), pieces], dim=-1)

    def let_learn(self, objective: Objective) -> None:
        """Let gradients reach what an objective teaches; `answer` teaches the parts that only matter to the LLM.

        Raises:
            ValueError: for `sound`, `letters` or `phones` if the connector has no part for it.
        """
        if objective == "sound" and self.namer is None:
            raise ValueError("the connector names no sounds; `objective: sound` teaches one with `sound_layer`")
        for name, hearer in (("letters", self.letters), ("phones", self.phones)):
            if objective == name and hearer is None:
                raise ValueError(f"the connector hears no {name}; `objective: {name}` teaches one with `{name}`")
        for_llm: list[nn.Module] = [self.detail, self.sound_out]
        if self.namer is None:
            for_llm += [self.sound_in, self.norm_sound]
        self.requires_grad_(objective == "ctc")
        self.token_embeddings.requires_grad_(False)
        for name, hearer in (("letters", self.letters), ("phones", self.phones)):
            if hearer is not None:
                hearer.requires_grad_(objective in ("ctc", name))
        if self.namer is not None:
            self.namer.requires_grad_(objective == "sound")
        for module in for_llm:
            module.requires_grad_(objective == "answer")

    def loss(
        self,
        objective: Literal["ctc", "letters", "phones", "sound"],
        frames: Tensor,
        frames_mask: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """Compute the summed loss of an objective other than `answer`.

        Arguments as for `ctc_loss`; `letters` and `phones` want `letter_numbers` and `phone_numbers` as labels.
        """
        match objective:
            case "letters" | "phones":
                hearer = self.letters if objective == "letters" else self.phones
                assert hearer is not None
                return _ctc(hearer(self._of_speech(frames), frames_mask), frames_mask, labels)
            case "sound":
                return self.sound_loss(frames, frames_mask, labels)
            case "ctc":
                return self.ctc_loss(frames, frames_mask, labels)

    def ctc_loss(self, frames: Tensor, frames_mask: Tensor, labels: Tensor) -> Tensor:
        """Compute the CTC loss of all pieces, summed.

        Args:
            frames, frames_mask: as in `forward`.
            labels: (B, U) piece numbers from 1 (0 is the blank), padded with what is below 1. A clip without speech
                has none.
        """
        steps = self.read(frames, frames_mask)
        return _ctc(steps.logits, steps.mask, labels)

    def sound_loss(self, frames: Tensor, frames_mask: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy of a caption's words, summed over words, mean over the slots that hold sound.

        Args:
            frames, frames_mask: as in `forward`.
            labels: (B, U) numbers from 1 of the words' pieces, as for `ctc_loss`; their order does not matter.
        """
        with torch.no_grad():
            *_, to_sound = self._deal(frames_mask, self.read(frames, frames_mask))
        _, logits = self._name(frames, frames_mask, to_sound.to(frames.dtype))
        is_sound = to_sound.sum(dim=-1) > 0
        losses = -logits.float().log_softmax(dim=-1) * is_sound[:, :, None]
        losses = losses.sum(dim=1) / is_sound.sum(dim=1).clamp(min=1)[:, None]
        is_word = labels > 0
        chosen = losses.gather(1, (labels - 1).clamp(min=0)) * is_word
        return chosen.sum()


def speech_slots(logits: Tensor, mask: Tensor, num_slots: Tensor) -> tuple[Tensor, Tensor]:
    """Decide which steps make which slot.

    A run of steps with one best token that is not the blank is a segment; each gets a slot. If there are more
    segments than slots, neighbours share one.

    Args:
        logits: (B, S, 1 + C), blank first.
        mask: (B, S), True on real steps.
        num_slots: (B,) A of each clip; one slot is kept for sound unless there is but one.

    Returns:
        weights (B, max A, S) of the steps in each slot, which sum to 1 in slots that hold speech and to 0 in others,
        and the number of slots that hold speech (B,), which come first.
    """
    best = logits.argmax(dim=-1) * mask
    before = nn.functional.pad(best, (1, 0))[:, :-1]
    is_speech = best > 0
    segment = (is_speech & (best != before)).cumsum(dim=1) - 1
    num_segments = segment[:, -1] + 1
    room = (num_slots - 1).clamp(min=1)
    num_speech = torch.minimum(num_segments, room)
    slot = torch.where(
        (num_segments > room)[:, None], segment * room[:, None] // num_segments.clamp(min=1)[:, None], segment
    )
    heard = (1 - logits.softmax(dim=-1)[..., 0]) * is_speech
    slots = torch.arange(int(num_slots.max()), device=logits.device)
    weights = (slots[None, :, None] == slot[:, None, :]) * heard[:, None, :]
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-6), num_speech


def sound_slots(frames_mask: Tensor, num_slots: Tensor, num_speech: Tensor, size: int) -> Tensor:
    """Share a clip's frames out evenly to the slots that speech leaves free: weights (B, `size`, T) of a mean each."""
    num_frames, free = frames_mask.sum(dim=1), num_slots - num_speech
    frame = torch.arange(frames_mask.shape[1], device=frames_mask.device)[None]
    slot = num_speech[:, None] + frame * free[:, None] // num_frames.clamp(min=1)[:, None]
    slot = torch.where(frames_mask & (free > 0)[:, None], slot, -1)
    chosen = (torch.arange(size, device=slot.device)[None, :, None] == slot[:, None, :]).float()
    return chosen / chosen.sum(dim=-1, keepdim=True).clamp(min=1)


def _ctc(logits: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    log_probabilities = logits.float().log_softmax(dim=-1).transpose(0, 1)
    # A text with more tokens than its clip has steps has no alignment: it teaches nothing, and must not be infinite.
    return nn.functional.ctc_loss(
        log_probabilities,
        labels.clamp(min=0),
        mask.sum(dim=1),
        (labels > 0).sum(dim=1),
        blank=0,
        reduction="sum",
        zero_infinity=True,
    )
