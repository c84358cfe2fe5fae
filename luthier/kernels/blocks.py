"""All blocks of a decoder in one call of a compiled function, for the few rows of a serving step.

In: the tokens of a step and the pages of its sequences. Out: their last hidden states, the same as the model's own code
gives. A step of a small model is mostly the calling of functions, 20 a block; here it is one (LOG.md). Weights are laid
into panels of 32 outputs, in which products of few rows run at the speed of memory, and the model's own are given up.

Shape letters: N tokens, I inputs, O outputs, D hidden size, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any

import torch
from torch import nn

from luthier.kernels import native
from luthier.kernels.fast import attention_window, gate_activation
from luthier.kernels.mixed import MixedLinear, Mixer
from luthier.kernels.pages import Paged, PageMemory

PANEL = 32
"""Outputs of a panel."""
PAIRED = torch.arange(PANEL).view(2, PANEL // 2).T.flatten()
"""The outputs of a panel of HALF_WEIGHTS as they lie: 0, 16, 1, 17, ..."""
PLACE = PAIRED.argsort()
"""Where each output lies there."""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Whose blocks are norm, attention, norm, gated layer, each added to what came in."""
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Kind(IntEnum):
    """How a product takes its weights and inputs; `Kind` of serving.cpp."""

    FLOATS = 0
    HALF_WEIGHTS = 1
    """Weights in bfloat16."""
    HALVES = 2
    """Inputs rounded to bfloat16 too, where the processor has dot products of it."""


def pointers(*names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, ctypes.c_void_p) for name in names)


def integers(*names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, ctypes.c_int64) for name in names)


class BlockStruct(ctypes.Structure):
    """`Block` of serving.cpp."""

    _fields_ = (
        *pointers("norm", "bias", "query_norm", "key_norm", "out_bias", "second_norm"),
        *pointers("query_key_value", "out", "gate_up", "down", "keys", "values"),
        *integers("window", "module"),
    )


class ModelStruct(ctypes.Structure):
    """`Model` of serving.cpp."""

    _fields_ = (
        *integers("width", "heads", "key_heads", "head_width", "inner", "gelu", "kind", "half_pages"),
        *((name, ctypes.c_float) for name in ("epsilon", "head_epsilon", "scale", "offset")),
    )


class StepStruct(ctypes.Structure):
    """`Step` of serving.cpp."""

    _fields_ = (
        *integers("tokens"),
        *pointers("cosine", "sine", "slots", "tables"),
        *integers("table_row"),
        *pointers("starts", "new_tokens", "contexts"),
        *integers("sequences"),
    )


def fit_in_halves(model: nn.Module) -> bool:
    """Whether every matrix of the model loses nothing when it is held in bfloat16, as most are published."""
    matrices = (parameter for parameter in model.parameters() if parameter.dim() == 2)
    return all(bool((matrix.bfloat16().float() == matrix).all()) for matrix in matrices)


def kind_of(model: nn.Module) -> Kind:
    """How a model's products are computed on this processor."""
    if next(model.parameters()).dtype == torch.bfloat16 and native.call("multiplies_halves", torch.float32):
        return Kind.HALVES
    return Kind.HALF_WEIGHTS if fit_in_halves(model) else Kind.FLOATS


