"""Batches answer as single prompts do, and as transformers' own generation does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from luthier.engine import batching
from luthier.engine.batching import prefill, shared_start
from luthier.engine.generate import Answer, Sampling, _tell, choose, draw, generate
from luthier.errors import UserError
from luthier.models.network import Network
from luthier.models.tiny import DECODERS, WINDOW
from tests import tiny as make

FAMILIES = DECODERS
NEW = 8
ENDS = [
    "fun",
    "dull, lifeless and far too long; a waste of two hours",
    "the plot is thin but the acting shines",
    "a",
    "zero one two three four five six seven eight nine ten " * 3,
    "the quick brown fox jumps over the lazy dog, and over again",
]
STARTS = {"apart": "", "shared": "User: what do you think of this film, in one word and no more? Answer: "}


@pytest.fixture(scope="module", params=FAMILIES)
def net(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Network:
    made = make.network(tiny(request.param), "language")
    torch.manual_seed(1)
    for parameter in made.model.parameters():  # livelier than a fresh model, which says one token for ever
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def encoded(net: Network, start: str) -> list[list[int]]:
    head = net.tokenizer(start)["input_ids"] if start else []
    return [head + net.tokenizer(text)["input_ids"] for text in ENDS]


def plainly(net: Network, prompt: Sequence[int], stop_ids: Sequence[int], new: int = NEW) -> list[int]:
    """transformers' greedy answer to one prompt, without the stop token."""
    ids = torch.tensor([list(prompt)])
    with torch.no_grad():
        out = net.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, eos_token_id=list(stop_ids)
        )
    answer = out[0, len(prompt) :].tolist()
    return next((answer[:place] for place, token in enumerate(answer) if token in stop_ids), answer)


