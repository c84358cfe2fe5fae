"""Several runs of one base model as one: sums of what each learned, equal to PEFT's, and what can't be one model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import luthier
from luthier.cli import main
from luthier.errors import UserError
from luthier.evaluate.examinations import EXAMINATIONS
from luthier.runs.merging import merge
from luthier.runs.run import Run

Tuned = Callable[..., Run]
PAIRS = [{"prompt": f"say {n}", "completion": "warm film " * (n % 4 + 1)} for n in range(40)]
TOKENS = {"tokens": {"add": ["warm"]}}
REVIEWS = [{"text": f"a {'warm' if n % 2 else 'dull'} film {n}", "label": "up" if n % 2 else "down"} for n in range(40)]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Iterator[Tuned]:
    """A short run; the same settings give the same run."""
    made: dict[str, Run] = {}

    def run(
        task: str = "generate", selection: Any = "lora", seed: int = 0, model: str = "llama", dtype: str = "float32"
    ) -> Run:
        key = f"{task} {selection} {seed} {model} {dtype}"
        if key not in made:
            recipe = {
                "model": {"path": str(tiny(model)), "device": "cpu", "dtype": dtype},
                "task": task,
                "selection": selection,
                "train": {"max_steps": 3, "learning_rate": 1e-2},
                "evaluate": {"resamples": 100, "max_new_tokens": 3, "baselines": [], **dict.fromkeys(EXAMINATIONS)},
                "seed": seed,
            }
            out = tmp_path_factory.mktemp("run") / "run"
            made[key] = luthier.train(recipe, rows=PAIRS if task == "generate" else REVIEWS, out=out)
        return made[key]

    yield run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_adapters_add_up_as_in_peft(tuned: Tuned, tiny: Callable[..., Path], tmp_path: Path) -> None:
    import peft

    first, second = tuned(seed=0), tuned(seed=1)
    folder = luthier.merge([first.folder, second.folder], tmp_path / "merged", [0.7, 0.5])
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, first.model_folder, "first")
    model.load_adapter(second.model_folder, "second")
    model.add_weighted_adapter(["first", "second"], [0.7, 0.5], "both", combination_type="cat")
    model.set_adapter("both")
    theirs = model.merge_and_unload().state_dict()
    ours = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-5)
    alone = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=torch.float32).state_dict()
    assert any((ours[name] - alone[name]).abs().max() > 1e-3 for name in alone)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_is_used_and_merged_in_the_dtype_of_its_recipe(tuned: Tuned, tmp_path: Path, dtype: str) -> None:
    """Whatever this machine takes by itself."""
    run = tuned(dtype=dtype)
    saved = run.load().network
    assert {parameter.dtype for parameter in saved.model.parameters()} == {getattr(torch, dtype)}
    merged = weights(run.merge(tmp_path / "merged"))
    assert {value.dtype for value in merged.values()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("selection", ["lora", "full", "ia3"])
def test_a_run_that_counts_all_is_that_run(tuned: Tuned, tmp_path: Path, selection: str) -> None:
    first, second = tuned(selection=selection), tuned(selection=selection, seed=1)
    alone = weights(first.merge(tmp_path / "alone"))
    beside_nothing = weights(merge([first.folder, second.folder], tmp_path / "merged", [1.0, 0.0]))
    assert alone.keys() == beside_nothing.keys()
    for name, value in alone.items():
        torch.testing.assert_close(beside_nothing[name], value, rtol=1e-6, atol=1e-6)


def test_the_base_is_left_where_all_is_taken_back(tuned: Tuned, tiny: Callable[..., Path], tmp_path: Path) -> None:
    run = tuned()
    folder = merge([run.folder, run.folder], tmp_path / "merged", [1.0, -1.0])
    ours = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=torch.float32).state_dict()
    for name, value in base.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-6)


def test_runs_that_learned_in_other_ways_are_one_model_with_the_mean_of_their_heads(
    tuned: Tuned, tmp_path: Path
) -> None:
    runs = [tuned("classify", "lora"), tuned("classify", "full", seed=1)]
    folder = merge([run.folder for run in runs], tmp_path / "merged")
    each = [weights(run.merge(tmp_path / str(place))) for place, run in enumerate(runs)]
    for name, value in weights(folder).items():
        torch.testing.assert_close(value, (each[0][name] + each[1][name]) / 2, rtol=1e-5, atol=1e-6)


def test_a_run_goes_on_top_of_another(tuned: Tuned, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Adapters are stacked by naming the merged folder as the next recipe's model."""
    below = tuned().merge(tmp_path / "below")
    on_top = luthier.train(
        {
            "model": {"path": str(below), "device": "cpu", "dtype": "float32"},
            "task": "classify",
            "train": {"max_steps": 2},
            "evaluate": {"resamples": 100, "baselines": [], **dict.fromkeys(EXAMINATIONS)},
        },
        rows=REVIEWS,
        out=tmp_path / "run",
    )
    network = on_top.load().network
    name = "model.layers.0.self_attn.q_proj.weight"
    with_below, bare = weights(below)[name], weights(tiny("llama"))[name]
    assert not torch.equal(with_below, bare)
    torch.testing.assert_close(network.base_state()[name], with_below)


def test_what_can_be_no_one_model_is_refused_before_weights_are_loaded(
    tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer, labeler, elsewhere = tuned(), tuned("classify"), tuned(model="qwen3")
    beside, longer = tuned(selection="prompt"), tuned(selection=TOKENS)
    monkeypatch.setattr("luthier.models.load.load_network", lambda *_, **__: pytest.fail("weights were loaded"))
    out = tmp_path / "merged"

    def refused(runs: list[Run], given: list[float] | None = None) -> str:
        with pytest.raises(UserError) as told:
            merge([run.folder for run in runs], out, given)
        assert not out.exists()
        return str(told.value)

    assert "2 runs have 3 weights" in refused([writer, writer], [1, 2, 3])
    assert "no finite number" in refused([writer, writer], [1, float("nan")])
    assert "answers in another way than" in refused([writer, labeler])
    assert "another base model" in refused([writer, elsewhere])
    assert "add up to 0" in refused([labeler, labeler], [1, -1])
    assert "can't be folded" in refused([writer, beside])
    assert "tokens of its own" in refused([writer, longer])
    assert main(["merge", str(writer.folder), str(writer.folder), str(out), "--weights", "1,x"]) == 2
    assert "--weights" in capsys.readouterr().err


def test_a_run_that_was_stopped_is_told_how_to_finish(tuned: Tuned, tmp_path: Path) -> None:
    whole, stopped = tuned(), tmp_path / "stopped"
    shutil.copytree(whole.folder, stopped, ignore=shutil.ignore_patterns("model"))
    with pytest.raises(UserError, match="has no tuned model yet"):
        merge([whole.folder, stopped], tmp_path / "merged")


def test_the_command_takes_several(tuned: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(tuned(seed=seed).folder) for seed in (0, 1)]
    assert main(["merge", *runs, str(tmp_path / "merged"), "--weights", "0.7,0.5"]) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'merged'}\n"
    assert (tmp_path / "merged" / "config.json").exists()
