"""QLoRA on Llama-2-7B's exact shape with random weights: speed and memory of the worker's own training program.

    python -m benchmarks.llama7b --out DIR [--set hone.x.y=JSON ...] [--samples N]

Sample lengths are log-normal as in the seed's data: 90th percentile 512 tokens, longest 5,714. Prints one RESULT line.
"""

import argparse
import json
import os
import random
import sys
import sysconfig
from pathlib import Path

from benchmarks import main_job

#: Tokens: median 144, so that the 90th percentile is 512.
MEDIAN, SIGMA, LONGEST = 144, 0.99, 5714


def make_shape(folder: Path) -> None:
    """Write Llama-2-7B's shape with random bfloat16 weights and a byte-level tokenizer of 32,000 tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in sources], trainer)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="4GB")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


def write_samples(path: Path, count: int) -> None:
    """Samples of one-token words, so that a sample of n words has about n tokens."""
    rng = random.Random(0)
    words = ["the", "self", "def", "return", "if", "import", "in", "is", "not", "for", "class", "and", "or", "None"]
    with path.open("w") as file:
        for _ in range(count):
            tokens = min(LONGEST, max(8, int(rng.lognormvariate(0, SIGMA) * MEDIAN)))
            text = [rng.choice(words) for _ in range(tokens)]
            cut = tokens // 4
            file.write(json.dumps({"prompt": " ".join(text[:cut]) + " ", "completion": " ".join(text[cut:])}) + "\n")


def main() -> None:
    """Make what is missing, then run the main job's training on it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("/tmp/llama7b"))
    parser.add_argument("--samples", type=int, default=640)
    args, rest = parser.parse_known_args()
    if not (args.model / "config.json").exists():
        make_shape(args.model)
    catalogue = args.model.parent / "llama7b.toml"
    catalogue.write_text(f'[llama-2-7b-shape]\nsource = "folder"\npath = "{args.model}"\nprompt_template = "none"\n')
    data = args.model.parent / f"llama7b-{args.samples}.jsonl"
    write_samples(data, args.samples)
    os.environ["HONE_CATALOGUE"] = str(catalogue)
    sys.argv = ["main_job", "--model", "llama-2-7b-shape", "--train", str(data), "--no-evaluation", *rest]
    main_job.main()


if __name__ == "__main__":
    main()