@pytest.mark.parametrize("start", STARTS)
def test_equals_transformers_greedy_generation(net: Network, start: str) -> None:
    prompts = encoded(net, STARTS[start])
    assert (shared_start(prompts) > 0) == (start == "shared")
    free = [plainly(net, prompt, [net.tokenizer.eos_token_id]) for prompt in prompts]
    stop_ids = [net.tokenizer.eos_token_id, free[0][NEW // 2]]  # so that some answers end early
    expected = [plainly(net, prompt, stop_ids) for prompt in prompts]
    done: list[int] = []
    answers = generate(net, prompts, max_new_tokens=NEW, stop_ids=stop_ids, progress=done.append)
    assert [answer.tokens for answer in answers] == expected
    assert [answer.finished for answer in answers] == [len(tokens) < NEW for tokens in expected]
    assert len({len(tokens) for tokens in expected}) > 1 and done[-1] == len(prompts)
    for answer, tokens in zip(answers, expected, strict=True):
        assert answer.text == net.tokenizer.decode(tokens, skip_special_tokens=True)


def test_small_batches_answer_the_same(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = encoded(net, STARTS["shared"])
    stop_ids = [net.tokenizer.eos_token_id]
    together = [answer.tokens for answer in generate(net, prompts, max_new_tokens=NEW, stop_ids=stop_ids)]
    monkeypatch.setattr(batching, "BATCH_TOKENS", 40)
    assert len(list(prefill(net, prompts))) > 2
    apart = [answer.tokens for answer in generate(net, prompts, max_new_tokens=NEW, stop_ids=stop_ids)]
    assert apart == together


@pytest.mark.parametrize("start", STARTS)
def test_the_scores_after_a_prompt_are_the_model_s(net: Network, start: str) -> None:
    prompts = encoded(net, STARTS[start])
    for running in prefill(net, prompts):
        for row, index in enumerate(running.indices):
            with torch.no_grad():
                plain = net.model(input_ids=torch.tensor([prompts[index]])).logits[0, -1]
            torch.testing.assert_close(running.logits_EV[row], plain, rtol=1e-4, atol=1e-5)


def forced(net: Network, prompt: Sequence[int], choices: Sequence[Sequence[int]]) -> dict[int, float]:
    """Greedy among the choices, one full forward pass a token."""
    left, share, path = list(range(len(choices))), 1.0, []
    result: dict[int, float] = {}
    while len(left) > 1:
        with torch.no_grad():
            logits = net.model(input_ids=torch.tensor([[*prompt, *path]])).logits[0, -1]
        allowed = sorted({choices[choice][len(path)] for choice in left})
        chances = dict(zip(allowed, torch.softmax(logits[allowed], dim=0).tolist(), strict=True))
        best = max(chances, key=chances.__getitem__)
        for choice in left:
            if (token := choices[choice][len(path)]) != best:
                result[choice] = share * chances[token] / sum(choices[c][len(path)] == token for c in left)
        share *= chances[best]
        left = [choice for choice in left if choices[choice][len(path)] == best]
        path.append(best)
    return result | {left[0]: share}


@pytest.mark.parametrize("start", STARTS)
def test_choose_equals_brute_force(net: Network, start: str) -> None:
    names = ["positive", "negative", "no", "nine", "nine ten", "nine ten eleven", "maybe"]
    end = net.tokenizer.eos_token_id
    choices = [[*ids, end] for ids in net.tokenizer(names)["input_ids"]]
    assert len({len(choice) for choice in choices}) > 2
    prompts = encoded(net, STARTS[start])
    for prompt, shares in zip(prompts, choose(net, prompts, choices), strict=True):
        expected = forced(net, prompt, choices)
        assert shares == pytest.approx(expected, rel=1e-3, abs=1e-7)
        assert sum(shares.values()) == pytest.approx(1.0) and set(shares) == set(range(len(names)))
        assert max(shares, key=shares.__getitem__) == max(expected, key=expected.__getitem__)


def test_one_choice_is_certain(net: Network) -> None:
    assert choose(net, encoded(net, ""), [[5, 6]]) == [{0: 1.0}] * len(ENDS)


def test_answers_end_at_the_window(net: Network) -> None:
    assert net.window == WINDOW
    long = [7 + index % 90 for index in range(WINDOW - 3)]
    prompts = [long, long[:20], [*long, 9, 9, 9]]
    answers = generate(net, prompts, max_new_tokens=NEW, stop_ids=[])
    assert [len(answer.tokens) for answer in answers] == [3, NEW, 0]
    assert answers[0].tokens == plainly(net, long, [net.model.config.vocab_size - 1], new=3)
    with pytest.raises(UserError, match="a prompt is 257 tokens and the model's window is 256"):
        generate(net, [[*long, 1, 2, 3, 4]], max_new_tokens=1, stop_ids=[])


def test_no_prompts_no_answers(net: Network) -> None:
    assert generate(net, [], max_new_tokens=3, stop_ids=[]) == []
    assert choose(net, [], [[1], [2]]) == []


def test_equal_prompts_and_empty_rests(net: Network) -> None:
    prompt = encoded(net, "")[1]
    prompts = [prompt, prompt, prompt[:4]]
    assert shared_start(prompts) == 3, "at least one token is left of each"
    expected = [plainly(net, each, [net.tokenizer.eos_token_id]) for each in prompts]
    answers = generate(net, prompts, max_new_tokens=NEW, stop_ids=[net.tokenizer.eos_token_id])
    assert [answer.tokens for answer in answers] == expected


def test_many_answers_to_one_prompt_read_it_once(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """More copies than a batch has rows, and in no order: each place has its own prompt's answer."""
    monkeypatch.setattr(batching, "BATCH_ROWS", 5)
    distinct = encoded(net, "")[:3]
    order = [2, 0, 1, 1, 1, 0, 1, 1, 2, 1, 1, 1, 0]
    read: list[int] = []

    def told(module: object, given: tuple[object, ...], named: dict[str, torch.Tensor], out: object) -> None:
        read.append(named["input_ids"].shape[1] * named["input_ids"].shape[0])

    hook = net.model.register_forward_hook(told, with_kwargs=True)
    batches = list(prefill(net, [distinct[place] for place in order], room=NEW))
    hook.remove()
    assert sorted(index for running in batches for index in running.indices) == list(range(len(order)))
    assert sum(read) < 0.6 * sum(len(distinct[place]) for place in order)
    for running in batches:
        for row, index in enumerate(running.indices):
            alone = net.model(input_ids=torch.tensor([distinct[order[index]]])).logits[0, -1]
            torch.testing.assert_close(running.logits_EV[row], alone, rtol=1e-4, atol=1e-4)
    answers = generate(net, [distinct[place] for place in order], max_new_tokens=NEW, stop_ids=())
    for place, answer in zip(order, answers, strict=True):
        assert answer.tokens == plainly(net, distinct[place], ())


def test_text_is_told_as_it_comes(net: Network) -> None:
    told: list[str] = []
    (answer,) = generate(net, encoded(net, "")[:1], max_new_tokens=30, stop_ids=[], on_text=told.append)
    assert "".join(told) == answer.text and len(told) > 1


def test_no_half_character_is_told(net: Network) -> None:
    text = "a 🎻 and 日本"
    tokens = net.tokenizer(text)["input_ids"]
    assert len(tokens) > len(text), "characters span tokens"
    told: list[str] = []
    answer = Answer()
    for token in tokens:
        answer.tokens.append(token)
        _tell(net.tokenizer, answer, told.append)
    assert "".join(told) == text and not any("�" in piece for piece in told)


def test_sampling_is_repeatable_and_follows_the_scores() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(20_000, 1)

    def shares(sampling: Sampling) -> list[float]:
        drawn = draw(logits, sampling, torch.Generator().manual_seed(0))
        assert torch.equal(drawn, draw(logits, sampling, torch.Generator().manual_seed(0)))
        return [float((drawn == token).float().mean()) for token in range(4)]

    assert shares(Sampling()) == [1, 0, 0, 0]
    assert shares(Sampling(temperature=1.0)) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.015)
    assert shares(Sampling(temperature=1.0, top_p=0.7)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.015)
    assert shares(Sampling(temperature=1.0, top_p=0.01)) == [1, 0, 0, 0]
    halved = [0.5**2, 0.3**2, 0.15**2, 0.05**2]
    assert shares(Sampling(temperature=0.5)) == pytest.approx([x / sum(halved) for x in halved], abs=0.015)
