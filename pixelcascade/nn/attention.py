"""Attention over image positions and context tokens.

Keys and values of the contexts do not depend on the noisy image: `remember` computes them once for a conditioning. In
the joined form the image attends to itself and to the contexts in one softmax (Saharia et al. 2022, appendix D.3.1); in
the cross form to the contexts alone.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn


def attend(
    q: Float[Tensor, "b k n d"],
    k: Float[Tensor, "b k m d"],
    v: Float[Tensor, "b k m d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b n kd"]:
    """Scaled dot-product attention over `k` heads; keys whose mask is false are not seen."""
    if mask is not None:
        mask = mask[:, None, None, :]
    return rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "b k n d -> b n (k d)")


def split_heads(x: Float[Tensor, "b n kd"], heads: int) -> Float[Tensor, "b k n d"]:
    return rearrange(x, "b n (k d) -> b k n d", k=heads)


def qk_norm(x: Float[Tensor, "b k n d"]) -> Float[Tensor, "b k n d"]:
    """Unit-variance queries and keys: logits stay bounded in 16-bit formats. Dehghani et al. 2023, section 2."""
    return F.layer_norm(x, x.shape[-1:])


def turns_by(angles: Float[Tensor, "n e"]) -> Float[Tensor, "2 n e"]:
    """Cosines and sines; made once for all layers, and for all elements of what is compiled."""
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Float[Tensor, "b k n d"], turns: Float[Tensor, "2 n e"]) -> Float[Tensor, "b k n d"]:
    """Each pair (x_i, x_(i + d / 2)) turned by its position's angle: products of two see positions relative to each
    other. Su et al. 2021 (RoFormer), section 3.2.
    """
    cos, sin = turns.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """Image positions attend to context tokens and, unless `cross`, to each other.

    Input [b, n, dim], already normalised; output [b, n, dim], zero at initialization. heads divide dim. turns: by the
    angles of the image's positions, see `rotate`; context tokens lie at angle 0. plain: that of DeepFloyd IF, whose
    projections have biases, whose queries and keys stay as they are, and whose context tokens are normalised in 32
    groups of channels, each over the whole sequence.
    """

    def __init__(self, dim: int, heads: int, memory: int, cross: bool = False, plain: bool = False):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide the width {dim}")
        self.heads, self.cross, self.plain = heads, cross, plain
        self.project = nn.Linear(dim, dim if cross else 3 * dim, bias=plain)
        self.memory_norm = nn.GroupNorm(32, memory) if plain else None
        self.memory = nn.Linear(memory, 2 * dim, bias=plain)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def remember(self, tokens: Float[Tensor, "b l d"]) -> tuple[Tensor, Tensor]:
        """Keys and values of the context tokens."""
        if self.memory_norm is not None:
            tokens = self.memory_norm(tokens.mT).mT
        k, v = self.memory(tokens).chunk(2, dim=-1)
        return self._unit(split_heads(k, self.heads)), split_heads(v, self.heads)

    def forward(
        self, x: Float[Tensor, "b n d"], memory, turns: Float[Tensor, "2 n e"] | None = None
    ) -> Float[Tensor, "b n d"]:
        k_context, v_context = memory.layers[self]
        mask = memory.mask
        if self.cross:
            q = self._unit(split_heads(self.project(x), self.heads))
            return self.out(attend(q, k_context, v_context, mask))
        q, k, v = rearrange(self.project(x), "b n (three k d) -> three b k n d", three=3, k=self.heads)
        q, k = self._unit(q), self._unit(k)
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        k = torch.cat([k, k_context.to(k.dtype)], dim=2)
        v = torch.cat([v, v_context.to(v.dtype)], dim=2)
        if mask is not None:
            mask = F.pad(mask, (x.shape[1], 0), value=True)
        return self.out(attend(q, k, v, mask))

    def _unit(self, x: Float[Tensor, "b k n d"]) -> Float[Tensor, "b k n d"]:
        return x if self.plain else qk_norm(x)


class SequenceBlock(nn.Module):
    """A pre-norm transformer block over context tokens; padded tokens are not seen."""

    def __init__(self, dim: int, heads: int | None = None):
        super().__init__()
        self.heads = heads or max(1, dim // 64)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.project, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        heads = rearrange(
            self.project(self.attention_norm(x)), "b n (three k d) -> three b k n d", three=3, k=self.heads
        )
        q, k, v = heads
        x = x + self.out(attend(qk_norm(q), qk_norm(k), v, mask))
        return x + self.mlp(self.mlp_norm(x))
