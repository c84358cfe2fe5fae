"""Models that read with an encoder and write with a decoder: rows of two parts, answers, refusals, whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.batches import collate
from luthier.chat import Conversation
from luthier.check_report import check
from luthier.engine.generate import Sampling, generate
from luthier.engine.likelihood import negative_log_likelihoods
from luthier.errors import UserError
from luthier.evaluate.predict import predict
from luthier.models.network import Network
from luthier.models.save import save_model
from luthier.planning.planner import prepare
from luthier.prompts import PromptFormat, prompt_row, stop_ids, tokenise
from luthier.records import Example
from luthier.selection.lora import Lora
from tests import tiny as make
from tests.tasks.runs import sentence, systems, whole_run

FAMILIES = ("t5", "mt5", "bart")


@pytest.fixture(scope="module", params=FAMILIES)
def net(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Network:
    return make.network(tiny(request.param), "language")


def example(source: str, answer: str, number: int = 0, system: str = "") -> Example:
    turns = [{"role": "user", "content": source}, {"role": "assistant", "content": answer}]
    before = [{"role": "system", "content": system}] if system else []
    return Example(f"{number:032x}", {"messages": [*before, *turns]}, f"row {number}")


def test_rows_are_a_source_and_its_target(net: Network) -> None:
    form = make.prompt_format(net)
    (row,) = tokenise([example("a warm film", "yes", system="Be short.")], net.tokenizer, form).rows
    source = net.tokenizer("Be short.\n\na warm film")["input_ids"]
    target = net.tokenizer("yes")["input_ids"]
    assert list(row.tokens) == [*source, net.model.config.decoder_start_token_id, *target]
    assert list(row.parts) == [len(source), 1 + len(target)]
    assert list(row.token_streams["weight"]) == [0.0] * (len(source) + 1) + [1.0] * len(target)
    asked = prompt_row(example("a warm film", "yes", system="Be short.").fields, net.tokenizer, form)
    assert list(asked.tokens) == source and not asked.parts


def test_each_part_is_cut_by_itself(net: Network) -> None:
    form = make.prompt_format(net, max_length=9)
    made = tokenise([example("the plot is thin " * 9, "great fun " * 9)], net.tokenizer, form)
    (row,) = made.rows
    assert made.truncated == 1 and list(row.parts) == [9, 9]
    assert row.tokens[8] == net.tokenizer.eos_token_id, "the source keeps its end"


def test_hidden_states_give_transformers_own_scores(net: Network) -> None:
    rows = make.rows(net)
    with torch.no_grad():
        ours = net.token_logits(net.hidden(collate(rows)))
    start = 0
    for row in rows:
        source, target = row.parts
        ids = torch.tensor([list(row.tokens)])
        with torch.no_grad():
            theirs = net.model(input_ids=ids[:, :source], decoder_input_ids=ids[:, source:]).logits[0]
        torch.testing.assert_close(ours[start + source : start + source + target], theirs, rtol=1e-5, atol=1e-5)
        start += source + target


def test_likelihoods_equal_transformers_own_loss(net: Network) -> None:
    rows = make.rows(net)
    for row, (loss, count) in zip(rows, negative_log_likelihoods(net, rows), strict=True):
        ids, source = torch.tensor([list(row.tokens)]), row.parts[0]
        with torch.no_grad():
            logits = net.model(input_ids=ids[:, :source], decoder_input_ids=ids[:, source:]).logits[0, :-1]
        theirs = torch.nn.functional.cross_entropy(logits, ids[0, source + 1 :], reduction="sum")
        assert count == row.parts[1] - 1 and loss == pytest.approx(float(theirs), rel=1e-5)


def test_greedy_answers_equal_transformers_own(net: Network) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.model.parameters():  # a model as it is made says one thing again and again
            parameter.add_(0.5 * torch.randn_like(parameter))
    net.model.eval()
    prompts = [net.tokenizer(" ".join(sentence(n)))["input_ids"] for n in range(9)]
    stops = stop_ids(net.tokenizer, make.prompt_format(net))
    answers = generate(net, prompts, max_new_tokens=12, stop_ids=stops)
    assert len({tuple(answer.tokens) for answer in answers}) > 3
    for prompt, answer in zip(prompts, answers, strict=True):
        theirs = net.model.generate(
            torch.tensor([prompt]), max_new_tokens=12, num_beams=1, do_sample=False, forced_eos_token_id=None
        )[0, 1:].tolist()
        if theirs and theirs[-1] in stops:
            theirs = theirs[:-1]
        assert answer.tokens == theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_the_adapter_and_says_the_same(family: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    net = make.network(tiny(family), "language")
    selection = Lora(rank=4, alpha=8.0)
    selection.apply(net)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in net.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    learned = {name for name, p in net.model.named_parameters() if p.requires_grad}
    assert any("encoder." in name for name in learned) and any("decoder." in name for name in learned)
    save_model(net, selection, make.prompt_format(net), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    base = transformers.AutoModelForSeq2SeqLM.from_pretrained(tiny(family), dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "model").eval().double()
    ours = net.model.eval().double()  # exact: sums in another order must not matter
    for row in make.rows(net):
        ids, source = torch.tensor([list(row.tokens)]), row.parts[0]
        given = {"input_ids": ids[:, :source], "decoder_input_ids": ids[:, source:]}
        with torch.no_grad():
            torch.testing.assert_close(ours(**given).logits, model(**given).logits, rtol=1e-5, atol=1e-5)


ROWS = [
    {"prompt": " ".join(sentence(n)) + f" {n}", "completion": "yes" if "film" in sentence(n) else "no"}
    for n in range(120)
]


@pytest.mark.parametrize(("family", "selection"), [("t5", "full"), ("bart", "lora"), ("t5", "last_layers")])
def test_a_whole_run(family: str, selection: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    chosen: dict[str, Any] = {selection: {"layers": 2} if selection == "last_layers" else {}}
    run = whole_run(tmp_path, tiny(family), "generate", ROWS, train={"epochs": 3}, selection=chosen)
    found = systems(run)
    assert list(found) == ["tuned", "zero_shot", "few_shot"]
    assert found["tuned"]["perplexity"] < found["zero_shot"]["perplexity"]
    card = (run.folder / "README.md").read_text()
    assert "AutoModelForSeq2SeqLM" in card and "text2text-generation" in card
    loaded = run.load()
    assert loaded.prompt_format.decoder_start == loaded.network.decoder_start
    assert loaded.prompt_format.chat_template is None
    conversation = Conversation(loaded, Sampling(), 4)
    assert conversation.answer(ROWS[0]["prompt"]).prompt_tokens
    (prediction,) = predict(loaded.network, [example("a film", "yes")], loaded.prompt_format, 4)
    assert prediction.loss is not None and prediction.loss_tokens > 0


def recipe(model: Path, tmp_path: Path, **more: Any) -> dict[str, Any]:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return {"model": str(model), "data": str(data), "task": "generate", **more}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("selection", ["full", "lora", "last_layers"])
def test_check_estimates_memory_and_time(
    family: str, selection: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    chosen = {selection: {"layers": 1} if selection == "last_layers" else {}}
    told = check(recipe(tiny(family), tmp_path, selection=chosen))
    assert told["model"]["kind"] == "encoder-decoder" and told["memory_bytes"] > 0 and told["training_seconds"] > 0
    assert 0 < told["learned_parameters"] <= told["model"]["parameters"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "lm", "data": "texts"}, "can't do task: lm"),
        ({"selection": "prompt"}, "selection: "),
        ({"selection": "bias"}, "this selection is not for an encoder-decoder (t5)"),
        ({"selection": {"lora": {"add_tokens": ["<a>"]}}}, "added tokens are not for an encoder-decoder"),
        ({"train": {"neftune_alpha": 5}}, "train.neftune_alpha: is for models whose blocks are in one tower"),
    ],
)
def test_what_can_not_work_is_refused(
    changes: dict[str, Any], said: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    asked = recipe(tiny("t5"), tmp_path, **changes)
    if changes.get("data") == "texts":
        (tmp_path / "texts.txt").write_text("\n\n".join(f"text {n}" for n in range(40)))
        asked["data"] = str(tmp_path / "texts.txt")
    with pytest.raises(UserError) as error:
        prepare(asked)
    assert said in str(error.value)


def test_a_classifier_of_such_a_model_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"text": row["prompt"], "label": row["completion"]} for row in ROWS]
    asked = {"model": str(tiny("bart")), "task": "classify", "data": {}}
    with pytest.raises(UserError) as error:
        prepare(asked, rows=rows)
    said = str(error.value)
    assert "is an encoder-decoder (bart), which can't do task: classify" in said
    assert "or task: generate or chat" in said and "an encoder (BERT" in said


def test_the_format_says_that_the_model_is_such(net: Network, tmp_path: Path) -> None:
    form = make.prompt_format(net)
    form.save(tmp_path)
    assert PromptFormat.load(tmp_path) == form and form.decoder_start is not None
