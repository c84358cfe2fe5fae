"""All blocks of a decoder in one call of a compiled function, for the few rows of a serving step.

In: the tokens of a step and the pages of its sequences. Out: their last hidden states, the same as the model's own code
gives. A step of a small model is mostly the calling of functions, 20 a block; here it is one (LOG.md). Weights are laid
into panels of 32 outputs, in which products of few rows run at the speed of memory, and the model's own are given up.

Shape letters: N tokens, I inputs, O outputs, D hidden size, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
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
"""The outputs of a panel of 16 bits as they lie: 0, 16, 1, 17, ..."""
PLACE = PAIRED.argsort()
"""Where each output lies there."""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Whose blocks are norm, attention, norm, gated layer, each added to what came in."""
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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
        *integers("width", "heads", "key_heads", "head_width", "inner", "gelu", "halves"),
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


def panels_of(weights: Sequence[torch.Tensor], halves: bool = False) -> torch.Tensor:
    """Weights [O, I] one below the other as panels [O / 32, I, 32], filled up with zeros.

    With `halves` in bfloat16, each of the first 16 outputs beside one of the others: a processor takes them apart more
    quickly so.
    """
    weight_OI = torch.cat([weight.detach() for weight in weights])
    outputs, inputs = weight_OI.shape
    filled = nn.functional.pad(weight_OI, (0, 0, 0, -outputs % PANEL))
    panels = filled.view(-1, PANEL, inputs).transpose(1, 2).contiguous()
    return panels.bfloat16()[..., PAIRED] if halves else panels


def from_panels(panels: torch.Tensor, first: int, outputs: int) -> torch.Tensor:
    """The weight [O, I] whose outputs begin at `first`."""
    ordered = panels[..., PLACE] if panels.dtype == torch.bfloat16 else panels
    return ordered.transpose(1, 2).flatten(0, 1)[first : first + outputs].float()


def multiply_panels(x_NI: torch.Tensor, panels: torch.Tensor, outputs: int) -> torch.Tensor:
    """x W^T, [N, O]."""
    x_NI = x_NI.contiguous()
    out_NO = torch.empty(len(x_NI), outputs)
    sizes = (outputs, len(x_NI), x_NI.shape[1], outputs, int(panels.dtype == torch.bfloat16))
    native.call("multiply_panels", torch.float32, native.team(), x_NI, x_NI.shape[1], panels, out_NO, *sizes)
    return out_NO


def can_run(model: Any) -> bool:
    """Whether this model's blocks are of the one kind, in float32 on the processor, with a compiler at hand."""
    first = next(model.parameters())
    if model.config.model_type not in FAMILIES or first.dtype != torch.float32:
        return False
    if not native.fits(first, source="serving.cpp"):
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
    """A model's blocks, taken over: the model's own linear layers are empty from here on."""

    def __init__(self, model: Any, mixer: Mixer, memory: PageMemory) -> None:
        """Its linear layers are `MixedLinear`s of this mixer, numbered in the order of `MODULES`."""
        self.model, self.mixer, self.memory = model, mixer, memory
        config = model.config.get_text_config()
        layers = model.base_model.layers
        attention, mlp = layers[0].self_attn, layers[0].mlp
        self.held: list[torch.Tensor] = []
        """Tensors that the compiled function reads by their addresses."""
        self.halves = fit_in_halves(model)
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
            halves=int(self.halves),
            epsilon=layers[0].input_layernorm.variance_epsilon,
            head_epsilon=query_norm.variance_epsilon if query_norm is not None else 0.0,
            scale=attention.scaling,
            offset=0.0,
        )
        self.angles = torch.empty(0), torch.empty(0)
        """Cosine and sine of the positions so far."""
        self.vocabulary = model.get_output_embeddings().out_features
        self.head = panels_of([model.get_output_embeddings().weight], self.halves)
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
        return multiply_panels(hidden_ND, self.head, self.vocabulary)

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
            places_N = PLACE[tokens_N % PANEL] if self.halves else tokens_N % PANEL
            return self.head[tokens_N // PANEL, :, places_N].float()
        return self.model.get_input_embeddings()(tokens_N)

    def _take(self, layer: Any, number: int) -> BlockStruct:
        """One block's weights as panels."""
        attention, mlp = layer.self_attn, layer.mlp
        query_norm = getattr(attention, "q_norm", None)
        return BlockStruct(
            norm=self._hold(layer.input_layernorm.weight),
            bias=self._biases([attention.q_proj, attention.k_proj, attention.v_proj]),
            query_norm=self._hold(query_norm.weight) if query_norm is not None else None,
            key_norm=self._hold(attention.k_norm.weight) if query_norm is not None else None,
            out_bias=self._biases([attention.o_proj]),
            second_norm=self._hold(layer.post_attention_layernorm.weight),
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
                    torch.zeros(layer.outputs) if bias is None else bias.detach()
                    for layer, bias in zip(linear, biases, strict=True)
                ]
            )
        )

    def _panels(self, linear: Sequence[MixedLinear]) -> int:
        panels, first = panels_of([layer.base.weight for layer in linear], self.halves), 0
        for layer in linear:
            layer.base.weight = nn.Parameter(torch.empty(0), requires_grad=False)
            layer.panels = partial(from_panels, panels, first, layer.outputs)
            first += layer.outputs
        return self._hold(panels)
