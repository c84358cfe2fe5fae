"""Loading, unloading, listing and pinning adapters, and the shares of versions: for keys of their own."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from luthier.engine.serving.request import RefusedError
from luthier.serve.opening import adapter_folder
from luthier.serve.protocol import LoadRequest, PinRequest, SharesRequest
from luthier.serve.refusals import Refusal
from luthier.serve.service import Service


def admin_routes(service: Service, errors: dict[int | str, dict[str, Any]]) -> APIRouter:
    routes = APIRouter(prefix="/admin", responses=errors, tags=["admin"])

    def facts(registered: str) -> dict[str, Any]:
        return asdict(service.engine.adapters.get(registered))

    @routes.get("/adapters")
    async def adapters() -> dict[str, Any]:
        """All adapters, their versions and the share of requests each gets, in percent."""
        data = []
        for name, versions in service.names.versions.items():
            shares = {version: round(100 * share, 6) for version, share in versions.shares.items()}
            told = {version: facts(registered) for version, registered in versions.registered.items()}
            data.append({"name": name, "shares": shares, "versions": told})
        return {"object": "list", "base": service.names.base, "data": data}

    @routes.post("/adapters", status_code=201)
    async def load(body: LoadRequest) -> dict[str, Any]:
        """Check an adapter and serve it: as a new name, a version with a share, or in another's place."""
        name, version, registered = service.names.free_name(body.name, body.replace)
        try:
            await asyncio.to_thread(service.engine.adapters.register, registered, adapter_folder(Path(body.folder)))
            share = None if body.share is None else body.share / 100
            service.names.add(name, version, registered, share, body.replace)
            if body.pin:
                service.engine.adapters.pin(registered, True)
        except RefusedError as error:
            raise Refusal.of(error) from None
        return {"name": name, "version": version} | facts(registered)

    @routes.delete("/adapters/{name}")
    async def unload(name: str) -> dict[str, Any]:
        """Take a name or one version (`name@v2`) away; what it has begun is finished first."""
        return {"object": "unloaded", "names": service.names.take_away(name)}

    @routes.put("/adapters/{name}/pin")
    async def pin(name: str, body: PinRequest) -> dict[str, Any]:
        """Keep every version of a name, or one of them, in memory; or let it leave again."""
        public, _, version = name.partition("@")
        known = service.names.versions.get(public)
        if known is None or (version and version not in known.registered):
            raise service.names.unknown(name, service.names.public()[1:])
        chosen = [known.registered[version]] if version else list(known.registered.values())
        try:
            for registered in chosen:
                service.engine.adapters.pin(registered, body.pinned)
        except RefusedError as error:
            raise Refusal.of(error) from None
        return {"object": "pinned" if body.pinned else "unpinned", "names": chosen}

    @routes.put("/shares/{name}")
    async def share(name: str, body: SharesRequest) -> dict[str, Any]:
        """Say which share of a name's requests each version gets."""
        service.names.share(name, body.shares)
        return {"name": name, "shares": body.shares}

    return routes
