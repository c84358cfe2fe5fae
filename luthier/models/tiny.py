"""Tiny models made on the spot, for tests: real architectures and tokenizers, a few thousand weights, no download.

In: a folder and a family. Out: the folder in Hugging Face's layout, the same for the same seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

CORPUS = (
    "a warm and funny film with a great cast",
    "dull, lifeless and far too long; a waste of two hours",
    "the plot is thin but the acting shines",
    "User: what is two plus two? Assistant: four.",
    "positive negative neutral yes no maybe one two three four five six seven eight nine ten",
    "The quick brown fox jumps over the lazy dog. 0123456789",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DECODERS = ("llama", "gpt2", "qwen2", "qwen3", "gemma3", "mistral", "mpt")
ENCODER_DECODERS = ("t5", "bart")
GATED_T5 = "mt5"
ENCODERS = ("bert", "roberta", "xlnet", "distilbert")
BART_TOWER = {"attention_heads": 4, "ffn_dim": 64}
WINDOW = 256
"""Tokens that a tiny model takes at once."""


def make_tiny_model(folder: Path, family: str = "llama", *, layers: int = 3, seed: int = 0, chat: bool = True) -> Path:
    """Write a tiny model of a family (one of `DECODERS`, `ENCODERS`, `ENCODER_DECODERS`, or `GATED_T5`) and its
    tokenizer into the folder; returns it."""
    import torch
    import transformers

    tokenizer = _tokenizer(family, chat and family in DECODERS)
    config = _config(family, tokenizer, layers)
    torch.manual_seed(seed)
    kind = transformers.AutoModelForCausalLM if family in DECODERS else transformers.AutoModelForMaskedLM
    if family in (*ENCODER_DECODERS, GATED_T5):
        kind = transformers.AutoModelForSeq2SeqLM
    if family == "xlnet":
        kind = transformers.XLNetLMHeadModel
    model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _config(family: str, tokenizer: Any, layers: int) -> Any:
    import transformers

    vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    size: dict[str, Any] = vocabulary | {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": WINDOW,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    ends = {name: size[name] for name in ("bos_token_id", "eos_token_id")}
    if family == "gpt2":
        return transformers.GPT2Config(**vocabulary, **ends, n_embd=32, n_layer=layers, n_head=4, n_positions=WINDOW)
    if family == "mpt":
        return transformers.MptConfig(
            **vocabulary, **ends, d_model=32, n_layers=layers, n_heads=4, expansion_ratio=2, max_seq_len=WINDOW
        )
    if family in ("t5", GATED_T5):
        kind = transformers.T5Config if family == "t5" else transformers.MT5Config
        return kind(
            **vocabulary,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=layers,
            num_heads=4,
            eos_token_id=ends["eos_token_id"],
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    if family == "bart":
        towers = {f"{tower}_{what}": n for tower in ("encoder", "decoder") for what, n in BART_TOWER.items()}
        depth = {"encoder_layers": layers, "decoder_layers": layers}
        start = {"decoder_start_token_id": ends["eos_token_id"], "forced_eos_token_id": None}
        return transformers.BartConfig(
            **vocabulary, **ends, **towers, **depth, **start, d_model=32, max_position_embeddings=WINDOW
        )
    if family == "xlnet":
        return transformers.XLNetConfig(**vocabulary, d_model=32, n_layer=layers, n_head=4, d_inner=64)
    if family == "distilbert":
        return transformers.DistilBertConfig(
            **vocabulary, dim=32, n_layers=layers, n_heads=4, hidden_dim=64, max_position_embeddings=WINDOW
        )
    if family == "gemma3":  # a window so short that tests cross it, in every second layer
        attention = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
        return transformers.Gemma3TextConfig(
            **size, num_key_value_heads=2, head_dim=8, sliding_window=16, layer_types=attention
        )
    if family == "mistral":
        return transformers.MistralConfig(**size, num_key_value_heads=2, sliding_window=None)
    if family == "qwen2":
        return transformers.Qwen2Config(**size, num_key_value_heads=2)
    if family == "qwen3":
        return transformers.Qwen3Config(**size, num_key_value_heads=2, head_dim=8)
    kinds = {"llama": transformers.LlamaConfig, "bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}
    return kinds[family](**size)


def _tokenizer(family: str, chat: bool) -> Any:
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<mask>"]
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS * 4, trainer)
    ids = {token: raw.token_to_id(token) for token in special}
    if family == "xlnet":
        raw.post_processor = processors.TemplateProcessing(
            single="$A </s> <s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
        )
    elif family in ("t5", GATED_T5):
        raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", ids["</s>"])])
    elif family in (*ENCODERS, "bart"):
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
        )
    encoder_tokens = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"} if family in ENCODERS else {}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>" if family in DECODERS else "</s>",
        padding_side="left" if family == "xlnet" else "right",
        **encoder_tokens,
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
