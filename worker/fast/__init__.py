"""The fast path of QLoRA training: a Llama block with its backward pass written by hand.

What autograd would keep is recomputed where that is cheap, LoRA's product rides along in the matmul of its layer, and a
row holds whole samples end to end, without padding. See docs/decisions/0008-the-fast-path.md.
"""
