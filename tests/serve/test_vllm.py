"""What vLLM is given, and what is refused because vLLM could not serve it as it was tuned."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.prompts import FORMAT_FILE, PromptFormat
from tests.serving import make_adapter

SCRIPT = """#!{python}
import json, os, sys
print(json.dumps({{"arguments": sys.argv[1:], "process": os.getpid()}}))
"""


def command(capsys: pytest.CaptureFixture[str], *options: object) -> list[str]:
    """What would be run."""
    assert main(["serve", *map(str, options), "--engine", "vllm", "--show-command"]) == 0
    return shlex.split(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    assert main(["serve", *map(str, options), "--engine", "vllm", "--show-command"]) == 2
    told = capsys.readouterr()
    assert not told.out
    return told.err


def after(given: list[str], option: str) -> str:
    return given[given.index(option) + 1]


def test_the_command_names_base_and_adapters(
    base: Path, adapters: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = make_adapter(base, tmp_path / "wide", 5, rank=12, alpha=24.0)
    given = command(
        capsys, base, "--adapters", adapters["formal"], wide, "--port", 9000, "--max-batch", 8, "--dtype", "bfloat16",
        "--vllm-options", "--gpu-memory-utilization 0.8",
    )  # fmt: skip
    assert given[:2] == ["vllm", "serve"] and Path(given[2], "config.json").exists()
    assert after(given, "--served-model-name") == base.name
    assert (after(given, "--host"), after(given, "--port")) == ("127.0.0.1", "9000")
    assert (after(given, "--max-num-seqs"), after(given, "--dtype")) == ("8", "bfloat16")
    assert after(given, "--gpu-memory-utilization") == "0.8"
    assert (after(given, "--max-lora-rank"), after(given, "--max-loras"), after(given, "--max-cpu-loras")) == (
        ("16", "2", "2")
    )
    modules = [json.loads(each) for each in given[given.index("--lora-modules") + 1 :]]
    assert [(each["name"], Path(each["path"])) for each in modules] == [
        ("formal", adapters["formal"].resolve()),
        ("wide", wide.resolve()),
    ]
    assert "--enable-lora" not in command(capsys, base)


def test_a_run_names_its_base_and_its_adapter(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_adapter(base, tmp_path / "letters" / "model", 1)
    given = command(capsys, tmp_path / "letters")
    assert Path(given[2]).samefile(base)
    assert json.loads(given[-1]) == {"name": "letters", "path": str((tmp_path / "letters" / "model").resolve())}


def test_a_template_of_their_own_is_handed_over(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [make_adapter(base, tmp_path / name, 1) for name in ("one", "two")]
    for folder, words in zip(folders, ("{{ messages[0]['content'] }}!", "{{ messages[0]['content'] }}?"), strict=True):
        retold(folder, words)
    given = command(capsys, base, "--adapters", folders[0])
    assert Path(after(given, "--chat-template")) == folders[0].resolve() / "chat_template.jinja"
    assert "different chat templates" in refused(capsys, base, "--adapters", *folders)


def retold(folder: Path, template: str) -> None:
    """As if it had been tuned with this chat template."""
    known = PromptFormat.load(folder)
    told = json.loads((folder / FORMAT_FILE).read_text())
    more = {name: told[name] for name in ("head", "base")}
    PromptFormat(known.task, max_length=known.max_length, chat_template=template).save(folder, **more)
    (folder / "chat_template.jinja").write_text(template)


def test_what_vllm_cannot_serve_is_refused(
    base: Path, adapters: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dora = make_adapter(base, tmp_path / "dora", 2, dora=True)
    said = refused(capsys, base, "--adapters", dora, adapters["reviews"])
    assert "is a dora adapter; vLLM serves LoRA" in said and "labels texts" in said
    twice = make_adapter(base, tmp_path / "again" / "formal", 3)
    assert "several adapters are called 'formal'" in refused(capsys, base, "--adapters", adapters["formal"], twice)
    told = json.loads((twice / FORMAT_FILE).read_text())
    (twice / FORMAT_FILE).write_text(json.dumps(told | {"base": told["base"] | {"fingerprint": "other"}}))
    assert "whose weights are not those of" in refused(capsys, base, "--adapters", twice)


def test_options_that_vllm_lacks_are_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, base, "--keys", "keys.json", "--adapter-memory", "1GiB")
    assert "--keys" in said and "--adapter-memory" in said and "vLLM has no equal" in said
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert "no keys are asked for" in refused(capsys, base, "--host", "0.0.0.0")
    monkeypatch.setenv("VLLM_API_KEY", "a key")
    given = command(capsys, base, "--host", "0.0.0.0")
    assert "a key" not in " ".join(given)
    assert main(["serve", str(base), "--vllm", "elsewhere", "--show-command"]) == 2
    said = capsys.readouterr().err
    assert "--vllm" in said and "--show-command" in said and "give --engine vllm too" in said
    for option in ("--vllm", "--vllm-options"):
        said = refused(capsys, base, option, "python 'half")
        assert option in said and "No closing quotation" in said


def test_it_becomes_the_program(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text(SCRIPT.format(python=sys.executable))
    program.chmod(0o755)
    options = ["serve", str(base), "--adapters", str(adapters["legal"]), "--engine", "vllm"]
    with subprocess.Popen(
        [sys.executable, "-m", "luthier", *options, "--vllm", str(program)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    ) as started:  # fmt: skip
        out, err = started.communicate(timeout=120)
    told = json.loads(out)
    assert told["process"] == started.pid and told["arguments"][0] == "serve"
    assert json.loads(told["arguments"][-1])["name"] == "legal"
    assert err.startswith(f"running: {program} serve ")
    missing = subprocess.run(
        [sys.executable, "-m", "luthier", *options, "--vllm", str(tmp_path / "none")], capture_output=True, text=True
    )
    assert missing.returncode == 2 and "no such program" in missing.stderr
