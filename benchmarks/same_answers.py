"""Greedy answers of Hone's decoder and of transformers' generate, compared token by token.

    python -m benchmarks.same_answers --out DIR [--prompts 200]

SmolLM2-135M on held-out functions of the standard library, in the evaluations' own precision. Where two answers part,
the model in float32 is asked how much likelier one next token is than the other: bfloat16 keeps 8 bits, so tokens
whose logits differ by less than about 1/256 of their size may change places. As a measure of that noise, generate is
also compared with itself at another batch size.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from cli.samples import split, stdlib_samples
from core.catalogue import find_base_model, load_catalogue
from core.dataset import Message
from core.settings import Settings
from core.specs import QuantizationSpec, SamplingSpec


def gap(model: Any, prompt: list[int], one: list[int], other: list[int]) -> float:
    """How far the float32 logits of two answers' first different tokens are apart."""
    import torch

    place = next(i for i, (a, b) in enumerate(zip([*one, 0], [*other, 0], strict=False)) if a != b)
    ids = torch.tensor([prompt + one[:place]], device=model.device)
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    ends = [answer[place] if place < len(answer) else 2 for answer in (one, other)]
    return float((logits[ends[0]] - logits[ends[1]]).abs())


def compare(model: Any, tokenizer: Any, prompts: list[list[int]], one: list[Any], other: list[Any]) -> dict[str, Any]:
    """Share of equal answers, and the gaps where the others part."""
    pairs = [(prompt, a.text, b.text) for prompt, a, b in zip(prompts, one, other, strict=True) if a.text != b.text]
    gaps = []
    for prompt, a, b in pairs:
        tokens = [tokenizer.encode(text, add_special_tokens=False) for text in (a, b)]
        if tokens[0] != tokens[1]:
            gaps.append(gap(model, prompt, *tokens))
    return {
        "equal": round(1 - len(pairs) / len(prompts), 4),
        "gap_median": round(statistics.median(gaps), 4) if gaps else None,
        "gap_largest": round(max(gaps), 4) if gaps else None,
    }


def main() -> None:
    """Answer the same prompts three times and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--cache", type=Path, default=Settings().home / "models")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    import torch

    from worker.answers import _precision
    from worker.base_models import load_base, load_tokenizer
    from worker.decode.decoder import decode
    from worker.generate import generate
    from worker.merge import densify_
    from worker.prompts import encode_prompt

    entry = find_base_model(load_catalogue(Settings()), args.model)
    tokenizer = load_tokenizer(entry, args.cache)
    _, held = split(stdlib_samples(), args.prompts)
    prompts = [encode_prompt([Message("user", sample.instruction)], "chat", tokenizer, None) for sample in held]
    model = load_base(entry, args.cache, QuantizationSpec(), _precision())
    densify_(model)
    sampling = SamplingSpec(max_tokens=args.new)
    plain = generate(model, tokenizer, prompts, sampling, batch_size=64)
    again = generate(model, tokenizer, prompts, sampling, batch_size=16)
    ours = decode(model, tokenizer, prompts, sampling)
    model = torch.nn.Module.float(model)  # transformers refuses it for a model that was loaded in 4 bits
    result = {
        "prompts": len(prompts),
        "precision": _precision(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "Hone against generate (batch 64)": compare(model, tokenizer, prompts, plain, ours),
        "generate (batch 16) against generate (batch 64)": compare(model, tokenizer, prompts, plain, again),
    }
    print("RESULT " + json.dumps(result), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "same-answers.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