@dataclass(frozen=True)
class Panels:
    """A weight [O, I] as products of few rows read it."""

    values: torch.Tensor
    """[O / 32, I, 32], filled up with zeros. Of HALF_WEIGHTS each of a panel's first 16 outputs lies beside one of the
    others: a processor takes them apart more quickly so. Of HALVES two inputs lie side by side: [O / 32, I / 2, 32, 2].
    """
    outputs: int
    inputs: int
    kind: Kind

    @classmethod
    def of(cls, weights: Sequence[torch.Tensor], kind: Kind) -> Panels:
        """The weights one below the other."""
        weight_OI = torch.cat([weight.detach() for weight in weights])
        outputs, inputs = weight_OI.shape
        per_turn = 2 if kind is Kind.HALVES else 1
        values = nn.functional.pad(weight_OI, (0, -inputs % per_turn, 0, -outputs % PANEL))
        values = values.to(torch.float32 if kind is Kind.FLOATS else torch.bfloat16)
        values = values.view(-1, PANEL, values.shape[1] // per_turn, per_turn).transpose(1, 2).contiguous()
        if kind is not Kind.HALVES:
            values = values.squeeze(3)
        return cls(values[..., PAIRED] if kind is Kind.HALF_WEIGHTS else values, outputs, inputs, kind)

    def rows(self, numbers_N: torch.Tensor) -> torch.Tensor:
        """These rows of the weight, [N, I]."""
        places_N = numbers_N % PANEL
        if self.kind is Kind.HALF_WEIGHTS:
            places_N = PLACE[places_N]
        return self.values[numbers_N // PANEL, :, places_N].flatten(1)[:, : self.inputs].float()

    def multiply(self, x_NI: torch.Tensor) -> torch.Tensor:
        """x W^T, [N, O]."""
        x_NI = x_NI.contiguous()
        out_NO = torch.empty(len(x_NI), self.outputs, dtype=torch.float32)
        sizes = (self.outputs, len(x_NI), self.inputs, self.outputs, self.kind)
        native.call("multiply_panels", torch.float32, native.team(), x_NI, self.inputs, self.values, out_NO, *sizes)
        return out_NO


def can_run(model: Any) -> bool:
    """Whether this model's blocks are of the one kind, on the processor, with a compiler at hand."""
    if model.config.model_type not in FAMILIES:
        return False
    if not native.fits(next(model.parameters()), source="serving.cpp"):
        return False
    for layer in model.base_model.layers:
        linear = [getattr(layer.self_attn, name) for name in MODULES[:4]] + [
            getattr(layer.mlp, name) for name in MODULES[4:]
        ]
        plain = [module.base if isinstance(module, MixedLinear) else module for module in linear]
        if any(type(module) is not nn.Linear for module in plain) or gate_activation(layer.mlp) is None:
            return False
        if any(module.bias is not None for module in plain[4:]):
            return False
    return type(model.get_output_embeddings()) is nn.Linear


class CompiledBlocks:
    """A model's blocks, taken over: the model's own linear layers are empty from here on.

    Of a model in bfloat16 the weights, keys, values and inputs of products are, and everything between is float32.
    """

    def __init__(self, model: Any, mixer: Mixer, memory: PageMemory) -> None:
        """Its linear layers are `MixedLinear`s of this mixer, numbered in the order of `MODULES`."""
        self.model, self.mixer, self.memory = model, mixer, memory
        config = model.config.get_text_config()
        layers = model.base_model.layers
        attention, mlp = layers[0].self_attn, layers[0].mlp
        self.held: list[torch.Tensor] = []
        """Tensors that the compiled function reads by their addresses."""
        self.kind = kind_of(model)
        self.blocks = (BlockStruct * len(layers))()
        for number, layer in enumerate(layers):
            self.blocks[number] = self._take(layer, number)
        query_norm = getattr(attention, "q_norm", None)
        self.struct = ModelStruct(
            width=config.hidden_size,
            heads=attention.q_proj.outputs // attention.head_dim,
            key_heads=attention.k_proj.outputs // attention.head_dim,
            head_width=attention.head_dim,
            inner=mlp.up_proj.outputs,
            gelu=int(gate_activation(mlp) == "gelu_tanh"),
            kind=self.kind,
            half_pages=int(memory.keys[0].dtype == torch.bfloat16),
            epsilon=layers[0].input_layernorm.variance_epsilon,
            head_epsilon=query_norm.variance_epsilon if query_norm is not None else 0.0,
            scale=attention.scaling,
            offset=0.0,
        )
        self.angles = torch.empty(0), torch.empty(0)
        """Cosine and sine of the positions so far."""
        self.head = Panels.of([model.get_output_embeddings().weight], self.kind)
        self.tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        model.get_output_embeddings().weight = nn.Parameter(torch.empty(0), requires_grad=False)
        if self.tied:
            model.get_input_embeddings().weight = model.get_output_embeddings().weight

    def hidden(
        self, tokens_N: torch.Tensor, packing: Paged, learned: Sequence[tuple[slice, torch.Tensor]] = ()
    ) -> torch.Tensor:
        """Last hidden states, [N, D]; `learned` are vectors for tokens that have them in place of their embeddings."""
        x_ND = self._embed(tokens_N)
        for rows, vectors in learned:
            x_ND[rows] = vectors
        cosine_ND, sine_ND = self._angles(x_ND, packing.positions, max(packing.contexts))
        tables, spans, slots = packing.table, packing.spans, packing.slot
        step = StepStruct(
            len(tokens_N),
            *(x.data_ptr() for x in (cosine_ND, sine_ND, slots, tables)),
            tables.shape[1],
            *(x.data_ptr() for x in spans),
            len(packing.lengths),
        )
        mix = self.mixer.struct()
        native.call(
            "run_blocks",
            torch.float32,
            native.team(),
            ctypes.addressof(self.struct),
            ctypes.addressof(self.blocks),
            len(self.blocks),
            ctypes.addressof(step),
            ctypes.addressof(mix),
            x_ND,
        )
        return self.model.base_model.norm(x_ND)

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Scores over the vocabulary, [N, V]."""
        return self.head.multiply(hidden_ND)

    def _angles(self, x_ND: torch.Tensor, positions_N: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of each token's rotary angles; all positions lie below `end`."""
        rotary = self.model.base_model.rotary_emb
        if rotary.rope_type in ("dynamic", "longrope"):  # they depend on how long the sequence is
            cosine, sine = rotary(x_ND, positions_N[None])
            return cosine[0].contiguous(), sine[0].contiguous()
        if end > len(self.angles[0]):
            positions = torch.arange(max(1024, 2 * end), device=positions_N.device)
            cosine, sine = rotary(x_ND, positions[None])
            self.angles = cosine[0], sine[0]
        cosine, sine = self.angles
        return cosine[positions_N], sine[positions_N]

    def _embed(self, tokens_N: torch.Tensor) -> torch.Tensor:
        if self.tied:
            return self.head.rows(tokens_N)
        return self.model.get_input_embeddings()(tokens_N).float()

    def _take(self, layer: Any, number: int) -> BlockStruct:
        """One block's weights as panels."""
        attention, mlp = layer.self_attn, layer.mlp
        query_norm = getattr(attention, "q_norm", None)
        return BlockStruct(
            norm=self._hold(layer.input_layernorm.weight.float()),
            bias=self._biases([attention.q_proj, attention.k_proj, attention.v_proj]),
            query_norm=self._hold(query_norm.weight.float()) if query_norm is not None else None,
            key_norm=self._hold(attention.k_norm.weight.float()) if query_norm is not None else None,
            out_bias=self._biases([attention.o_proj]),
            second_norm=self._hold(layer.post_attention_layernorm.weight.float()),
            query_key_value=self._panels([attention.q_proj, attention.k_proj, attention.v_proj]),
            out=self._panels([attention.o_proj]),
            gate_up=self._panels([mlp.gate_proj, mlp.up_proj]),
            down=self._panels([mlp.down_proj]),
            keys=self.memory.keys[number].data_ptr(),
            values=self.memory.values[number].data_ptr(),
            window=attention_window(attention),
            module=attention.q_proj.number,
        )

    def _hold(self, tensor: torch.Tensor) -> int:
        self.held.append(tensor.detach().contiguous())
        return self.held[-1].data_ptr()

    def _biases(self, linear: Sequence[MixedLinear]) -> int | None:
        biases = [layer.base.bias for layer in linear]
        if all(bias is None for bias in biases):
            return None
        return self._hold(
            torch.cat(
                [
                    torch.zeros(layer.outputs, dtype=torch.float32) if bias is None else bias.detach().float()
                    for layer, bias in zip(linear, biases, strict=True)
                ]
            )
        )

    def _panels(self, linear: Sequence[MixedLinear]) -> int:
        panels, first = Panels.of([layer.base.weight for layer in linear], self.kind), 0
        for layer in linear:
            layer.base.weight = nn.Parameter(torch.empty(0), requires_grad=False)
            layer.panels = partial(panels.rows, torch.arange(first, first + layer.outputs))
            first += layer.outputs
        return self._hold(panels.values)
