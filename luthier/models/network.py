"""A transformers model as the rest of Luthier sees it: tokens of several examples in, hidden states or scores out.

In: `Batch`es, which hold no padding. Out: flat hidden states, logits at chosen tokens, or one row of scores an example.
Families that the kernels know run without padding; any other transformers model takes the plain path, which pads inside
and takes the padding out again.

Shape letters: E examples, N tokens of all examples, T tokens of the longest, D hidden size, V vocabulary, C classes.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from luthier.batches import end_to_end, micro_batches
from luthier.kernels.attention import Packing
from luthier.kernels.branches import Branched
from luthier.kernels.cross_entropy import head_loss, token_losses
from luthier.kernels.fast import Family, label_scores, labelled_tokens, packed_hidden, token_scores
from luthier.kernels.last_block import rows_at
from luthier.kernels.virtual import Prefix
from luthier.models.calibration import Calibration
from luthier.models.describe import Kind, decoder_start, model_kind, window_of
from luthier.models.heads import HEADS
from luthier.models.pairs import hidden_of_pairs, scaled_for_head
from luthier.models.settings import Quantisation
from luthier.records import Batch, Comparison, Row
from luthier.tasks import Head

if TYPE_CHECKING:
    from luthier.models.trunk import Trunk

UNUSED = ("mask_emb", "lm_loss.bias", "rel_attn.seg_embed", "rel_attn.r_s_bias")
"""Ends of parameter names: XLNet's mask embedding, and what it adds for a second segment."""
SCORE_SCALES = ("logit_scale", "logits_scaling", "final_logit_softcapping")
"""Settings of families that scale or cap the scores of their head."""
PADDING_WORTH = {"cpu": 32}
"""Padding tokens that cost about as much as starting another micro-batch, by device (LOG.md)."""
AUXILIARY = "auxiliary"
"""Name of the module that holds what learns beside the model in one run only."""
LOSS_CHUNK = 512
"""Tokens whose scores over the vocabulary are held at once on the plain path."""


