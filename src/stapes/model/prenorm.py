"""A Transformer layer of the connectors that CTC teaches."""

from __future__ import annotations

from torch import Tensor, nn


class PreNormLayer(nn.Module):
    """Attention and feed-forward, each with a LayerNorm in front and a way around it.

    Args:
        width: D.
        num_heads: D divides by it.
        intermediate_size: of the feed-forward part.
        dropout: of what either part adds.
    """

    def __init__(self, width: int, num_heads: int, intermediate_size: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, intermediate_size)
        self.down = nn.Linear(intermediate_size, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map (B, S, D) to (B, S, D); steps at which `mask` (B, S) is False are not looked at."""
        query, key, value = self.qkv(self.norm_1(hidden)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        hidden = hidden + self.dropout(self.out(heads.transpose(1, 2).flatten(2)))
        return hidden + self.dropout(self.down(nn.functional.gelu(self.up(self.norm_2(hidden)))))
