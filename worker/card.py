"""Write a base model's card.

    python -m worker.card ENTRY.json CACHE/ OUT.json

ENTRY.json is an entry of the catalogue. A Hub model that was not fetched before is not fetched for this. The card is
renamed into place when it is whole.
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerBase

from core.base_card import BaseCard
from core.catalogue import BaseModelEntry
from core.errors import HoneError
from worker.base_models import default_template, load_config, load_tokenizer
from worker.fast.model import uncovered_kind
from worker.prompts import begin_id

_ENTRY: TypeAdapter[BaseModelEntry] = TypeAdapter(BaseModelEntry)


def make_card(entry: BaseModelEntry, cache: Path) -> BaseCard:
    """The card of a base model that is on this machine. Raises HoneError when it is not, or has no fast tokenizer."""
    tokenizer, config = load_tokenizer(entry, cache), load_config(entry, cache)
    return BaseCard(
        config=config.to_dict(),
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        eos_token=tokenizer.eos_token,
        eos_token_id=tokenizer.eos_token_id,
        bos_token=tokenizer.bos_token,
        begin_id=begin_id(tokenizer),
        special_tokens=dict(tokenizer.special_tokens_map),
        chat_template=tokenizer.get_chat_template() if tokenizer.chat_template else None,
        tools_are_none=_tools_are_none(tokenizer),
        default_template=default_template(entry, tokenizer),
        fast_path=uncovered_kind(config) is None,
    )


def _tools_are_none(tokenizer: PreTrainedTokenizerBase) -> bool:
    probe = "{{ tools is none }}"
    turns = [{"role": "user", "content": ""}]
    return str(tokenizer.apply_chat_template(turns, chat_template=probe, tokenize=False)) == "True"


def main(arguments: list[str]) -> int:
    """Write the card that the command line asks for; 2, with the reason on standard error, when there can be none."""
    source, cache, out = (Path(argument) for argument in arguments)
    try:
        card = make_card(_ENTRY.validate_json(source.read_bytes()), cache)
    except HoneError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    unfinished = out.with_suffix(".partial")
    unfinished.write_text(card.model_dump_json(), encoding="utf-8")
    unfinished.rename(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
