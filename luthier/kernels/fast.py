"""Which parts of a transformers model run on this project's kernels, and how examples are packed end to end.

In: a loaded model. Out: the same model, whose norms, gated layers and attention compute the same by other means; names,
parameters and files are untouched. A family that is not in `FAMILIES` keeps transformers' own code, padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from luthier.kernels.attention import AttentionSettings, Packing, attention, rotary_attention
from luthier.kernels.branches import Branched, attention_of_branches, rotary_attention_of_branches
from luthier.kernels.dropout import dropout
from luthier.kernels.gated import gated
from luthier.kernels.last_block import LastBlock, Narrowed
from luthier.kernels.mixed import MixedLinear
from luthier.kernels.norm import rms_norm
from luthier.kernels.pages import Paged, attention_over_pages, rotary_attention_over_pages
from luthier.kernels.projection import is_linear, is_quantised, join, plain_layer, project, project_plain
from luthier.kernels.relative import Pairs, relative_attention
from luthier.kernels.virtual import attention_behind_prefix, rotary_attention_behind_prefix

ATTENTION = "luthier"
"""The name under which transformers knows this project's attention."""
NO_MASK = torch.zeros(1, 1, 1, 1)
"""A mask of four dimensions is handed through by transformers as it is, and packed attention never looks at it."""


@dataclass(frozen=True)
class Family:
    """What is special about a family's parts."""

    head: Literal["last", "first"]
    """Which token's hidden state a label head reads."""
    norm_offset: float = 0.0
    """Added to the weights of RMS norms."""
    first_position: Callable[[Any], int] = lambda config: 0
    """The position of an example's first token."""
    pairs: bool = False
    """Whether an encoder reads and a decoder writes; their positions are distances, as T5 has them."""
    last_block: LastBlock | None = None
    """How it computes only what is read; None where the model's own code wants all tokens of it."""


def _after_padding(config: Any) -> int:
    return config.pad_token_id + 1


LLAMA = LastBlock("self_attn", norm="input_layernorm")
BERT = LastBlock("attention.self")
FAMILIES: dict[str, Family] = {
    "llama": Family("last", last_block=LLAMA),
    "mistral": Family("last", last_block=LLAMA),
    "qwen2": Family("last", last_block=LLAMA),
    "qwen3": Family("last", last_block=LLAMA),
    "gemma3_text": Family("last", norm_offset=1.0, last_block=LLAMA),
    "gpt2": Family("last"),
    "bert": Family("first", last_block=BERT),
    "roberta": Family("first", first_position=_after_padding, last_block=BERT),
    "xlm-roberta": Family("first", first_position=_after_padding, last_block=BERT),
    "distilbert": Family("first", last_block=LastBlock("attention")),
    "t5": Family("last", pairs=True),
    "mt5": Family("last", pairs=True),
}
"""By transformers' `model_type`; each is run packed against padded by the tests."""


def family_of(model: Any) -> Family | None:
    """How this model is packed; None where it runs on the plain path."""
    config = model.config  # of the whole model: one that also sees pictures has another type than its text part
    unusual = ("use_bidirectional_attention", "is_decoder", "attn_logit_softcapping")
    if any(getattr(config, name, None) for name in unusual):
        return None
    return FAMILIES.get(config.model_type)


