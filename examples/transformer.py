"""A plain decoder-only transformer: the shapes of a real model at any size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. The number of weights is about ``layers * 12 * width**2``."""

    layers: int
    width: int
    hidden: int
    vocabulary: int
    heads: int = 16


#: About 270 MB in bfloat16.
SMALL = Shape(layers=8, width=1024, hidden=2816, vocabulary=16_000)
#: About 1.5 GB in bfloat16, 111 tensors.
MEDIUM = Shape(layers=12, width=2048, hidden=5632, vocabulary=32_000)


class Block(nn.Module):
    """Attention and a gated feed-forward layer, each behind a norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = nn.RMSNorm(shape.width)
        self.query = nn.Linear(shape.width, shape.width, bias=False)
        self.key = nn.Linear(shape.width, shape.width, bias=False)
        self.value = nn.Linear(shape.width, shape.width, bias=False)
        self.output = nn.Linear(shape.width, shape.width, bias=False)
        self.feed_norm = nn.RMSNorm(shape.width)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        h = self.attention_norm(x)
        q, k, v = (
            layer(h).view(batch, length, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        h = self.feed_norm(x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


class Transformer(nn.Module):
    """Tokens of shape ``[batch, length]`` to logits of shape ``[batch, length, vocabulary]``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


_NOISE = 1_000_003  # a prime, so that repetitions fall differently in every row


def make_model(shape: Shape, seed: int | None) -> Transformer:
    """A model in bfloat16; equal seeds give equal weights, None gives zeros.

    Weights are one block of noise over and over, beginning elsewhere in each tensor: drawing
    a fresh number for each weight would take longer than saving and loading them.
    """
    with torch.device("meta"):
        model = Transformer(shape).to(torch.bfloat16)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed or 0)
    noise = torch.randn(_NOISE, generator=generator).to(torch.bfloat16)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            if seed is None:
                weight.zero_()
                continue
            shifted = noise.roll(number * 7919)
            flat = weight.view(-1)
            for begin in range(0, flat.numel(), _NOISE):
                part = flat[begin : begin + _NOISE]
                part.copy_(shifted[: part.numel()])
    return model
