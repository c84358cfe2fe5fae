"""From a command's words to a server that runs. In: a base model, folders, settings. Out: nothing, when it ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.engine.serving.request import RefusedError
from luthier.engine.serving.settings import EngineSettings
from luthier.errors import Problem, UserError
from luthier.serve import logs
from luthier.serve.opening import Named, find_adapters, find_served, load_engine
from luthier.serve.refusals import Refusal
from luthier.serve.server import serve
from luthier.serve.service import Service
from luthier.serve.settings import ServeSettings

logger = logging.getLogger("luthier.serve")


def run(
    base: str,
    folders: Sequence[Path],
    settings: ServeSettings,
    engine_settings: Mapping[str, Any],
    device: str,
    dtype: str,
    say: Callable[[str], None],
) -> None:
    """Serve until a signal comes.

    Raises:
        UserError: nothing of it can be served.
    """
    try:
        wanted = EngineSettings.model_validate(engine_settings)
    except ValidationError as error:
        raise UserError([Problem(each["msg"], ".".join(map(str, each["loc"]))) for each in error.errors()]) from None
    adapters = list(find_adapters(folders))  # before the base is loaded: a mistyped folder is told at once
    logs.configure()
    named = find_served(base)
    engine = load_engine(base, named, device, dtype, wanted)
    service = Service(engine, settings, named.name, named.prompt_format)
    count = add_adapters(service, named, adapters)
    engine.start()

    def when_listening(address: str) -> None:
        few = f"{count} adapter{'' if count == 1 else 's'}"
        say(f"serving {service.names.base} with {few} at {address}  (playground: {address}/, stop: Ctrl-C)")

    serve(service, when_listening)


def add_adapters(service: Service, named: Named, adapters: Sequence[tuple[str, Path]]) -> int:
    """Register all that fit; returns how many. Those that do not are told in the log, and the others are served.

    Raises:
        UserError: the one that the base was named by does not fit, or none of several does.
    """
    if named.adapter is not None:
        try:
            service.add(*named.adapter)
        except (RefusedError, Refusal) as error:
            raise UserError(error.message, where=str(named.adapter[1])) from None
    own = named.labeler if named.adapter is None else named.adapter[1]
    refused = []
    for name, folder in adapters:
        if own is not None and folder.resolve() == own.resolve():
            continue
        try:
            service.add(name, folder)
        except (RefusedError, Refusal) as error:
            refused.append(Problem(error.message, str(folder)))
            told = {"event": "adapter_refused", "adapter": name, "folder": str(folder)}
            logger.error("not served: %s", error.message, extra={"told": told})
    if refused and len(refused) == len(adapters):
        raise UserError(refused[:5])
    return len(service.names.versions)
