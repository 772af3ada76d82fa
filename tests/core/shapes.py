"""Shapes of models that people fine-tune."""

from core.shape import ModelShape

LLAMA_7B = ModelShape(
    hidden_size=4096,
    intermediate_size=11_008,
    layers=32,
    heads=32,
    kv_heads=32,
    head_dim=128,
    vocab_size=32_000,
)
SMOLLM2 = ModelShape(
    hidden_size=576,
    intermediate_size=1536,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    vocab_size=49_152,
    tied_embeddings=True,
)
