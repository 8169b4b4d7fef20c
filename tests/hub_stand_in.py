"""A stand-in for the Hugging Face Hub: what `create_repo` and `upload_folder` of its client call, with xet switched off.

Files are kept as they arrive. `token` is the one that may write; `refuse` maps a part of a path to a status that requests get there.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field

import trio
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TOKEN = "hf_" + "t" * 34
LARGE = (".safetensors", ".bin")


@dataclass
class HubStandIn:
    token: str = TOKEN
    refuse: dict[str, int] = field(default_factory=dict)
    hangs: bool = False
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)

    def app(self):
        routes = [
            Route("/api/repos/create", self._create, methods=["POST"]),
            Route("/api/validate-yaml", self._validate, methods=["POST"]),
            Route("/api/models/{owner}/{name}", self._info, methods=["GET"]),
            Route("/api/models/{owner}/{name}/preupload/main", self._preupload, methods=["POST"]),
            Route("/{owner}/{name}.git/info/lfs/objects/batch", self._batch, methods=["POST"]),
            Route("/objects/{oid}", self._put, methods=["PUT"]),
            Route("/verify", self._verify, methods=["POST"]),
            Route("/api/models/{owner}/{name}/commit/main", self._commit, methods=["POST"]),
        ]
        return Starlette(routes=routes)

    async def _refused(self, request):
        self.seen.append(f"{request.method} {request.url.path}")
        if self.hangs:
            await trio.sleep_forever()
        for part, status in self.refuse.items():
            if part in request.url.path:
                return JSONResponse({"error": f"refused with {status}"}, status_code=status)
        if not request.url.path.startswith("/objects/") and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"error": "Invalid username or password."}, status_code=401)
        return None

    async def _create(self, request):
        if refused := await self._refused(request):
            return refused
        asked = await request.json()
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{request.base_url}{name}"
        if name in self.repos:
            return JSONResponse({"error": "You already created this model repo", "url": url}, status_code=409)
        self.repos[name] = {}
        self.private[name] = asked.get("private", asked.get("visibility") == "private")
        return JSONResponse({"url": url})

    async def _info(self, request):
        if refused := await self._refused(request):
            return refused
        name = _name(request)
        if name not in self.repos:
            return JSONResponse({"error": "Repository not found"}, status_code=404, headers={"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": path} for path in self.repos[name]]
        return JSONResponse(
            {"id": name, "private": self.private[name], "sha": "0" * 40, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}
        )

    async def _validate(self, request):
        if refused := await self._refused(request):
            return refused
        content = (await request.json())["content"]
        try:
            front = YAML(typ="safe", pure=True).load(content.split("---")[1]) if content.startswith("---\n") else None
        except YAMLError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, status_code=400)
        warnings = [] if isinstance(front, dict) else [{"message": "empty or missing yaml metadata in repo card"}]
        return JSONResponse({"errors": [], "warnings": warnings})

    async def _preupload(self, request):
        if refused := await self._refused(request):
            return refused
        files = (await request.json())["files"]
        return JSONResponse(
            {
                "files": [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for one in files
                ]
            }
        )

    async def _batch(self, request):
        if refused := await self._refused(request):
            return refused
        base = str(request.base_url)
        objects = [
            {
                **one,
                "actions": {"upload": {"href": f"{base}objects/{one['oid']}"}, "verify": {"href": f"{base}verify"}},
            }
            for one in (await request.json())["objects"]
        ]
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def _put(self, request):
        if refused := await self._refused(request):
            return refused
        content = await request.body()
        if hashlib.sha256(content).hexdigest() != request.path_params["oid"]:
            return Response(status_code=400)
        self.objects[request.path_params["oid"]] = content
        return Response(status_code=200)

    async def _verify(self, request):
        if refused := await self._refused(request):
            return refused
        asked = await request.json()
        known = self.objects.get(asked["oid"])
        return Response(status_code=200 if known is not None and len(known) == asked["size"] else 404)

    async def _commit(self, request):
        if refused := await self._refused(request):
            return refused
        files = self.repos[_name(request)]
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    self.messages.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
        commit = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        return JSONResponse({"commitUrl": f"{request.base_url}{_name(request)}/commit/{commit}", "commitOid": commit})


def _name(request):
    return f"{request.path_params['owner']}/{request.path_params['name']}"


def environment(url, *, token=TOKEN):
    """Variables of a process that is to push there."""
    return {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "A_TOKEN": token}
