"""The encoder half of Whisper, for clips of any length."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from .configuration import BLOCK_FEATURE_FRAMES, num_encoder_frames


class SpeechEncoder(WhisperEncoder):
    """Whisper's encoder whose work follows the clip's true length.

    Source: Whisper (arXiv 2212.04356), sec. 2.2; weights and layers are transformers' `WhisperEncoder`.
    Where we differ: Whisper always sees 30 s. Here a shorter clip uses the first T rows of the position table,
    padding inside a batch is masked in convolution and attention, so that a clip's frames do not depend on what else
    is in the batch, and a longer clip is encoded in blocks of 30 s that do not attend to each other.
    """

    tap_layer: int | None = None
    """A layer (from 1) whose output is given beside the last one's: frames are then 2 D wide."""

    # A whole Whisper checkpoint can be loaded into its encoder: an audio LM never runs the decoder.
    _keys_to_ignore_on_load_unexpected = [r"^model\.decoder\.", r"^decoder\.", r"^proj_out\."]  # noqa: RUF012

    def forward(self, input_features: Tensor, input_features_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # the mask is what we add
        """Encode log-mel features.

        Args:
            input_features: (B, M, F) log-mel at 100 Hz, right-padded.
            input_features_mask: (B, F), 1 on real frames; None when nothing is padded.

        Returns:
            frames (B, T, D) at 50 Hz with T = ceil(F / 2), zero where padded, and their mask (B, T), bool; with a
            `tap_layer`, (B, T, 2 D).

        Raises:
            ValueError: if M is not the number of mel bins of this encoder.
        """
        batch_size, num_mels, num_features = input_features.shape
        if num_mels != self.num_mel_bins:
            raise ValueError(
                f"input_features has {num_mels} mel bins, the speech encoder wants {self.num_mel_bins}; "
                "use the processor saved with this model"
            )
        if input_features_mask is None:
            lengths = torch.full((batch_size,), num_features, device=input_features.device)
        else:
            lengths = input_features_mask.sum(dim=1)
        frame_lengths = (lengths + 1) // 2
        num_frames = num_encoder_frames(num_features)
        frames_mask = torch.arange(num_frames, device=lengths.device)[None] < frame_lengths[:, None]

        width = self.config.d_model if self.tap_layer is None else 2 * self.config.d_model
        frames = input_features.new_zeros((batch_size, num_frames, width), dtype=self.conv1.weight.dtype)
        for start in range(0, int(lengths.max()), BLOCK_FEATURE_FRAMES):
            # Clips that end before this block take no part in it: a long neighbour costs a short clip nothing.
            rows = (lengths > start).nonzero().squeeze(1)
            block_lengths = (lengths[rows] - start).clamp(max=BLOCK_FEATURE_FRAMES)
            end = start + int(block_lengths.max())
            block = self._encode_block(input_features[rows, :, start:end], block_lengths)
            first = start // 2
            frames[rows, first : first + block.shape[1]] = block
        return frames, frames_mask

    def _encode_block(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Encode at most 30 s: (b, M, F) → (b, T, D or 2 D), zero beyond `lengths` (b,)."""
        features = features.to(self.conv1.weight.dtype)
        real_features = torch.arange(features.shape[2], device=lengths.device)[None] < lengths[:, None]
        # A clip alone sees zeros past its end in both convolutions; conv1's bias must not leak out of padding.
        hidden = nn.functional.gelu(self.conv1(features * real_features[:, None])) * real_features[:, None]
        hidden = nn.functional.gelu(self.conv2(hidden)).transpose(1, 2)
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        hidden = nn.functional.dropout(hidden, p=self.dropout, training=self.training)

        real_frames = torch.arange(hidden.shape[1], device=lengths.device)[None] < ((lengths + 1) // 2)[:, None]
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=None if bool(real_frames.all()) else real_frames
        )
        tapped = None
        for number, layer in enumerate(self.layers, start=1):
            if not (self.training and self.layerdrop > 0 and float(torch.rand([])) < self.layerdrop):
                hidden = layer(hidden, attention_mask)
            if number == self.tap_layer:
                tapped = hidden
        frames = self.layer_norm(hidden)
        if tapped is not None:
            frames = torch.cat([frames, tapped], dim=-1)
        return frames * real_frames[:, :, None]


def is_last_speech_layer(tensor_name: str, num_layers: int, num_last: int) -> bool:
    """Tell whether a tensor of a model belongs to the last `num_last` of its speech encoder's layers.

    The norm after them counts as one of them.
    """
    part, _, rest = tensor_name.partition(".")
    if part != "speech_encoder":
        return False
    module, _, rest = rest.partition(".")
    return module == "layer_norm" or (module == "layers" and int(rest.partition(".")[0]) >= num_layers - num_last)
