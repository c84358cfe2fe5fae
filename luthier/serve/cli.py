"""`luthier serve` and `luthier keys`: parse, call, print; everything heavy is imported when it is asked for."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from luthier.errors import Problem, UserError, raise_all


def add_serve_commands(command: Any, commands: Any) -> None:
    """Adds `serve` and `keys` to the command line's."""
    serve_arguments(command("serve", run_serve, "Serve a base model and its adapters over HTTP, as OpenAI does."))
    about = "Make, list and revoke the API keys of a server."
    parser = commands.add_parser("keys", help=about, description=about)
    found = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def of_keys(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        sub = found.add_parser(name, help=about, description=about)
        sub.set_defaults(run_command=run, options=sub._option_string_actions)
        sub.add_argument("file", help="file of keys; it holds their hashes alone")
        return sub

    sub = of_keys("new", run_new_key, "Make a key and print it: nobody can read it later.")
    sub.add_argument("--name", required=True, help="whose it is; requests are logged under it")
    sub.add_argument(
        "--allow", nargs="+", default=["*"], metavar="MODEL", help="what it may ask; * stands for anything"
    )
    sub.add_argument("--requests-per-minute", type=float, help="how many requests it may send (default: no limit)")
    sub.add_argument("--tokens-per-minute", type=float, help="how many tokens it may have (default: no limit)")
    of_keys("list", run_list_keys, "List keys by name: what they may ask, and how much.")
    of_keys("revoke", run_revoke_key, "End a key; a running server notices within a second.").add_argument(
        "name", help="whose it is"
    )


def serve_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("base", metavar="BASE_OR_RUN", help="a model, or a run: its base model with its adapter")
    sub.add_argument("--adapters", nargs="+", default=[], metavar="FOLDER", help="runs, adapters, or folders of either")
    sub.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)"
    )
    sub.add_argument("--port", type=int, default=8000, help="port to listen at (default: 8000; 0: any that is free)")
    sub.add_argument("--keys", type=Path, metavar="FILE", help="file of API keys that may ask (luthier keys new)")
    sub.add_argument("--admin-keys", type=Path, metavar="FILE", help="file of keys that may load and unload adapters")
    sub.add_argument("--open-to-all", action="store_true", help="answer other machines although there are no keys")
    sub.add_argument("--cors", nargs="+", default=[], metavar="ORIGIN", help="web pages that may ask from a browser")
    sub.add_argument("--capture", metavar="URL", help="keep prompts and answers: sqlite:///FILE or postgresql://...")
    sub.add_argument("--unmasked", action="store_true", help="capture texts as they are, personal data included")
    sub.add_argument("--max-batch", type=int, metavar="N", help="answers that are written at once (default: 64)")
    sub.add_argument("--max-waiting", type=int, metavar="N", help="requests that may wait (default: 1024)")
    sub.add_argument("--memory-tokens", type=int, metavar="N", help="tokens whose keys and values are held")
    sub.add_argument("--adapter-memory", metavar="SIZE", help="memory for adapters (default: 1GiB)")
    sub.add_argument(
        "--adapter-dtype",
        choices=("auto", "float32", "bfloat16"),
        help="how adapters are held: as the model computes (default), or in 16 bits, half the memory",
    )
    sub.add_argument("--max-body", default="4MiB", metavar="SIZE", help="largest request (default: 4MiB)")
    sub.add_argument("--request-seconds", type=float, default=600.0, help="longest answer in time (default: 600)")
    sub.add_argument("--drain-seconds", type=float, default=30.0, help="for running answers at the end (default: 30)")
    sub.add_argument("--max-tokens", type=int, default=1024, help="longest answer where a request names none")
    sub.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="where the model runs")
    sub.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="how it is held")
    sub.add_argument(
        "--engine", default="luthier", choices=("luthier", "vllm"), help="what answers; vllm is a program of its own"
    )
    sub.add_argument("--vllm", metavar="PROGRAM", help="with --engine vllm: where it is (default: vllm)")
    sub.add_argument("--vllm-options", metavar="OPTIONS", help="with --engine vllm: more options of its, in one text")
    sub.add_argument("--show-command", action="store_true", help="with --engine vllm: print its command, run nothing")


def given(arguments: argparse.Namespace) -> dict[str, str]:
    """The options whose values are not their defaults: the attribute, and the option's name."""
    options = {action.dest: name for name, action in arguments.options.items() if action.dest != "help"}
    default = {action.dest: action.default for action in arguments.options.values()}
    return {dest: name for dest, name in options.items() if getattr(arguments, dest) != default[dest]}


