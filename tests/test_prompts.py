"""One way from example to tokens: what is asked is exactly the start of what was learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.models.load import load_tokenizer
from luthier.models.tiny import CHAT_TEMPLATE
from luthier.prompts import PromptFormat, Tokenised, Turns, choose_format, prompt_row, tokenise
from luthier.prompts.format import PLAIN_TEMPLATE
from luthier.records import Example, Row

TRIMMING = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
THINKING = CHAT_TEMPLATE.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
FORGETTING = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}",
    "{% set rewritten = message['role'] == 'assistant' and not loop.last %}"
    "{{ message['content'].split('/')[-1] if rewritten else message['content'] }}",
)
NO_ENDING = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
TEMPLATES = {
    "chat": CHAT_TEMPLATE,
    "plain": PLAIN_TEMPLATE,
    "trimming": TRIMMING,
    "thinking": THINKING,
    "forgetting": FORGETTING,
    "no ending": NO_ENDING,
}
texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    [
        "  two spaces before",
        "after  ",
        "\n\nlines\n",
        "über ﬁn 日本語 🎻👩‍👩‍👧",
        "\u00a0\u200bz",
        "<|im_end|>",
        "a/b/c",
        "{{ x }}",
    ]
)
answers = texts.filter(lambda text: text.strip() != "")


@pytest.fixture(scope="module")
def tokenizer(tiny: Callable[..., Path]) -> Any:
    return load_tokenizer(tiny("llama"))


def spoken(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system is not None else turns


def chat(template: str, max_length: int = 10_000, task: str = "chat") -> PromptFormat:
    return PromptFormat(task, max_length=max_length, chat_template=template)


def learn(messages: list[dict[str, str]], tokenizer: Any, form: PromptFormat) -> Tokenised:
    return tokenise([Example("id", {"messages": messages}, "rows.jsonl, line 3", weight=2.0)], tokenizer, form)


def learned(row: Row, tokenizer: Any) -> str:
    pairs = zip(row.tokens, row.token_streams["weight"], strict=True)
    return str(tokenizer.decode([token for token, weight in pairs if weight]))


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25, deadline=None)
@given(contents=st.lists(answers, min_size=2, max_size=6), system=st.none() | texts)
def test_the_prompt_is_the_start_of_the_row_it_was_learned_from(
    tokenizer: Any, name: str, contents: list[str], system: str | None
) -> None:
    contents = contents[: len(contents) // 2 * 2]
    messages = spoken(*contents, system=system)
    form = chat(TEMPLATES[name])
    (row,) = learn(messages, tokenizer, form).rows
    prompt = list(prompt_row({"messages": messages}, tokenizer, form).tokens)
    asked = list(prompt_row({"messages": messages[:-1]}, tokenizer, form).tokens)
    assert prompt == asked == list(row.tokens[: len(prompt)])
    answer = row.token_streams["weight"][len(prompt) :]
    assert answer[0] == 2.0, "the first token after the prompt is learned"
    turns = Turns(tokenizer, form)
    assert turns.end_id in [t for t, w in zip(row.tokens[len(prompt) :], answer, strict=True) if w], "so is the end"


@pytest.mark.parametrize("name", ["chat", "plain", "trimming"])
@settings(max_examples=25, deadline=None)
@given(contents=st.lists(answers.map(lambda t: t.replace("<|im_end|>", "x")), min_size=4, max_size=6))
def test_every_answer_and_its_end_are_learned_and_nothing_else(tokenizer: Any, name: str, contents: list[str]) -> None:
    contents = contents[: len(contents) // 2 * 2]
    (row,) = learn(spoken(*contents), tokenizer, chat(TEMPLATES[name])).rows
    trim = str.strip if name == "trimming" else str
    assert learned(row, tokenizer) == "".join(trim(text) + "<|im_end|>" for text in contents[1::2])


@pytest.mark.parametrize("name", ["chat", "plain"])
def test_the_whole_text_is_the_template_s(tokenizer: Any, name: str) -> None:
    messages = spoken("hello", "good day", "again?", "yes", system="be kind")
    (row,) = learn(messages, tokenizer, chat(TEMPLATES[name])).rows
    text = tokenizer.apply_chat_template(messages, chat_template=TEMPLATES[name], tokenize=False)
    assert tokenizer.decode(row.tokens) == text


@pytest.mark.parametrize("name", ["thinking", "forgetting", "no ending"])
def test_where_earlier_turns_are_rewritten_only_the_last_is_learned(tokenizer: Any, name: str) -> None:
    (row,) = learn(spoken("one", "secret/two", "three", "four"), tokenizer, chat(TEMPLATES[name])).rows
    assert learned(row, tokenizer) == "four<|im_end|>"


def test_chat_goes_on_after_rewritten_turns(tokenizer: Any) -> None:
    form = chat(FORGETTING)
    messages = spoken("one", "secret/two", "three")
    text = tokenizer.decode(prompt_row({"messages": messages}, tokenizer, form).tokens)
    assert text == tokenizer.apply_chat_template(
        messages, chat_template=FORGETTING, tokenize=False, add_generation_prompt=True
    )
    assert "secret" not in text and text.endswith("three<|im_end|>\n<|im_start|>assistant\n")


def test_generate_asks_as_chat_does(tokenizer: Any) -> None:
    messages = spoken("a question", "an answer")
    rows = [learn(messages, tokenizer, chat(CHAT_TEMPLATE, task=task)).rows[0] for task in ("generate", "chat")]
    assert rows[0] == rows[1]


def test_nothing_learned_is_a_problem_that_names_the_row(tokenizer: Any) -> None:
    messages = spoken("a rather long question " * 5, "yes")
    whole = learn(messages, tokenizer, chat(CHAT_TEMPLATE))
    prompt = len(prompt_row({"messages": messages}, tokenizer, chat(CHAT_TEMPLATE)).tokens)
    assert whole.problems == [] and whole.truncated == 0
    cut = learn(messages, tokenizer, chat(CHAT_TEMPLATE, max_length=prompt))
    assert cut.rows == [] and cut.truncated == 0
    (problem,) = cut.problems
    assert problem.where == "rows.jsonl, line 3"
    assert f"the prompt alone is {prompt} tokens" in problem.what and "max_length" in problem.mend


def test_an_answer_that_is_cut_is_counted(tokenizer: Any) -> None:
    messages = spoken("a question", "a long answer " * 9)
    prompt = len(prompt_row({"messages": messages}, tokenizer, chat(CHAT_TEMPLATE)).tokens)
    cut = learn(messages, tokenizer, chat(CHAT_TEMPLATE, max_length=prompt + 5))
    (row,) = cut.rows
    assert cut.truncated == 1 and len(row.tokens) == prompt + 5
    assert row.token_streams["weight"] == [0.0] * prompt + [2.0] * 5


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta", "xlnet"])
def test_a_text_is_what_its_tokenizer_makes_of_it(tiny: Callable[..., Path], family: str) -> None:
    tokenizer = load_tokenizer(tiny(family))
    form = choose_format("classify", tokenizer, ["no", "yes"], False, 1000)
    shown = ["plain", "  über\n日本 ", "🎻", "x" * 50]
    examples = [Example(str(i), {"text": text, "label": "yes"}, "") for i, text in enumerate(shown)]
    rows = tokenise(examples, tokenizer, form).rows
    for text, row in zip(shown, rows, strict=True):
        assert list(row.tokens) == tokenizer(text).input_ids
        assert row.example_streams == {"label": 1, "weight": 1.0} and row.token_streams == {}
        assert list(prompt_row({"text": text}, tokenizer, form).tokens) == list(row.tokens)


@pytest.mark.parametrize(("family", "closing"), [("llama", 0), ("bert", 1), ("roberta", 1), ("xlnet", 2)])
def test_an_encoder_keeps_its_closing_marks_when_cut(tiny: Callable[..., Path], family: str, closing: int) -> None:
    tokenizer = load_tokenizer(tiny(family))
    form = choose_format("classify", tokenizer, ["no", "yes"], False, 10)
    text = "a warm and funny film with a great cast, " * 3
    whole = tokenizer(text).input_ids
    made = tokenise([Example("1", {"text": text, "label": "no"}, "")], tokenizer, form)
    expected = [*whole[: 10 - closing], *whole[len(whole) - closing :]]
    assert list(made.rows[0].tokens) == expected and made.truncated == 1
    assert list(prompt_row({"text": text}, tokenizer, form).tokens) == expected


def test_several_labels_are_zeros_and_ones(tokenizer: Any) -> None:
    form = choose_format("classify", tokenizer, ["a", "b", "c"], True, 100)
    made = tokenise([Example("1", {"text": "x", "label": ["c", "a"]}, "")], tokenizer, form)
    assert made.rows[0].example_streams["label"] == [1.0, 0.0, 1.0]


def test_a_text_of_no_token_is_a_problem(tokenizer: Any) -> None:
    form = choose_format("classify", tokenizer, ["a", "b"], False, 100)
    made = tokenise([Example("1", {"text": "", "label": "a"}, "reviews.csv, row 2")], tokenizer, form)
    assert made.rows == [] and made.problems[0].where == "reviews.csv, row 2"


def test_a_base_model_is_asked_as_its_tokenizer_opens_a_text(tiny: Callable[..., Path]) -> None:
    from tokenizers import processors

    tokenizer = load_tokenizer(tiny("llama", chat=False))
    assert choose_format("chat", tokenizer, (), False, 100).chat_template == PLAIN_TEMPLATE
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    form = choose_format("chat", tokenizer, (), False, 100)
    row = prompt_row({"messages": spoken("hello", "yes", "more")}, tokenizer, form)
    assert list(row.tokens).count(tokenizer.bos_token_id) == 1 and row.tokens[0] == tokenizer.bos_token_id


def test_a_format_is_saved_with_its_fingerprint(tmp_path: Path) -> None:
    form = PromptFormat("classify", ("no", "yes"), False, 128, "{{ x }}")
    form.save(tmp_path, more=1)
    assert PromptFormat.load(tmp_path) == form
    file = tmp_path / "luthier.json"
    file.write_text(file.read_text().replace("128", "129"))
    with pytest.raises(UserError, match="prompt format differs"):
        PromptFormat.load(tmp_path)
