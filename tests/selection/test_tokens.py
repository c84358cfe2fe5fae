"""Added tokens: where their rows start, what PEFT makes of them, tables that are tied, scaled or longer than they must
be, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from luthier.cli import main
from luthier.errors import UserError
from luthier.models.load import add_tokens, load_tokenizer
from luthier.models.save import load_saved, save_model, save_plain
from luthier.models.settings import ModelSettings
from luthier.planning.planner import prepare
from luthier.recipe.reading import RecipeError
from luthier.runs.run import Run
from luthier.selection import Selection
from luthier.selection.lora import Lora
from luthier.selection.tokens import Tokens, token_layers
from luthier.selection.wrapping import wrapped_layers
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from tests import tiny as make
from tests.selection.test_in_runs import PAIRS, ROWS, prepared, recipe
from tests.selection.test_peft import logits, shaken

peft = pytest.importorskip("peft")
Tiny = Callable[..., Path]
ADDED = ["film", "waste"]


def test_a_row_starts_as_the_mean_of_its_pieces(tiny: Tiny) -> None:
    net = make.network(tiny("llama"), "language")
    table, head = (net.model.get_parameter(n).detach().clone() for n in ("model.embed_tokens.weight", "lm_head.weight"))
    pieces = net.tokenizer("waste", add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1
    Tokens(add=["waste"]).apply(net)
    index = net.tokenizer.convert_tokens_to_ids("waste")
    assert index == len(table) and net.tokenizer("a waste")["input_ids"][-1] == index
    embedding, scores = (layer for _, layer in token_layers(net))
    torch.testing.assert_close(embedding(torch.tensor([index]))[0], table[pieces].mean(dim=0))
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(scores(hidden)[:, index], hidden @ head[pieces].mean(dim=0))
    assert torch.equal(scores(hidden)[:, :-1], hidden @ head.T)


def test_words_match_whole_words_and_marks_match_anywhere(tiny: Tiny) -> None:
    tokenizer = load_tokenizer(tiny("llama"), ["film", "<ent>"])
    film, mark = tokenizer.convert_tokens_to_ids(["film", "<ent>"])
    assert film in tokenizer("a film.")["input_ids"] and film not in tokenizer("filming")["input_ids"]
    assert mark in tokenizer("a<ent>b")["input_ids"]
    spaced = load_tokenizer(tiny("llama"), [" film"])
    assert spaced("a film")["input_ids"][-1] == spaced.convert_tokens_to_ids(" film")
    assert tokenizer.decode(tokenizer("a film<ent>", add_special_tokens=False)["input_ids"]) == "a film<ent>"


@pytest.mark.parametrize("selection", [Tokens(add=ADDED), Lora(rank=4, add_tokens=ADDED)], ids=["tokens", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mpt"])
def test_peft_loads_the_adapter_and_says_the_same(
    family: str, selection: Selection, tiny: Tiny, tmp_path: Path
) -> None:
    net = shaken(tiny(family), "language", selection)
    save_model(net, selection, make.prompt_format(net), tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny(family), dtype=torch.float32)
    base.resize_token_embeddings(len(tokenizer))
    model = peft.PeftModel.from_pretrained(base, tmp_path / "model")
    for mine, other in zip(logits(net.model, net), logits(model, net), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["language", "classes"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_with_lora_both_learn_save_switch_off_and_merge(family: str, head: Any, tiny: Tiny, tmp_path: Path) -> None:
    selection = Lora(rank=4, add_tokens=ADDED)
    net = make.network(tiny(family), head)
    plain = make.rows(net)
    before = make.output(net, plain)
    selection.apply(net)
    assert torch.equal(make.output(net, plain)[..., : before.shape[-1]], before)
    rows = make.rows(net)
    start = make.output(net, rows)
    learned = {n for n, p in net.model.named_parameters() if p.requires_grad}
    assert any(n.endswith("embed_tokens.rows") or n.endswith("wte.rows") for n in learned)
    assert any(n.endswith("lora_B") for n in learned)
    make.run_steps(net, Optimizer(net, OptimizerSettings()), rows, 3)
    tuned = make.output(net, rows)
    if head == "language":
        with selection.off(net):
            assert torch.equal(make.output(net, rows), start)
    save_model(net, selection, make.prompt_format(net), tmp_path / "model")
    saved = load_saved(tmp_path / "model", ModelSettings(path="", dtype="float32", device="cpu"))
    assert torch.equal(make.output(saved.network, rows), tuned)
    selection.merge(net)
    save_plain(net, make.prompt_format(net), tmp_path / "merged")
    assert not wrapped_layers(net)
    kind = transformers.AutoModelForCausalLM if head == "language" else transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert model.config.vocab_size == len(transformers.AutoTokenizer.from_pretrained(tmp_path / "merged"))
    for mine, other in zip(logits(saved.network.model, net), logits(model, net), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_tables_share_their_rows(tied: bool, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = transformers.AutoConfig.from_pretrained(tiny("llama"))
    config.tie_word_embeddings = tied
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    load_tokenizer(tiny("llama")).save_pretrained(folder)
    net = make.network(folder, "language")
    Tokens(add=ADDED).apply(net)
    learned = [n for n, p in net.model.named_parameters() if p.requires_grad]
    assert learned == ["model.embed_tokens.rows"] + ([] if tied else ["lm_head.rows"])


def test_a_table_longer_than_the_vocabulary_and_a_token_that_is_there(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama"))
    length = model.config.vocab_size
    model.resize_token_embeddings(length + 8)
    model.save_pretrained(folder)
    load_tokenizer(tiny("llama")).save_pretrained(folder)
    selection = Tokens(add=["film", "<mask>"])
    net = make.network(folder, "language")
    plain = make.rows(net)
    before = make.output(net, plain)
    selection.apply(net)
    after = make.output(net, plain)
    mask, film = net.tokenizer.convert_tokens_to_ids(["<mask>", "film"])
    assert film == length and after.shape == before.shape
    others = [index for index in range(length + 8) if index not in (mask, film)]
    assert torch.equal(after[:, others], before[:, others])
    torch.testing.assert_close(after[:, mask], before[:, mask])
    rows = make.rows(net)
    make.run_steps(net, Optimizer(net, OptimizerSettings()), rows, 2)
    tuned = make.output(net, rows)
    selection.merge(net)
    torch.testing.assert_close(make.output(net, rows), tuned, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("add", [[], [""], ["a", "a"]])
def test_what_is_no_list_of_tokens_is_refused(add: list[str], tiny: Tiny) -> None:
    with pytest.raises(RecipeError, match="tokens"):
        prepare(recipe(tiny("llama"), {"tokens": {"add": add}}), rows=ROWS)


def test_a_token_that_no_row_holds_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"1 of 2 added tokens never occur in the training rows.*'flim'"):
        prepared(tiny("llama"), {"lora": {"add_tokens": ["film", "flim"]}}, "generate")


def test_rows_are_cut_with_the_added_tokens_and_again_without(tiny: Tiny) -> None:
    lengths = [
        int(prepared(tiny("llama"), selection, "generate").rows.lengths.sum())
        for selection in ("lora", {"tokens": {"add": ["what is"]}}, "lora")
    ]
    assert lengths[1] < lengths[0] == lengths[2]


def test_a_tokenizer_longer_than_the_table(tiny: Tiny) -> None:
    """Its last token has no row: it stands for nothing, merged or not, and is drawn now and then."""
    net = make.network(tiny("qwen2"), "language")
    gap, tokens = len(net.model.get_input_embeddings().weight), Tokens(add=ADDED)
    assert len(net.tokenizer) == gap + 1
    tokens.apply(net)
    rows = [replace(row, tokens=[*row.tokens[:-1], gap]) for row in make.rows(net)]
    before = make.output(net, rows)
    assert torch.isfinite(before).all()
    tokens.merge(net)
    torch.testing.assert_close(make.output(net, rows), before, rtol=1e-5, atol=1e-5)


def test_pieces_are_those_of_before(tiny: Tiny) -> None:
    tokenizer = load_tokenizer(tiny("llama"))
    expected = tokenizer("waste", add_special_tokens=False)["input_ids"]
    assert add_tokens(tokenizer, ["waste"]) == [expected]


@pytest.mark.parametrize("task", ["classify", "generate"])
def test_a_whole_run(task: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ROWS if task == "classify" else PAIRS
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {**recipe(tiny("llama"), {"tokens": {"add": ["film"]}}, task), "data": str(tmp_path / "rows.jsonl")}
    (tmp_path / "recipe.yaml").write_text(json.dumps(given))
    assert main(["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 0
    run = Run.open(tmp_path / "run")
    learned = run.manifest["learned"]["parameters_learned"]
    assert learned == (32 + 2 * 32 if task == "classify" else 2 * 32)  # the row and a head; a row of each table
    assert main(["chat", str(run.folder), "-m", "a film", "--json"]) == 0
    assert main(["merge", str(run.folder), str(tmp_path / "merged")]) == 0
    card = (run.folder / "README.md").read_text()
    assert ("resize_token_embeddings" in card) == (task == "generate")
    assert ("library_name: luthier" in card) == (task == "classify")
