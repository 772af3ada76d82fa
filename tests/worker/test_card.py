"""Cards: the tokenizers wheel alone gives the worker's very tokens."""

import json

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from core import prompts
from core.base_card import BaseCard, CardTokenizer
from core.catalogue import FolderModel
from core.dataset import to_sample
from core.errors import TrainingError
from worker.card import main, make_card
from worker.prompts import encode_prompt, encode_sample

TEXTS = [
    "Add 1 and 2",
    "Grüße, 日本 🤗!",
    " \n\ttabs  and\r\nlines ",
    "<|im_end|> <s>",
    "a\u0301\u200d\ufeffx",
    "def f(x):\n    return x",
]
SAMPLES = [
    *(to_sample({"instruction": text, "input": TEXTS[0], "output": text}, "instruction") for text in TEXTS),
    to_sample(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                *({"role": role, "content": text} for text in TEXTS for role in ("user", "assistant")),
            ]
        },
        "chat",
    ),
]
#: What chat templates of the Hub use: loop controls, generation, namespaces, filters, special tokens, tools.
RICH = """
{%- set ns = namespace(seen=0) -%}
{{- bos_token if bos_token is defined else '' }}{% if tools is not none %}[tools]{% endif %}
{% for message in messages %}
  {%- if message['role'] == 'system' %}{{ '[' + message['content'] | trim + ']\n' }}{% continue %}{% endif %}
  {%- set ns.seen = ns.seen + 1 %}
  {%- if message['role'] == 'user' %}{{ message | tojson }}
  {% else %}{% generation %}A:{{ message.content }}{{ eos_token }}
{% endgeneration %}{% endif %}
{% endfor %}
{%- if add_generation_prompt %}A:{% endif %}"""


@pytest.fixture(scope="module", params=["plain", "rich", "beginning"])
def folder(request, tiny_llama, tmp_path_factory):
    """The tiny model; with a rich chat template; with a tokenizer that begins each text with a token."""
    if request.param == "plain":
        return tiny_llama
    made = tmp_path_factory.mktemp("models") / request.param
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    if request.param == "rich":
        tokenizer.chat_template = RICH
    else:
        from tokenizers.processors import TemplateProcessing

        inner = tokenizer.backend_tokenizer.__class__.from_str(tokenizer.backend_tokenizer.to_str())
        inner.add_special_tokens(["<s>", "</s>"])
        inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<|endoftext|>"
        )
        tokenizer.chat_template = RICH
    tokenizer.save_pretrained(made)
    (made / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    return made


@pytest.mark.parametrize("template", ["chat", "llama2", "alpaca", "none"])
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_a_cards_tokens_are_the_workers(folder, template, system):
    from worker.base_models import load_tokenizer

    entry = FolderModel(source="folder", path=folder)
    worker, card = load_tokenizer(entry, folder), CardTokenizer(make_card(entry, folder))
    for sample in SAMPLES:
        encoded = prompts.encode_sample(sample, template, card, system)
        assert encoded == encode_sample(sample, template, worker, system)
        asked = sample.messages[:-1]
        assert prompts.encode_prompt(asked, template, card, system) == encode_prompt(asked, template, worker, system)
        assert "".join(card.texts(encoded.input_ids)) == worker.decode(encoded.input_ids)
        assert len(card.texts(encoded.input_ids)) == len(encoded.input_ids)


def test_a_card_is_written_by_command_and_is_no_code(tiny_llama, tmp_path):
    entry, out = tmp_path / "entry.json", tmp_path / "card.json"
    entry.write_text(json.dumps({"source": "folder", "path": str(tiny_llama)}))
    assert main([str(entry), str(tmp_path), str(out)]) == 0
    card = BaseCard.model_validate_json(out.read_bytes())
    assert card.config["hidden_size"] == 64
    assert card.default_template == "chat"
    hostile = card.model_copy(update={"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"})
    with pytest.raises(TrainingError, match="unsafe"):
        CardTokenizer(hostile).chat([{"role": "user", "content": "x"}], open_answer=False)


def test_a_card_that_cannot_be_made_is_no_card(tmp_path, capsys):
    entry, out = tmp_path / "entry.json", tmp_path / "card.json"
    entry.write_text(json.dumps({"source": "folder", "path": "/nowhere"}))
    assert main([str(entry), str(tmp_path), str(out)]) == 2
    assert "no config.json" in capsys.readouterr().err
    assert not out.exists()