def words(name: str, text: str) -> list[str]:
    """A text split as a shell does. Raises `UserError` where a quotation mark is left open."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"can't be split into words: {error}", where=name, mend="close the quotation") from None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def size_given(name: str, text: str, problems: list[Problem]) -> int:
    from luthier.serve.settings import size_of

    try:
        return size_of(text)
    except ValueError as error:
        problems.append(Problem(str(error), name))
        return 1


OF_VLLM = ("vllm", "vllm_options", "show_command")
"""Options that are for vLLM alone."""
SHARED = ("adapters", "host", "port", "open_to_all", "max_batch", "dtype", "engine")
"""Options that vLLM can be told too."""


def run_vllm(arguments: argparse.Namespace) -> int | None:
    """Hand over to vLLM. Raises `UserError` for options that it has no equal of."""
    from luthier.serve import vllm
    from luthier.serve.settings import ServeSettings

    names = sorted(name for dest, name in given(arguments).items() if dest not in (*OF_VLLM, *SHARED))
    mend = f"leave it out; for keys set {vllm.KEY_VARIABLE}, for other options of vLLM --vllm-options"
    raise_all([Problem("is of Luthier's own engine, and vLLM has no equal", name, mend) for name in names])
    guarded = arguments.open_to_all or bool(os.environ.get(vllm.KEY_VARIABLE))
    ServeSettings(host=arguments.host, port=arguments.port, open_to_all=guarded).check()
    options = ["--host", arguments.host, "--port", str(arguments.port)]
    options += ["--dtype", arguments.dtype] if arguments.dtype != "auto" else []
    options += ["--max-num-seqs", str(arguments.max_batch)] if arguments.max_batch is not None else []
    options += words("--vllm-options", arguments.vllm_options or "")
    program = words("--vllm", arguments.vllm or "") or ["vllm"]
    folders = [Path(folder) for folder in arguments.adapters]
    command = [*program, *vllm.arguments(arguments.base, folders, options)]
    if not arguments.show_command:
        vllm.become(command, say)
    print(shlex.join(command))
    return None


def run_serve(arguments: argparse.Namespace) -> int | None:
    if arguments.engine == "vllm":
        return run_vllm(arguments)
    names = [name for dest, name in given(arguments).items() if dest in OF_VLLM]
    raise_all([Problem("is for vLLM", name, "give --engine vllm too") for name in names])
    require_extra()
    from luthier.serve.settings import ServeSettings

    problems: list[Problem] = []
    settings = ServeSettings(
        host=arguments.host,
        port=arguments.port,
        keys=arguments.keys,
        admin_keys=arguments.admin_keys,
        open_to_all=arguments.open_to_all,
        cors=tuple(arguments.cors),
        largest_body=size_given("--max-body", arguments.max_body, problems),
        request_seconds=arguments.request_seconds,
        drain_seconds=arguments.drain_seconds,
        default_tokens=arguments.max_tokens,
        capture=arguments.capture,
        mask=not arguments.unmasked,
    )
    wanted = {
        "max_running": arguments.max_batch,
        "max_waiting": arguments.max_waiting,
        "memory_tokens": arguments.memory_tokens,
        "adapter_dtype": arguments.adapter_dtype,
    }
    if arguments.adapter_memory is not None:
        wanted["adapter_memory"] = size_given("--adapter-memory", arguments.adapter_memory, problems)
    raise_all(problems)
    settings.check()
    from luthier.serve import running

    engine_settings = {name: value for name, value in wanted.items() if value is not None}
    folders = [Path(folder) for folder in arguments.adapters]
    running.run(arguments.base, folders, settings, engine_settings, arguments.device, arguments.dtype, say)
    return None


def require_extra() -> None:
    import importlib.util

    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serving needs {', '.join(missing)}", mend="pip install 'luthier[serve]'")


def run_new_key(arguments: argparse.Namespace) -> int | None:
    from luthier.serve.access import new_key

    limits = {
        "--requests-per-minute": arguments.requests_per_minute,
        "--tokens-per-minute": arguments.tokens_per_minute,
    }
    raise_all(
        [
            Problem(f"{value:g} is not above 0", name)
            for name, value in limits.items()
            if value is not None and value <= 0
        ]
    )
    print(new_key(Path(arguments.file), arguments.name, arguments.allow, *limits.values()))
    return None


def run_list_keys(arguments: argparse.Namespace) -> int | None:
    from luthier.serve.access import read_keys
    from luthier.text_table import columns

    def limit(value: float | None) -> str:
        return "no limit" if value is None else f"{value:g}"

    rows = [["name", "may ask", "requests a minute", "tokens a minute", "made"]]
    for key in read_keys(Path(arguments.file)):
        rows.append(
            [key.name, " ".join(key.allow), limit(key.requests_per_minute), limit(key.tokens_per_minute), key.created]
        )
    print(columns(rows))
    return None


def run_revoke_key(arguments: argparse.Namespace) -> int | None:
    from luthier.serve.access import revoke_key

    revoke_key(Path(arguments.file), arguments.name)
    print(f"revoked: {arguments.name}")
    return None