def blocks_of(model: Any) -> tuple[str, nn.ModuleList]:
    """Name and list of a model's transformer blocks: the longest list of like modules."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    alike = [(n, m) for n, m in lists if len(m) > 0 and len({type(block) for block in m}) == 1]
    if model.config.is_encoder_decoder:  # the blocks that write, which stand above those that read
        alike = [(n, m) for n, m in alike if "decoder" in n.split(".")]
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    matching = [(n, m) for n, m in alike if len(m) == depth] or alike
    return min(matching, key=lambda pair: pair[0].count("."))


class Network:
    """One loaded model, its tokenizer, and where it came from."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        head: Head,
        new_parameters: set[str],
        family: Family | None = None,
        folder: Path | None,
        base_name: str,
        base_revision: str | None,
        base_fingerprint: str,
        quantisation: Quantisation | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.head: Head = head
        self.family = family
        """How the kernels run it, examples end to end; None for the plain path."""
        self.notes: list[str] = []
        """What a user should know of how it runs here."""
        self.label_layer: nn.Linear | None = None
        """From embeddings to label scores; only a `pooled` head has one. No part of the model."""
        self.running: Batch | None = None
        """The batch that it last ran, virtual tokens among it: what a hook inside the model has to know of it."""
        self.trunk: Trunk | None = None
        """Where the output of its frozen blocks is kept, if it is."""
        self.virtual_tokens: tuple[int, ...] = ()
        """Ids beyond the vocabulary that stand before every sequence, for learned vectors."""
        self.prefix: Prefix | None = None
        """Learned keys and values that every sequence sees before its own."""
        self.new_parameters = new_parameters
        """Names of parameters that learn in any selection: the label head, and what the base model's files did not
        hold (a BERT pooler)."""
        self.helpers: set[str] = set()
        """Those of them that an objective keeps beside the model and that are no label head."""
        self.unused_parameters: set[str] = {name for name, _ in model.named_parameters() if name.endswith(UNUSED)}
        """Never touched by a forward pass: nothing can teach them, so nothing asks them to."""
        self.indifferent_parameters: set[str] = set()
        """They learn, and the loss is the same whatever they are, so they need not move."""
        self.folder = folder
        """The base model's own files; None until they are asked for, where what was loaded are tuned weights."""
        self.base_name = base_name
        self.base_revision = base_revision
        self.base_fingerprint = base_fingerprint
        self.comparison = Comparison("score" if head == "score" else "mean")
        """How it tells which of two answers it prefers."""
        self.calibration: Calibration | None = None
        """What makes its label scores probabilities that come true; softmax or sigmoids alone where None."""
        self.quantisation = quantisation
        """How the linear layers of its blocks are held, where not in its dtype."""
        self._shared: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self._reference: Callable[[], AbstractContextManager[None]] | None = None
        self._base_state: dict[str, torch.Tensor] | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def window(self) -> int | None:
        """Most tokens the model takes at once; None where its positions have no end."""
        config = self.model.config.get_text_config()
        return window_of(vars(config), config.model_type)

    @property
    def kind(self) -> Kind:
        """Whether it reads, writes, or reads first and then writes."""
        return model_kind(self.model.config.to_dict())

    @property
    def decoder_start(self) -> int | None:
        """The token before an encoder-decoder's first answer token; None for other kinds."""
        return decoder_start(self.model.config.to_dict())

    @property
    def peft_task(self) -> str:
        """PEFT's name for a model of this kind with this head."""
        return HEADS[self.head].made[self.kind].peft

    # What the model computes

    def micro_batches(self, rows: Sequence[Row], token_budget: int) -> list[list[Row]]:
        """Rows grouped as this model runs them, each group within the budget."""
        if self.family is not None:
            return end_to_end(rows, token_budget)
        return micro_batches(rows, token_budget, PADDING_WORTH.get(self.device.type))

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Last hidden states, [N, D], in the order of the batch's tokens."""
        if self._shared is None or not torch.is_grad_enabled():  # without a gradient, the reference may be asked
            return self._hidden(batch)
        if not self._shared or self._shared[0][0] is not batch.tokens_N:
            self._shared[:] = [(batch.tokens_N, self._hidden(batch))]
        return self._shared[0][1]

    def hidden_at(self, batch: Batch, read_M: torch.Tensor) -> torch.Tensor:
        """Last hidden states of these of the batch's tokens, [M, D]; on kernels the last block computes no others.

        Args:
            read_M: Numbers of tokens, each larger than the one before.
        """
        if not len(read_M) or (self.shares_hidden and torch.is_grad_enabled()):
            return rows_at(self.hidden(batch), read_M)
        return self._hidden(batch, read_M)

    @property
    def shares_hidden(self) -> bool:
        return self._shared is not None

    @contextlib.contextmanager
    def sharing_hidden(self) -> Iterator[None]:
        """Inside the block, hidden states with gradient are computed once for the same tensor of tokens: for several
        losses of one batch, which one backward pass follows. No weight may change inside."""
        self._shared = []
        try:
            yield
        finally:
            self._shared = None

    def _hidden(self, batch: Batch, read_M: torch.Tensor | None = None) -> torch.Tensor:
        if self.model.config.is_encoder_decoder:
            self.running = batch
            hidden_ND = hidden_of_pairs(self, batch)
            return hidden_ND if read_M is None else rows_at(hidden_ND, read_M)
        batch, own_N = self._behind_virtual_tokens(batch)
        if own_N is not None:
            read_M = own_N if read_M is None else own_N[read_M]
        self.running = batch
        if self.family is not None:
            if read_M is None or self.family.last_block is not None:
                return self._packed_hidden(self.family, batch, read_M)
            return rows_at(self._packed_hidden(self.family, batch, None), read_M)
        tokens_ET, mask_ET = self.padded(batch)
        out = self.model.base_model(input_ids=tokens_ET, use_cache=False, **self._seen(mask_ET))
        hidden_ND = out.last_hidden_state[mask_ET.bool()]
        return hidden_ND if read_M is None else rows_at(hidden_ND, read_M)

    def shares_starts(self) -> bool:
        """Whether `hidden_of_branches` can be asked: a model on the kernels, with nothing learned before a sequence."""
        packed = self.family is not None and not self.family.pairs
        return packed and self.prefix is None and not self.virtual_tokens

    def hidden_of_branches(self, tokens_N: torch.Tensor, packing: Branched) -> torch.Tensor:
        """Last hidden states, [N, D], of sequences that begin alike, what they share computed once; for inference."""
        assert self.family is not None and self.shares_starts()
        self.running = None
        return packed_hidden(self.model, self.family, tokens_N, packing)

    def _behind_virtual_tokens(self, batch: Batch) -> tuple[Batch, torch.Tensor | None]:
        """The batch as the model runs it, without streams, and where in it the batch's own tokens are, [N] (None: in
        their places)."""
        if not self.virtual_tokens:
            return batch, None
        count = len(self.virtual_tokens)
        longer_E = batch.lengths_E + count
        own_M = Packing.of(longer_E).positions >= count
        tokens_M = torch.empty(len(own_M), dtype=batch.tokens_N.dtype, device=own_M.device)
        tokens_M[own_M] = batch.tokens_N
        tokens_M[~own_M] = torch.tensor(self.virtual_tokens, device=own_M.device).repeat(len(batch))
        example_M = torch.repeat_interleave(torch.arange(len(batch), device=own_M.device), longer_E)
        return Batch(tokens_M, example_M, longer_E, {}, {}), own_M.nonzero().squeeze(1)

    def _seen(self, mask_ET: torch.Tensor) -> dict[str, Any]:
        """The attention mask as transformers' code takes it, with the prefix as memory where there is one."""
        if self.prefix is None:
            return {"attention_mask": mask_ET}
        before_EP = mask_ET.new_ones(len(mask_ET), self.prefix.length)
        memory = self.prefix.memory(self.model.config, len(mask_ET))
        return {"attention_mask": torch.cat([before_EP, mask_ET], dim=1), "past_key_values": memory}

    def _packed_hidden(self, family: Family, batch: Batch, read_M: torch.Tensor | None) -> torch.Tensor:
        packing = Packing.of(batch.lengths_E, self.prefix, read_M)
        if self.trunk is None:
            return packed_hidden(self.model, family, batch.tokens_N, packing)
        states_ND = self.trunk.states(batch)
        if read_M is not None and self.trunk.depth == len(self.blocks()[1]):
            states_ND = states_ND[read_M]
        with self.trunk.standing_in(states_ND):
            return packed_hidden(self.model, family, batch.tokens_N, packing)

    def train_mode(self) -> None:
        """Turn dropout on, but not in frozen blocks at the bottom and the embeddings below them: what they give is a
        feature, the same in every epoch. Does nothing where it is on already."""
        if self.model.training:
            return
        self.model.train()
        name, blocks = self.blocks()
        depth = self.frozen_depth()
        for block in blocks[:depth]:
            block.eval()
        if depth:
            parent = self.model
            for part in name.split("."):
                for child_name, child in parent.named_children():
                    if child_name == part:
                        break
                    child.eval()
                parent = getattr(parent, part)

    def checkpoint_activations(self) -> None:
        """Keep only each block's input for the backward pass and compute the rest again: a third more time, a fraction
        of the memory. Not so where transformers' own code hands on a prefix: it would leave that out."""
        if self.prefix is not None and self.family is None:
            self.notes.append("blocks keep all for the backward pass: a prefix on transformers' own code needs it")
            return
        self.notes.append("blocks keep only their input for the backward pass, so that memory suffices")
        self.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    def frozen_depth(self) -> int:
        """How many blocks, counted from the embeddings, lie below everything that learns."""
        name, blocks = self.blocks()
        above = set(self.parameters_after_blocks()) | self.new_parameters
        depth = len(blocks)
        for parameter, value in self.model.named_parameters():
            if value.requires_grad and parameter not in above:
                if not parameter.startswith(f"{name}."):
                    return 0
                depth = min(depth, int(parameter[len(name) + 1 :].partition(".")[0]))
        return depth

    def token_logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Next-token scores [M, V] from hidden states, with the model family's own scaling after its head."""
        logits_MV = self.model.get_output_embeddings()(scaled_for_head(self.model, hidden_MD))
        if hasattr(self.model, "final_logits_bias"):  # BART
            logits_MV = logits_MV + self.model.final_logits_bias[0]
        config = self.model.config.get_text_config()
        if getattr(config, "logit_scale", None) is not None:  # Cohere
            logits_MV = logits_MV * config.logit_scale
        if getattr(config, "logits_scaling", None) is not None:  # Granite
            logits_MV = logits_MV / config.logits_scaling
        if getattr(config, "final_logit_softcapping", None) is not None:  # Gemma 2
            cap = config.final_logit_softcapping
            logits_MV = torch.tanh(logits_MV / cap) * cap
        return logits_MV

    def token_loss(
        self, hidden_MD: torch.Tensor, target_M: torch.Tensor, weight_M: torch.Tensor, label_smoothing: float = 0.0
    ) -> torch.Tensor:
        """Sum of the tokens' negative log-likelihoods (nats) times their weights, the scores never held all at once."""
        head = self.model.get_output_embeddings()
        if type(head) is nn.Linear and head.bias is None and not self._scores_are_scaled() and not label_smoothing:
            return head_loss(hidden_MD, head.weight, target_M, weight_M)

        def chunk_loss(hidden: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            scores = self.token_logits(hidden).float()
            losses = nn.functional.cross_entropy(scores, target, reduction="none", label_smoothing=label_smoothing)
            return (losses * weight).sum()

        chunks = zip(hidden_MD.split(LOSS_CHUNK), target_M.split(LOSS_CHUNK), weight_M.split(LOSS_CHUNK), strict=True)
        return torch.stack([checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()

    def token_losses(self, hidden_MD: torch.Tensor, target_M: torch.Tensor) -> torch.Tensor:
        """Each token's negative log-likelihood, [M] in nats, the scores never held all at once."""
        if len(target_M) == 0:
            return hidden_MD.float().sum(dim=1)
        head = self.model.get_output_embeddings()
        if type(head) is nn.Linear and head.bias is None and not self._scores_are_scaled():
            return token_losses(hidden_MD, head.weight, target_M)

        def chunk_losses(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(self.token_logits(hidden).float(), target, reduction="none")

        chunks = zip(hidden_MD.split(LOSS_CHUNK), target_M.split(LOSS_CHUNK), strict=True)
        return torch.cat([checkpoint(chunk_losses, *chunk, use_reentrant=False) for chunk in chunks])

    def _scores_are_scaled(self) -> bool:
        config = self.model.config.get_text_config()
        beside = getattr(config, "scale_decoder_outputs", False) or hasattr(self.model, "final_logits_bias")
        return beside or any(getattr(config, name, None) is not None for name in SCORE_SCALES)

    def class_logits(self, batch: Batch, hidden_ND: torch.Tensor | None = None) -> torch.Tensor:
        """One row of label scores an example, [E, C], from its label head.

        Args:
            hidden_ND: What `hidden` gave for this batch, where it is at hand: models with kernels go on from there.
        """
        if self.label_layer is not None:
            return self.label_layer(self.embeddings(batch))
        if self.family is not None:
            read_E = labelled_tokens(self.family, Packing.of(batch.lengths_E))
            hidden_ED = self.hidden_at(batch, read_E) if hidden_ND is None else hidden_ND[read_E]
            return label_scores(self.model, self.family, hidden_ED)
        batch, _ = self._behind_virtual_tokens(batch)
        self.running = batch
        tokens_ET, mask_ET = self.padded(batch)
        return self.model(input_ids=tokens_ET, **self._seen(mask_ET)).logits

    def tag_logits(self, batch: Batch) -> torch.Tensor:
        """One row of tag scores a token, [N, C], in the order of the batch's tokens, from the model's own head."""
        return token_scores(self.model, self.hidden(batch))

    def embeddings(self, batch: Batch) -> torch.Tensor:
        """The mean of each sequence's hidden states, scaled to length one, [E, D] in float32; how sentence encoders are
        trained to be read (Reimers and Gurevych 2019, arXiv:1908.10084)."""
        return nn.functional.normalize(self.pooled(self.hidden(batch), batch), dim=1)

    def pooled(self, hidden_ND: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean of each sequence's hidden states, [E, D] in float32."""
        sums_ED = torch.zeros(len(batch), hidden_ND.shape[1], dtype=torch.float32, device=hidden_ND.device)
        return sums_ED.index_add(0, batch.example_N, hidden_ND.float()) / batch.lengths_E[:, None]

    def padded(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch as a rectangle: token ids [E, T] and attention mask [E, T].

        Padded on the right, so that positions count from each row's first token; on the left only for a model that
        wants it and counts no positions from the left (XLNet, whose head reads the last column).
        """
        lengths_E = batch.lengths_E
        longest = int(lengths_E.max())
        column_T = torch.arange(longest, device=lengths_E.device)
        reads_last = self.tokenizer.padding_side == "left" and not self.takes_positions()
        if reads_last and not self.model.config.is_encoder_decoder:
            mask_ET = column_T[None, :] >= (longest - lengths_E)[:, None]
        else:
            mask_ET = column_T[None, :] < lengths_E[:, None]
        tokens_ET = torch.full(mask_ET.shape, self.tokenizer.pad_token_id, device=lengths_E.device)
        tokens_ET[mask_ET] = batch.tokens_N
        return tokens_ET, mask_ET.long()

    def takes_positions(self) -> bool:
        """Whether it can be told each token's position; else it counts columns, padding among them."""
        return "position_ids" in inspect.signature(self.model.base_model.forward).parameters

    # How the model is built

    def blocks(self) -> tuple[str, nn.ModuleList]:
        """Name and list of the transformer blocks, those of the decoder where there is an encoder as well."""
        return blocks_of(self.model)

    def all_blocks(self) -> list[tuple[str, nn.ModuleList]]:
        """The same of every part of the model: of the decoder, and of the encoder where there is one."""
        name, blocks = self.blocks()
        if not self.model.config.is_encoder_decoder:
            return [(name, blocks)]
        encoder = ".".join("encoder" if part == "decoder" else part for part in name.split("."))
        return [(name, blocks), (encoder, self.model.get_submodule(encoder))]

    def parameters_after_blocks(self) -> list[str]:
        """Names of the base model's parameters that come after its blocks (final norm, pooler), not the embeddings."""
        name, _ = self.blocks()
        parent_name, _, child = name.rpartition(".")
        parent = self.model.get_submodule(parent_name)
        after: list[str] = []
        above = f"{parent_name}." if parent_name else ""
        passed = False
        for child_name, module in parent.named_children():
            below = "embed" in child_name or any(isinstance(part, nn.Embedding) for part in module.modules())
            if passed and not below:
                after += [f"{above}{child_name}.{n}" for n, _ in module.named_parameters()]
            passed = passed or child_name == child
        prefix = self.model.base_model_prefix
        pooler = getattr(self.model.base_model, "pooler", None)
        if pooler is not None and parent is not self.model.base_model:
            after += [f"{prefix}.pooler.{n}" for n, _ in pooler.named_parameters()]
        return after

    # What an objective keeps beside the model for the length of a run

    def add_auxiliary(self, name: str, module: nn.Module, *, is_head: bool = False) -> nn.Module:
        """Add a part that learns with the model and is not saved with it: a value head, a discriminator. `is_head`: one
        that labels, of a further task."""
        holder = self.model.get_submodule(AUXILIARY) if hasattr(self.model, AUXILIARY) else nn.ModuleDict()
        self.model.add_module(AUXILIARY, holder)
        holder[name] = module.to(self.device, torch.float32)
        added = {f"{AUXILIARY}.{name}.{inner}" for inner, _ in module.named_parameters()}
        self.new_parameters |= added
        if not is_head:
            self.helpers |= added
        return module

    def drop_auxiliary(self) -> None:
        """Leave the model as it was without such parts."""
        if hasattr(self.model, AUXILIARY):
            delattr(self.model, AUXILIARY)
            self.new_parameters = {name for name in self.new_parameters if not name.startswith(f"{AUXILIARY}.")}
            self.helpers = set()

    def keep_reference(self) -> None:
        """Remember what learns as it is now, for `as_reference`."""
        learning = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        kept = copies({name: p.data for name, p in learning.items() if not name.startswith(f"{AUXILIARY}.")})
        self.refer_to(lambda: self._put_in_place(kept))

    def refer_to(self, reference: Callable[[], AbstractContextManager[None]]) -> None:
        """Let `as_reference` be the network inside this block, such as a selection's `off`."""
        self._reference = reference

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[None]:
        """Inside the block, the network is as it was when `keep_reference` was called: no gradient, no dropout.

        A backward pass may not run inside, nor may a forward pass that one follows outside span its start or end.
        """
        assert self._reference is not None
        training = [module for module in self.model.modules() if module.training]
        try:
            self.model.eval()
            with self._reference(), torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True

    @contextlib.contextmanager
    def _put_in_place(self, kept: dict[str, torch.Tensor]) -> Iterator[None]:
        parameters = dict(self.model.named_parameters())
        now = {name: parameters[name].data for name in kept}
        try:
            for name, value in kept.items():
                parameters[name].data = value
            yield
        finally:
            for name, value in now.items():
                parameters[name].data = value

    @contextlib.contextmanager
    def without_trunk(self) -> Iterator[None]:
        """Inside the block the stored trunk is neither read nor written: for rows that will not come again."""
        trunk, self.trunk = self.trunk, None
        try:
            yield
        finally:
            self.trunk = trunk

    def base_state(self) -> dict[str, torch.Tensor]:
        """The base model's tensors by parameter name, read again from its files on first use."""
        if self._base_state is None:
            from luthier.models.load import find_base

            if self.folder is None:
                self.folder = find_base(self.base_name, self.base_revision, self.base_fingerprint).folder
            self._base_state = self.read_weights(self.folder)
        return self._base_state

    def read_weights(self, folder: Path) -> dict[str, torch.Tensor]:
        """The tensors of a folder with weights for this model, by parameter name; those that it does not hold are
        there with values made anew."""
        config = copy.deepcopy(self.model.config)
        with torch.random.fork_rng(devices=[]):  # making a head draws numbers that are not ours to use up
            loaded = type(self.model).from_pretrained(
                folder, config=config, dtype=self.dtype, ignore_mismatched_sizes=True, use_safetensors=True
            )
        return {name: p.detach() for name, p in loaded.named_parameters()}


def copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies that lie in memory as the originals do, so that layers whose weights are joined stay joined."""
    sharing: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        sharing.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    made = {}
    for names in sharing.values():
        storage = tensors[names[0]].untyped_storage()
        whole = sum(tensors[name].nbytes for name in names) == storage.nbytes() and len(names) > 1
        twin = storage.clone() if whole else None
        for name in names:
            tensor = tensors[name]
            if twin is None:
                made[name] = tensor.clone()
            else:
                empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                made[name] = empty.set_(twin, tensor.storage_offset(), tensor.shape, tensor.stride())
    return made
