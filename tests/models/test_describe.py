"""Facts of a model folder against the models that transformers builds from the same configs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from luthier.models.describe import ENCODER_DECODERS, ENCODERS, describe_model, model_kind


def describe(folder: Path, config: dict[str, object], **tensors: np.ndarray) -> object:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors or {"w": np.zeros((2, 3), np.float32)}, folder / "model.safetensors")
    return describe_model(folder)


def test_decoder(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    for tied in (True, False):
        config = LlamaConfig(**sizes, vocab_size=50, max_position_embeddings=77, tie_word_embeddings=tied)
        model = LlamaForCausalLM(config)
        model.save_pretrained(tmp_path / str(tied))
        facts = describe_model(tmp_path / str(tied))
        assert facts.parameters == sum(weight.numel() for weight in model.parameters())
        assert (facts.kind, facts.model_type, facts.architectures) == ("decoder", "llama", ("LlamaForCausalLM",))
        assert (facts.hidden_size, facts.layers, facts.heads, facts.vocabulary, facts.window) == (16, 2, 4, 50, 77)
        assert facts.tied_embeddings is tied and not facts.has_chat_template and facts.license is None
        assert facts.bytes == (tmp_path / str(tied) / "model.safetensors").stat().st_size
        assert facts.stored_dtype == "float32"


def test_the_dtype_of_most_weights(tmp_path: Path) -> None:
    config: dict[str, object] = {"model_type": "llama"}
    half, whole = np.zeros((3, 3), np.float16), np.zeros(3, np.float32)
    assert describe(tmp_path / "half", config, a=half, b=whole, c=whole).stored_dtype == "float16"  # type: ignore[attr-defined]
    assert describe(tmp_path / "bytes", config, a=np.zeros(9, np.uint8), b=whole).stored_dtype == "U8"  # type: ignore[attr-defined]


def test_kinds_agree_with_transformers() -> None:
    from transformers.models.auto import modeling_auto as auto

    both_ways = set(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    masked = set(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES) - both_ways
    assert masked <= ENCODERS
    assert both_ways >= ENCODER_DECODERS
    causal_only = set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - both_ways - masked - {"xlnet"}
    assert not causal_only & (ENCODERS | ENCODER_DECODERS)


@pytest.mark.parametrize(
    ("model_type", "architecture", "kind"),
    [
        ("bert", "BertModel", "encoder"),
        ("bert", "BertForSequenceClassification", "encoder"),
        ("roberta", "RobertaForMaskedLM", "encoder"),
        ("distilbert", "DistilBertForMaskedLM", "encoder"),
        ("xlnet", "XLNetLMHeadModel", "encoder"),
        ("electra", "ElectraForPreTraining", "encoder"),
        ("deberta-v2", "DebertaV2ForMaskedLM", "encoder"),
        ("modernbert", "ModernBertForMaskedLM", "encoder"),
        ("mpnet", "MPNetForMaskedLM", "encoder"),
        ("albert", "AlbertForMaskedLM", "encoder"),
        ("brand-new", "BrandNewForMaskedLM", "encoder"),
        ("t5", "T5ForConditionalGeneration", "encoder-decoder"),
        ("bart", "BartForConditionalGeneration", "encoder-decoder"),
        ("llama", "LlamaForSequenceClassification", "decoder"),
        ("gpt2", "GPT2LMHeadModel", "decoder"),
        ("brand-new", "BrandNewForCausalLM", "decoder"),
    ],
)
def test_kinds(model_type: str, architecture: str, kind: str) -> None:
    assert model_kind({"model_type": model_type, "architectures": [architecture]}) == kind


def test_windows(tmp_path: Path) -> None:
    for config, window in [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514}, 512),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 32768}}, 32768),
        ({"model_type": "xlnet", "max_position_embeddings": 99}, None),
        ({"model_type": "bloom"}, None),
    ]:
        assert describe(tmp_path / "m", config).window == window  # type: ignore[attr-defined]


def test_card_template_and_tables(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: gemma\n---\n# A card\n")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    facts = describe(
        folder,
        {"model_type": "bert"},
        w=np.zeros((2, 3), np.float16),
        position_ids=np.arange(512),  # a table, not parameters
    )
    assert (facts.license, facts.has_chat_template, facts.parameters) == ("gemma", True, 6)  # type: ignore[attr-defined]


def test_finding_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, luthier.models.find; print({'torch', 'transformers', 'requests'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
