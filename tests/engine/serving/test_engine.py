"""The serving engine: many requests in one batch answer as each would alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.batches import collate
from luthier.engine.classify import class_scores
from luthier.engine.generate import Sampling, generate
from luthier.engine.serving.engine import FETCHED_AHEAD, Engine
from luthier.engine.serving.request import RefusedError, Request
from luthier.engine.serving.settings import EngineSettings
from luthier.models.save import load_saved
from luthier.records import Row
from tests.serving import FLOAT32, Heard, ask, make_adapter, network

Tiny = Callable[..., Path]
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"rank": 4},
    "high": {"rank": 12, "rslora": True},
    "narrow": {"rank": 1, "targets": ["q_proj", "down_proj"]},
    "length": {"rank": 3, "dora": True},
    "other": {"rank": 4},
    "prefix": {"method": "prefix", "length": 18},
    "short prefix": {"method": "prefix", "length": 3},
    "prompt": {"method": "prompt", "length": 17},
}


@pytest.fixture(scope="module")
def base(tiny: Tiny) -> Path:
    return tiny("llama")


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(base, root / name, seed, **how) for seed, (name, how) in enumerate(ADAPTERS.items())}


@pytest.fixture(scope="module")
def alone(base: Path, folders: dict[str, Path]) -> Callable[[str | None, list[int], int], list[int]]:
    """What `generate` answers with this adapter and nothing else on the machine."""
    nets = {name: load_saved(folder, FLOAT32).network for name, folder in folders.items()}
    nets[""] = network(base)

    def answer(name: str | None, prompt: list[int], count: int) -> list[int]:
        return generate(nets[name or ""], [prompt], max_new_tokens=count, stop_ids=[])[0].tokens

    return answer


def started(base: Path, folders: dict[str, Path], dtype: str = "float32", **options: Any) -> Engine:
    engine = Engine(network(base, dtype), EngineSettings.model_validate(options))
    for name, folder in folders.items():
        engine.adapters.register(name, folder)
    engine.start()
    return engine


@pytest.fixture(scope="module")
def engine(base: Path, folders: dict[str, Path]) -> Iterator[Engine]:
    running = started(base, folders, memory_tokens=4096)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def halves(base: Path, folders: dict[str, Path]) -> Iterator[Engine]:
    running = started(base, folders, "bfloat16", memory_tokens=4096)
    yield running
    running.stop()


requests = st.lists(
    st.tuples(
        st.sampled_from([None, *ADAPTERS]),
        st.lists(st.integers(3, 200), min_size=1, max_size=45),
        st.integers(1, 12),
        st.sampled_from([0.0, 0.0, 0.01]),
    ),
    min_size=1,
    max_size=10,
)
tight = st.fixed_dictionaries(
    {
        "max_running": st.integers(1, 8),
        "step_tokens": st.integers(1, 40),
        "memory_tokens": st.sampled_from([80, 112, 4096]),
        "adapter_memory": st.sampled_from([200_000, 1 << 24]),
    }
)


@settings(max_examples=25, deadline=None)
@given(requests, tight)
def test_a_batch_answers_as_each_alone(
    base: Path,
    folders: dict[str, Path],
    alone: Callable[..., list[int]],
    wanted: list[tuple[str | None, list[int], int, float]],
    options: dict[str, Any],
) -> None:
    """Token for token: whatever mix of adapters, ranks, lengths and arrivals, with memory so tight that running answers
    are put back and adapters leave."""
    engine = started(base, folders, **options)
    try:
        heard = []
        for name, prompt, count, pause in wanted:
            time.sleep(pause)
            heard.append(ask(engine, prompt, count, adapter=name))
        for (name, prompt, count, _), each in zip(wanted, heard, strict=True):
            assert each.wait().end is not None and each.end.error is None
            assert each.tokens == alone(name, prompt, count)
            assert each.end.new_tokens == count
        facts = engine.facts()
        assert facts.pages_free == facts.pages and facts.running == facts.waiting == 0
    finally:
        engine.stop()


@settings(max_examples=15, deadline=None)
@given(requests)
def test_company_changes_no_answer_in_bfloat16(
    halves: Engine, wanted: list[tuple[str | None, list[int], int, float]]
) -> None:
    """What is rounded is rounded alike whoever else is in the batch."""
    together = [ask(halves, prompt, count, adapter=name) for name, prompt, count, _ in wanted]
    answers = [each.wait().tokens for each in together]
    assert answers == [ask(halves, prompt, count, adapter=name).wait().tokens for name, prompt, count, _ in wanted]


def test_the_programs_default_dtype_changes_no_answer(engine: Engine) -> None:
    """transformers sets it while it loads a model in bfloat16, for all threads."""
    prompts = [list(range(5, 5 + length)) for length in (1, 7, 20)]
    answers = [ask(engine, prompt, adapter="length").wait().tokens for prompt in prompts]
    torch.set_default_dtype(torch.bfloat16)
    try:
        heard = [ask(engine, prompt, adapter="length") for prompt in prompts]
        assert [each.wait().tokens for each in heard] == answers
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3", "mistral", "gpt2"])
def test_families(tiny: Tiny, family: str, tmp_path: Path) -> None:
    base = tiny(family)
    short: dict[str, Any] = {"length": 9}
    wanted = {"a": {}, "b": {}, "c": {"method": "prefix", **short}, "d": {"method": "prompt", **short}}
    folders = {
        name: make_adapter(base, tmp_path / name, seed, **how) for seed, (name, how) in enumerate(wanted.items())
    }
    prompts = [[7, 8, 9, *range(20, 50)], [11, 12]]
    engine = started(base, folders, step_tokens=10)
    try:
        heard = [ask(engine, prompt, 10, adapter=name) for name in (None, *wanted) for prompt in prompts]
        nets = [network(base), *(load_saved(folder, FLOAT32).network for folder in folders.values())]
        answers = [generate(net, [p], max_new_tokens=10, stop_ids=[])[0].tokens for net in nets for p in prompts]
        assert [each.wait().tokens for each in heard] == answers
    finally:
        engine.stop()


def test_a_known_start_is_not_computed_again(engine: Engine, alone: Callable[..., list[int]]) -> None:
    start = list(range(10, 60))
    first = ask(engine, [*start, 5], adapter="plain").wait()
    second = ask(engine, [*start, 6, 7], adapter="plain").wait()
    another = ask(engine, [*start, 6, 7], adapter="other").wait()
    assert first.end is not None and second.end is not None and another.end is not None
    assert (first.end.cached_tokens, second.end.cached_tokens, another.end.cached_tokens) == (0, 48, 0)
    for name, known in (("prefix", 46), ("prompt", 47)):  # of 64 tokens, less those of the adapter
        ask(engine, [*start, 5], adapter=name).wait()
        again = ask(engine, [*start, 6, 7], adapter=name).wait()
        assert again.end is not None and again.end.cached_tokens == known
        assert again.tokens == alone(name, [*start, 6, 7], 8)
    assert second.tokens == alone("plain", [*start, 6, 7], 8)
    assert another.tokens == alone("other", [*start, 6, 7], 8)


def test_what_begins_alike_is_computed_once_though_asked_at_once(base: Path, alone: Callable[..., list[int]]) -> None:
    start, short = list(range(10, 60)), [7, 8, 9]
    engine = Engine(network(base), EngineSettings(step_tokens=20))
    heard = [ask(engine, [*start, last], 5) for last in (5, 5, 6)] + [ask(engine, short, 5) for _ in range(2)]
    engine.start()
    try:
        ends = [each.wait().end for each in heard]
        assert [end.cached_tokens for end in ends if end is not None] == [0, 48, 48, 0, 0]
        for each, prompt in zip(heard, [[*start, 5], [*start, 5], [*start, 6], short, short], strict=True):
            assert each.tokens == alone(None, prompt, 5)
    finally:
        engine.stop()


def test_random_answers_do_not_depend_on_company(engine: Engine) -> None:
    how = Sampling(temperature=1.5, top_p=0.95, seed=7)
    lonely = ask(engine, [5, 6, 7], 12, adapter="plain", sampling=how).wait()
    crowd = [ask(engine, [5, 6, 8 + n], 12, adapter="high", sampling=Sampling(1.0, 1.0, n)) for n in range(6)]
    again = ask(engine, [5, 6, 7], 12, adapter="plain", sampling=how).wait()
    assert again.tokens == lonely.tokens
    assert len({tuple(each.wait().tokens) for each in crowd}) > 1


def test_stop_texts_and_stop_tokens(engine: Engine) -> None:
    whole = ask(engine, [5, 6, 7, 8], 16).wait()
    assert whole.end is not None and whole.end.reason == "length"
    tokens, text = whole.tokens, whole.text
    by_token = ask(engine, [5, 6, 7, 8], 16, stop_ids=frozenset([tokens[5]])).wait()
    assert by_token.end is not None and by_token.end.reason == "stop"
    assert by_token.tokens == tokens[: tokens.index(tokens[5])]
    stop = text[len(text) // 2 :][:3]
    by_text = ask(engine, [5, 6, 7, 8], 16, stop=(stop, "never in there")).wait()
    assert by_text.end is not None and by_text.end.reason == "stop"
    assert by_text.text == text[: text.index(stop)]


@pytest.mark.parametrize(("held", "near"), [("engine", 1e-4), ("halves", 0.05)])
def test_probabilities_are_the_models(request: pytest.FixtureRequest, held: str, near: float, base: Path) -> None:
    heard = Heard()
    request.getfixturevalue(held).submit(Request((5, 6, 7), 3, logprobs=4), heard)
    told = [token for piece in heard.wait().pieces for token in piece.tokens]
    with torch.inference_mode():
        tokens = [5, 6, 7, *(token.id for token in told)]
        expected = network(base).model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(dim=-1)
    for place, token in enumerate(told, 2):
        assert token.logprob == pytest.approx(float(expected[place, token.id]), abs=near)
        assert held == "halves" or [top[0] for top in token.top] == expected[place].topk(4).indices.tolist()


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
def test_a_label_head(base: Path, tmp_path: Path, engine: Engine, method: str) -> None:
    folder = make_adapter(base, tmp_path / "labels", 9, head="classes", method=method)
    facts = engine.adapters.register("labels", folder)
    assert not facts.writes
    saved = load_saved(folder, FLOAT32)
    prompts = [[5, 6, 7], list(range(30, 80)), [9]]
    rows = [Row(str(n), tuple(prompt), {}) for n, prompt in enumerate(prompts)]
    expected = class_scores(saved.network, rows)
    heard = [Heard() for _ in prompts]
    for prompt, each in zip(prompts, heard, strict=True):
        engine.score("labels", prompt, each)
    for each, scores_C in zip(heard, expected, strict=True):
        scores = each.wait().scores
        assert scores is not None and scores.values == pytest.approx(scores_C.tolist(), rel=1e-5, abs=1e-5)
    with pytest.raises(RefusedError, match="no label head"):
        engine.score("plain", [5], Heard())
    engine.adapters.remove("labels")


@pytest.mark.parametrize("adapter", [None, "plain", "prefix", "prompt"])
def test_an_embedding_is_the_mean_of_the_last_hidden_states(
    engine: Engine, base: Path, folders: dict[str, Path], adapter: str | None
) -> None:
    prompt = list(range(5, 160))  # more than a step takes
    heard = Heard()
    engine.embed(adapter, prompt, heard)
    net = network(base) if adapter is None else load_saved(folders[adapter], FLOAT32).network
    with torch.inference_mode():
        hidden = net.hidden(collate([Row("a", tuple(prompt), {})]))
    expected = torch.nn.functional.normalize(hidden.float().mean(dim=0), dim=0)
    scores = heard.wait().scores
    assert scores is not None and scores.values == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-5)


def test_who_leaves_and_who_is_late(engine: Engine) -> None:
    left, late = Heard(), Heard()
    from luthier.engine.serving.request import Request

    ticket = engine.submit(Request((5, 6), 4000), left)
    engine.submit(Request((5, 7), 4000, deadline=time.monotonic()), late)
    stays = ask(engine, [5, 8], 10)
    engine.cancel(ticket)
    assert left.wait().end is not None and left.end.reason == "cancelled"
    assert late.wait().end is not None and late.end.reason == "deadline"
    assert stays.wait().end is not None and stays.end.reason == "length"


def test_what_is_refused(engine: Engine) -> None:
    from luthier.engine.serving.request import Request

    def trouble(request: Request) -> str:
        with pytest.raises(RefusedError) as caught:
            engine.submit(request, Heard())
        return caught.value.trouble

    assert trouble(Request((5,), 1, adapter="plian")) == "unknown_adapter"
    assert "plain" in engine.adapters.nearest("plian")
    assert trouble(Request((), 1)) == "too_long"
    assert trouble(Request(tuple(range(3, 200)) * 100, 1)) == "too_long"
    assert trouble(Request((5,), 1, schema="{")) == "bad_schema"


def test_a_crowd_is_refused_and_nobody_is_lost(base: Path) -> None:
    engine = started(base, {}, max_running=2, max_waiting=3)
    try:
        heard, refused = [], 0
        for number in range(40):
            try:
                heard.append(ask(engine, [5, number + 3], 30))
            except RefusedError as error:
                assert error.trouble == "busy" and error.retry_after
                refused += 1
        assert refused and len(heard) >= 3
        for each in heard:
            assert each.wait().end is not None and each.end.reason == "length"
    finally:
        engine.stop()


def test_turns_go_round_among_accounts(base: Path) -> None:
    """One who asks for little does not wait for another's crowd."""
    engine = started(base, {}, max_running=1)
    try:
        crowd = [ask(engine, [5, number + 3], 20, account="many") for number in range(20)]
        single = ask(engine, [6, 7], 5, account="one").wait()
        assert single.end is not None and sum(each.done.is_set() for each in crowd) <= 3
        for each in crowd:
            each.wait()
    finally:
        engine.stop()