def speed_up(model: Any) -> Family | None:
    """Let the model's parts run on kernels where its family is known; returns the family, None for the plain path."""
    family = family_of(model)
    if family is None:
        return None
    AttentionInterface.register(ATTENTION, _attention_of_transformers)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
    knowing = set()
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind.endswith(("RMSNorm", "T5LayerNorm")):
            module.forward = partial(_norm_forward, module, family.norm_offset)
        elif _children(module, "gate_proj", "up_proj", "down_proj") and (activation := gate_activation(module)):
            join([module.gate_proj, module.up_proj])
            module.forward = partial(_gated_forward, module, activation)
        elif _children(module, "wi_0", "wi_1", "wo") and (activation := gate_activation(module)):
            join([module.wi_0, module.wi_1])
            module.forward = partial(_gated_forward_of_t5, module, module.forward, activation)
        elif kind.endswith("T5Attention"):
            if _children(module, "q", "k", "v", "o"):
                across = name.endswith("EncDecAttention")
                join([module.k, module.v] if across else [module.q, module.k, module.v])
            module.forward = partial(_relative_forward, module, module.forward)
        elif _children(module, "q_proj", "k_proj", "v_proj", "o_proj"):
            join([module.q_proj, module.k_proj, module.v_proj])
            module.forward = partial(_attention_forward, module, module.forward)
            knowing.add(module)
        elif type(module) is nn.Dropout:
            module.forward = partial(_dropout_forward, module)  # type: ignore[method-assign]
    if family.last_block is not None:
        *_, last = (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
        family.last_block.narrow(last, knowing)
    return family


def packed_hidden(model: Any, family: Family, tokens_N: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Last hidden states [N, D] of examples that lie end to end; [R, D] where the packing names what is read."""
    first = family.first_position(model.config.get_text_config())
    positions_N = packing.places if isinstance(packing, Branched) else packing.positions
    out = model.base_model(
        input_ids=tokens_N[None],
        attention_mask=NO_MASK.to(tokens_N.device),
        position_ids=positions_N[None] + first,
        use_cache=False,
        packing=packing,
    )
    return out.last_hidden_state[0]


def packed_pairs(
    model: Any, sources_N: torch.Tensor, targets_M: torch.Tensor, source: Packing, target: Packing
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the encoder makes of sources that lie end to end, [N, D], and the decoder of their targets, [M, D]."""
    mask = NO_MASK.to(sources_N.device)
    states_1ND = model.get_encoder()(
        input_ids=sources_N[None], attention_mask=mask, packing=Pairs(source)
    ).last_hidden_state
    out = model.get_decoder()(
        input_ids=targets_M[None],
        attention_mask=mask,
        encoder_hidden_states=states_1ND,
        encoder_attention_mask=mask,
        use_cache=False,
        packing=Pairs(target, source),
    )
    return states_1ND[0], out.last_hidden_state[0]


def labelled_tokens(family: Family, packing: Packing) -> torch.Tensor:
    """The token of each example that a label head reads, [E]."""
    return packing.last if family.head == "last" else packing.first


def label_scores(model: Any, family: Family, hidden_ED: torch.Tensor) -> torch.Tensor:
    """One row of label scores an example, [E, C], from the model's own head and the hidden states that it reads."""
    if family.head == "last":
        return model.score(hidden_ED)
    if hasattr(model, "pre_classifier"):  # DistilBERT
        return model.classifier(model.dropout(torch.relu(model.pre_classifier(hidden_ED))))
    pooler = getattr(model.base_model, "pooler", None)
    if pooler is not None:
        return model.classifier(model.dropout(pooler(hidden_ED[:, None])))
    return model.classifier(hidden_ED[:, None])  # RoBERTa's head pools by itself


def token_scores(model: Any, hidden_ND: torch.Tensor) -> torch.Tensor:
    """One row of tag scores a token, [N, C], from the model's own head."""
    head = model.score if hasattr(model, "score") else model.classifier
    dropout = getattr(model, "dropout", None)  # XLNet's has none
    return head(hidden_ND if dropout is None else dropout(hidden_ND))


def _norm_forward(module: Any, offset: float, hidden_states: torch.Tensor) -> torch.Tensor:
    epsilon = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return rms_norm(hidden_states, module.weight, epsilon, offset)


def _dropout_forward(module: Any, values: torch.Tensor) -> torch.Tensor:
    return dropout(values, module.p) if module.training else values


def _gated_forward(module: Any, activation: str, hidden_states: torch.Tensor) -> torch.Tensor:
    gate_up = _side_by_side(hidden_states, [module.gate_proj, module.up_proj])
    return module.down_proj(gated(gate_up, activation))


def _gated_forward_of_t5(
    module: Any, original: Callable[..., Any], activation: str, hidden_states: torch.Tensor
) -> torch.Tensor:
    if plain_layer(module.wo).weight.dtype != hidden_states.dtype:  # it may be kept in float32
        return original(hidden_states)
    inner = gated(_side_by_side(hidden_states, [module.wi_0, module.wi_1]), activation)
    return module.wo(module.dropout(inner))


def _relative_forward(
    module: Any,
    original: Callable[..., Any],
    hidden_states: torch.Tensor,
    mask: torch.Tensor | None = None,
    key_value_states: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    past_key_values: Any = None,
    *,
    packing: Pairs | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """T5's attention of packed examples. What it adds by distance is formed by a stack's first layer and handed on in
    the place of transformers' own `position_bias`, which would be one number for each pair of tokens of the batch."""
    if packing is None:
        return original(hidden_states, mask, key_value_states, position_bias, past_key_values, **kwargs)
    how = AttentionSettings(1.0, module.is_causal, dropout=module.dropout if module.training else 0.0)
    if key_value_states is None:
        query, key, value = _heads(module, hidden_states, [module.q, module.k, module.v])
        if position_bias is None:
            position_bias = _by_distance(module, max(packing.own.lengths))
        out_NHD = relative_attention(query, key, value, position_bias, packing.own, packing.own, how)
    else:
        assert packing.source is not None
        (query,) = _heads(module, hidden_states, [module.q])
        key, value = _heads(module, key_value_states, [module.k, module.v])
        out_NHD = relative_attention(query, key, value, None, packing.own, packing.source, how)
    return module.o(out_NHD.flatten(1)[None]), position_bias, None


def _heads(module: Any, hidden_1ND: torch.Tensor, layers: Sequence[nn.Module]) -> Sequence[torch.Tensor]:
    """What each of these layers makes of the hidden states, [N, H, D]."""
    joined = _side_by_side(hidden_1ND[0], layers) if len(layers) > 1 else layers[0](hidden_1ND[0])
    return joined.view(len(joined), -1, module.key_value_proj_dim).split(module.n_heads, dim=1)


def _by_distance(module: Any, longest: int) -> torch.Tensor:
    """What is added to scores by distance, [H, 2 L - 1]: from L - 1 tokens before the query to L - 1 after."""
    distance = torch.arange(1 - longest, longest, device=module.relative_attention_bias.weight.device)
    bucket = module._relative_position_bucket(
        distance,
        bidirectional=not module.is_decoder,
        num_buckets=module.relative_attention_num_buckets,
        max_distance=module.relative_attention_max_distance,
    )
    return module.relative_attention_bias(bucket).T.contiguous()


def _attention_forward(
    module: Any,
    original: Callable[..., Any],
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    attention_mask: torch.Tensor | None = None,
    past_key_values: Any = None,
    *,
    packing: Packing | Narrowed | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of packed examples with rotary positions; with a key-value memory, transformers' own code."""
    if packing is None:
        return original(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
    assert position_embeddings is not None
    narrowed = packing if isinstance(packing, Narrowed) else None
    if isinstance(packing, Narrowed):
        hidden_states, packing = packing.hidden, packing.packing
    width = module.head_dim
    cosine_ND, sine_ND = (angle[0] for angle in position_embeddings)
    side_by_side = _side_by_side(hidden_states[0], [module.q_proj, module.k_proj, module.v_proj])
    heads_NXD = side_by_side.view(len(side_by_side), -1, width)
    query_heads = plain_layer(module.q_proj).out_features // width
    if hasattr(module, "q_norm"):
        key_heads = (heads_NXD.shape[1] - query_heads) // 2
        query, key, value = heads_NXD.split([query_heads, key_heads, key_heads], dim=1)
        heads_NXD = torch.cat([module.q_norm(query), module.k_norm(key), value], dim=1)
    dropout = module.attention_dropout if module.training else 0.0
    how = AttentionSettings(module.scaling, module.is_causal, attention_window(module), dropout)
    if isinstance(packing, Branched):
        out_NHD = rotary_attention_of_branches(heads_NXD, cosine_ND, sine_ND, query_heads, packing, how)
    elif isinstance(packing, Paged):
        out_NHD = rotary_attention_over_pages(
            heads_NXD, cosine_ND, sine_ND, query_heads, packing, how, module.layer_idx
        )
    elif packing.prefix is not None:
        out_NHD = rotary_attention_behind_prefix(
            heads_NXD, cosine_ND, sine_ND, query_heads, packing, how, module.layer_idx
        )
    else:
        out_NHD = rotary_attention(heads_NXD, cosine_ND, sine_ND, query_heads, packing, how)
    out_NX = out_NHD.flatten(1)
    return module.o_proj((out_NX if narrowed is None else narrowed.read_of(out_NX))[None]), None


def _attention_of_transformers(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers' attention layers call, with [1, H, N, D]: packed examples here, all else to torch's own."""
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    how = AttentionSettings(scaling or query.shape[-1] ** -0.5, causal, kwargs.get("sliding_window") or 0, dropout)
    query_NHD, key_NKD, value_NKD = (x[0].transpose(0, 1) for x in (query, key, value))
    if isinstance(packing, Branched):
        return attention_of_branches(query_NHD, key_NKD, value_NKD, packing, how)[None], None
    if isinstance(packing, Paged):
        return attention_over_pages(query_NHD, key_NKD, value_NKD, packing, how, module.layer_idx)[None], None
    if packing.prefix is not None:
        return attention_behind_prefix(query_NHD, key_NKD, value_NKD, packing, how, module.layer_idx)[None], None
    return attention(query_NHD, key_NKD, value_NKD, packing, how)[None], None


def _side_by_side(x: torch.Tensor, layers: Sequence[nn.Module]) -> torch.Tensor:
    plain = [plain_layer(layer) for layer in layers]
    if any(getattr(layer, "alone", False) for layer in layers) or not all(map(is_linear, plain)):
        return project_plain(x, layers)
    if any(map(is_quantised, plain)):
        return project_plain(x, layers)
    mixed = [layer for layer in layers if isinstance(layer, MixedLinear)]
    return mixed[0].mixer.add(x, project(x, layers), mixed) if mixed else project(x, layers)


def attention_window(module: Any) -> int:
    """Keys that a query sees, its own among them; 0 for all."""
    window = getattr(module, "sliding_window", None)
    if window is None and not hasattr(module, "sliding_window"):
        window = getattr(module.config, "sliding_window", None)
    return window or 0


def _children(module: nn.Module, *names: str) -> bool:
    return all(type(getattr(module, name, None)) is nn.Linear for name in names)  # a quantised one is a kind of it


def gate_activation(module: Any) -> str | None:
    """The name of a gated layer's activation as the kernels know it."""
    function = getattr(module, "act_fn", None) or getattr(module, "act", None)
    names = {"SiLU": "silu", "SiLUActivation": "silu"} | dict.fromkeys(
        ("GELUTanh", "PytorchGELUTanh", "NewGELUActivation"), "gelu_tanh"
    )
    return names.get(type(function).__name__)
