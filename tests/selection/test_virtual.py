"""Soft prompts and prefixes: the same as in PEFT, packed as padded, and in answers as a slow reference has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.batches import collate
from luthier.engine import batching
from luthier.engine.generate import choose, generate
from luthier.errors import UserError
from luthier.models.load import load_network
from luthier.models.network import Network
from luthier.models.save import save_model, save_plain
from luthier.models.settings import ModelSettings
from luthier.models.tiny import WINDOW
from luthier.selection.base import Selection
from luthier.selection.prefix import Prefix
from luthier.selection.prompt import Prompt
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from tests import tiny as make

NAMES = ("prompt", "prefix")
DECODERS = ("llama", "gpt2", "qwen3", "gemma3", "mistral")
PROMPTS = (
    "fun",
    "User: dull, lifeless and far too long; a waste of two hours",
    "User: the plot is thin",
    "User: the plot is thin but the acting shines; the quick brown fox jumps over the lazy dog",
)
NEW = 8


def tuned(folder: Path, head: Any, selection: Selection, kernels: Any = "auto") -> Network:
    """After two steps; livelier than a fresh model."""
    settings = ModelSettings(path=str(folder), dtype="float32", device="cpu", kernels=kernels)
    labels = make.LABELS if head == "classes" else ()
    net = load_network(make.find(folder), settings, head=head, labels=labels)
    selection.apply(net)
    make.run_steps(net, Optimizer(net, OptimizerSettings()), make.rows(net), 2)
    return net


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("head", "family"), [("classes", "llama"), *(("language", family) for family in DECODERS)])
def test_equals_peft(tiny: Callable[..., Path], tmp_path: Path, name: str, head: str, family: str) -> None:
    import peft
    import transformers

    selection = make.small(name)
    net = tuned(tiny(family), head, selection)
    save_model(net, selection, make.prompt_format(net), tmp_path / "model")
    kind: Any = transformers.AutoModelForCausalLM
    options = {}
    if head == "classes":
        kind = transformers.AutoModelForSequenceClassification
        options = {"num_labels": len(make.LABELS), "pad_token_id": net.tokenizer.pad_token_id}
    torch.manual_seed(99)  # PEFT must take the head from the file, not from luck
    base = kind.from_pretrained(tiny(family), dtype=torch.float32, **options)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "model").eval()
    for row in make.rows(net):
        ids = torch.tensor([list(row.tokens)])
        with torch.no_grad():
            theirs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        if head == "language" and name == "prompt":
            theirs = theirs[selection.extra_tokens :]
        ours = make.output(net, [row])
        torch.testing.assert_close(ours if head == "language" else ours[0], theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("head", ["classes", "language"])
@pytest.mark.parametrize("family", DECODERS)
def test_packed_equals_padded(tiny: Callable[..., Path], name: str, head: Any, family: str) -> None:
    losses, gradients = [], []
    for kernels in ("auto", "plain"):
        settings = ModelSettings(path="", dtype="float32", device="cpu", kernels=kernels)
        labels = make.LABELS if head == "classes" else ()
        net = load_network(make.find(tiny(family)), settings, head=head, labels=labels)
        make.small(name).apply(net)
        assert (net.family is None) == (kernels == "plain")
        loss = make.fitting_objective(net).loss(net, collate(make.rows(net))).sum
        loss.backward()
        losses.append(loss.detach())
        learned = {n: p.grad for n, p in net.model.named_parameters() if n.endswith("prompt_embeddings")}
        assert len(learned) == 1
        gradients.append(next(iter(learned.values())))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernels", ["auto", "plain"])
def test_keeping_only_block_inputs_gives_the_same_gradient(tiny: Callable[..., Path], name: str, kernels: Any) -> None:
    gradients = []
    for checkpointed in (False, True):
        settings = ModelSettings(path="", dtype="float32", device="cpu", kernels=kernels)
        net = load_network(make.find(tiny("llama")), settings, head="language")
        make.small(name).apply(net)
        if checkpointed:
            net.checkpoint_activations()
        net.train_mode()
        make.fitting_objective(net).loss(net, collate(make.rows(net))).sum.backward()
        gradients += [p.grad for n, p in net.model.named_parameters() if n.endswith("prompt_embeddings")]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


def lively(tiny: Callable[..., Path], name: str, family: str) -> Network:
    net = make.network(tiny(family), "language")
    torch.manual_seed(1)
    for parameter in net.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    make.small(name).apply(net)
    return net


def next_scores(net: Network, tokens: Sequence[int]) -> torch.Tensor:
    """The slow way: the whole sequence again for each token."""
    row = make.Row("", list(tokens))
    with torch.no_grad():
        return net.token_logits(net.hidden(collate([row])))[-1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", [*DECODERS, "mpt"])
def test_answers_equal_a_slow_reference(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str, family: str
) -> None:
    net = lively(tiny, name, family)
    for texts in (PROMPTS, PROMPTS[1:]):  # without and with a start that all share
        prompts = net.tokenizer(list(texts))["input_ids"]
        expected = []
        for prompt in prompts:
            tokens = list(prompt)
            for _ in range(NEW):
                tokens.append(int(next_scores(net, tokens).argmax()))
            expected.append(tokens[len(prompt) :])
        answers = generate(net, prompts, max_new_tokens=NEW, stop_ids=[])
        assert [answer.tokens for answer in answers] == expected
    choices = [[7, 8], [7, 9], [10, 8]]
    for prompt, chances in zip(prompts, choose(net, prompts, choices), strict=True):
        first = torch.softmax(next_scores(net, prompt)[[7, 10]], dim=0)
        assert chances[2] == pytest.approx(float(first[1]), rel=1e-3)
    monkeypatch.setattr(batching, "BATCH_TOKENS", 40)
    assert [a.tokens for a in generate(net, prompts, max_new_tokens=NEW, stop_ids=[])] == expected


@pytest.mark.parametrize("name", NAMES)
def test_off_answers_as_the_base(tiny: Callable[..., Path], name: str) -> None:
    net = make.network(tiny("llama"), "language")
    prompts = net.tokenizer(list(PROMPTS))["input_ids"]
    before = [a.tokens for a in generate(net, prompts, max_new_tokens=NEW, stop_ids=[])]
    selection = make.small(name)
    selection.apply(net)
    with selection.off(net):
        assert [a.tokens for a in generate(net, prompts, max_new_tokens=NEW, stop_ids=[])] == before


@pytest.mark.parametrize("name", NAMES)
def test_learned_positions_take_their_part_of_the_window(tiny: Callable[..., Path], name: str) -> None:
    net = lively(tiny, name, "llama")
    extra = make.small(name).extra_tokens
    long = [7 + index % 90 for index in range(WINDOW - extra - 3)]
    answers = generate(net, [long, long[:20]], max_new_tokens=NEW, stop_ids=[])
    assert [len(answer.tokens) for answer in answers] == [3, NEW]
    with pytest.raises(UserError, match=rf"a prompt is 257 tokens \({extra} of them virtual\)"):
        generate(net, [[*long, 1, 2, 3, 4]], max_new_tokens=1, stop_ids=[])


@pytest.mark.parametrize("name", NAMES)
def test_merging_is_refused_and_nothing_is_written(tiny: Callable[..., Path], tmp_path: Path, name: str) -> None:
    selection = make.small(name)
    net = make.network(tiny("llama"), "language")
    selection.apply(net)
    with pytest.raises(UserError, match="can't be folded into plain weights") as caught:
        selection.merge(net)
        save_plain(net, make.prompt_format(net), tmp_path / "merged")
    assert "selection: lora" in str(caught.value) and not (tmp_path / "merged").exists()


def test_a_soft_prompt_starts_as_the_text(tiny: Callable[..., Path]) -> None:
    """Right after `apply` the output is the base model's behind those very words."""
    base = make.network(tiny("gemma3"), "language")
    words = base.tokenizer("a warm film", add_special_tokens=False)["input_ids"]
    rows = make.rows(base)
    behind = [make.Row(row.id, [*words, *row.tokens]) for row in rows]
    expected = torch.cat([make.output(base, [row])[len(words) :] for row in behind])
    for kind in (Prompt, Prefix):
        net = make.network(tiny("gemma3"), "language")
        kind(length=len(words), init_text="a warm film").apply(net)
        ours = torch.cat([make.output(net, [row]) for row in rows])
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_the_text_is_repeated_or_cut_to_the_length(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    words = net.tokenizer("a warm film", add_special_tokens=False)["input_ids"]
    assert Prompt(length=2, init_text="a warm film").start_ids(net).tolist() == words[:2]
    longer = Prompt(length=len(words) + 1, init_text="a warm film").start_ids(net).tolist()
    assert longer == [*words, words[0]]
    drawn = Prompt(length=9).start_ids(net)
    assert len(drawn) == 9 and int(drawn.max()) < net.model.config.vocab_size


def test_a_prefix_longer_than_a_sliding_window_is_refused(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("gemma3"), "language")
    with pytest.raises(UserError, match="do not all keep 30 keys and values") as caught:
        Prefix(length=30).apply(net)
    assert "selection: prompt" in str(caught.value)
