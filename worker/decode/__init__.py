"""Answers from models of Llama's family, many at a time: see docs/decisions/0009-our-own-decoder.md."""