def test_adapters_are_fetched_for_those_who_wait_next(base: Path, folders: dict[str, Path]) -> None:
    """When a request comes, before any step looks at it; for no more requests than are to be fetched ahead."""
    engine = Engine(network(base), EngineSettings(max_running=1))
    names = [f"a{number}" for number in range(FETCHED_AHEAD + 2)]
    for name in names:
        engine.adapters.register(name, folders["plain"])
    engine.adapters.start()
    heard = [ask(engine, [5, 6, 7], 3, adapter=name) for name in names]
    engine.adapters.stop()  # at the end of what was asked of it
    assert [facts.name for facts in engine.adapters.list() if facts.resident] == names[:FETCHED_AHEAD]
    engine.start()
    try:
        assert len({tuple(each.wait().tokens) for each in heard}) == 1
    finally:
        engine.stop()


def test_an_answer_that_fits_a_schema(engine: Engine) -> None:
    import json

    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    heard = ask(engine, [5, 6, 7], 200, schema=json.dumps(schema), adapter="high").wait()
    assert heard.end is not None and heard.end.reason == "stop"
    assert set(json.loads(heard.text)) == {"a"}


def test_stopping_lets_running_answers_end(base: Path) -> None:
    engine = started(base, {})
    heard = ask(engine, [5, 6], 30)
    endless = ask(engine, [5, 7], 4000)
    engine.stop(drain_seconds=1.0)
    assert heard.wait().end is not None and heard.end.reason == "length"
    assert endless.wait().end is not None and endless.end.reason in ("cancelled", "length")
    with pytest.raises(RefusedError, match="shutting down"):
        ask(engine, [5], 1)
