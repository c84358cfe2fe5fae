"""Text from a model: greedy or sampled, a batch at a time.

In: prompts as token ids. Out: the tokens and text of each answer, in the order of the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from luthier.engine.batching import prefill
from luthier.engine.running import Running
from luthier.models.network import Network


@dataclass
class Answer:
    """One generated answer."""

    tokens: list[int] = field(default_factory=list)
    """Without the stop token."""
    text: str = ""
    finished: bool = False
    """Whether the model ended it; else it was cut at max_new_tokens."""
    stop: int | None = None
    """The token by which it ended it."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that hold this share of the probability (Holtzman et al. 2020, arXiv:1904.09751).
    """
    seed: int | None = None


GREEDY = Sampling()


@torch.inference_mode()
def generate(
    network: Network,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    sampling: Sampling = GREEDY,
    on_text: Callable[[str], Any] | None = None,
    progress: Callable[[int], Any] = lambda done: None,
) -> list[Answer]:
    """Answer every prompt.

    Args:
        max_new_tokens: Longest answer; one that reaches the end of the model's window is cut there.
        stop_ids: Tokens that end an answer.
        on_text: Called with each new piece of text; for a single prompt.
        progress: Called with the number of prompts answered so far.
    """
    answers = [Answer() for _ in prompts]
    generator = torch.Generator(network.device)
    if sampling.seed is not None:
        generator.manual_seed(sampling.seed)
    done = 0
    for running in prefill(network, prompts, room=max_new_tokens):
        room = running.room(network.window, max_new_tokens)
        done += len(running.indices)
        for _ in range(max_new_tokens):
            token_E = draw(running.logits_EV, sampling, generator)
            going = []
            for row, token in enumerate(token_E.tolist()):
                answer = answers[running.indices[row]]
                left = room[running.indices[row]] - len(answer.tokens)
                if left and token in stop_ids:
                    answer.finished, answer.stop = True, token
                elif left:
                    answer.tokens.append(token)
                    if on_text is not None:
                        _tell(network.tokenizer, answer, on_text)
                    if left > 1:
                        going.append(row)
            if not going:
                break
            if len(going) < len(token_E):
                running.keep(going)
                token_E = token_E[torch.tensor(going, device=token_E.device)]
            running.advance(network, token_E)
        progress(done)
    for answer in answers:
        told = answer.text
        answer.text = network.tokenizer.decode(answer.tokens, skip_special_tokens=True)
        if on_text is not None and len(answer.text) > len(told):
            on_text(answer.text[len(told) :])  # cut in the middle of a character
    return answers


def draw(logits_EV: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """The next token of every row, [E]."""
    if sampling.temperature == 0:
        return logits_EV.argmax(dim=-1)
    probability_EV = torch.softmax(logits_EV / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        sorted_EV, index_EV = probability_EV.sort(dim=-1, descending=True)
        # A token stays when the ones before it do not yet fill the share; the first always stays.
        sorted_EV[sorted_EV.cumsum(dim=-1) - sorted_EV >= sampling.top_p] = 0
        probability_EV = torch.zeros_like(probability_EV).scatter(1, index_EV, sorted_EV)
    return torch.multinomial(probability_EV, 1, generator=generator).squeeze(1)


def _tell(tokenizer: Any, answer: Answer, on_text: Callable[[str], Any]) -> None:
    """Hand on what is new, but never half of a character that spans tokens."""
    text = tokenizer.decode(answer.tokens, skip_special_tokens=True)
    if not text.endswith("�"):
        on_text(text[len(answer.text) :])
        answer.text = text


@torch.inference_mode()
def choose(
    network: Network,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[int]],
    progress: Callable[[int], Any] = lambda done: None,
) -> list[dict[int, float]]:
    """For each prompt, how likely each choice is as its answer, when nothing else may be answered.

    At each token only those that continue some choice are allowed, and the likeliest is followed; a step that leaves
    one continuation costs nothing. Choices off the followed path keep the probability with which they were left.

    Returns:
        For each prompt, choice index -> probability; they sum to 1.
    """
    results: list[dict[int, float]] = [{} for _ in prompts]
    done = 0
    for running in prefill(network, prompts, room=max(len(choice) for choice in choices)):
        open_choices = {index: list(range(len(choices))) for index in running.indices}
        share = dict.fromkeys(running.indices, 1.0)
        depth = 0
        while True:
            following: dict[int, int] = {}
            for row, index in enumerate(running.indices):
                token, share[index] = _follow(
                    running, row, depth, choices, open_choices[index], share[index], results[index]
                )
                if token is not None:
                    following[row] = token
            rows = [row for row in following if len(open_choices[running.indices[row]]) > 1]
            if not rows:
                break
            tokens = torch.tensor([following[row] for row in rows], device=network.device)
            if len(rows) < len(running.indices):
                running.keep(rows)
            running.advance(network, tokens)
            depth += 1
        done += len(open_choices)
        for index, remaining in open_choices.items():
            for choice in remaining:
                results[index][choice] = share[index] / len(remaining)
        progress(done)
    return results


def _follow(
    running: Running,
    row: int,
    depth: int,
    choices: Sequence[Sequence[int]],
    still_open: list[int],
    share: float,
    result: dict[int, float],
) -> tuple[int | None, float]:
    """One token further along the choices: narrows `still_open` in place, writes off those left behind.

    Returns the token followed (None when the answer is decided) and the probability of the path so far.
    """
    if len(still_open) <= 1:
        return None, share
    nexts: dict[int | None, list[int]] = {}
    for choice in still_open:
        nexts.setdefault(choices[choice][depth] if depth < len(choices[choice]) else None, []).append(choice)
    if len(nexts) == 1:
        (token,) = nexts
        return token, share
    # A choice that ends here competes as the longest common one: callers end every choice with a stop token.
    tokens = [token for token in nexts if token is not None]
    probabilities = torch.softmax(running.logits_EV[row, torch.tensor(tokens)], dim=0).tolist()
    best = max(range(len(tokens)), key=probabilities.__getitem__)
    for token, probability in zip(tokens, probabilities, strict=True):
        if token != tokens[best]:
            for choice in nexts[token]:
                result[choice] = share * probability / len(nexts[token])
    still_open[:] = nexts[tokens[best]]
    return tokens[best], share * probabilities[best]
