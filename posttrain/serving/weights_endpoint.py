"""A vLLM server's weights over HTTP: which ones it has, and new ones: uploaded, from a shared folder, or broadcast.

GET  /v1/posttrain/weights                 the label of the weights, and what the server is
PUT  /v1/posttrain/weights/{label}/{file}  a safetensors file of a coming update
POST /v1/posttrain/weights/{label}         {"files": {name: bytes}}: load them; 409, {"missing": [...]} where some lack;
                                           {"meeting": {...}, "first_rank": n}: join the trainer's broadcast

The label is vLLM's own `weight_version`: the engine stamps it on every sample, so that none can be taken for another's.
"""

import asyncio
import atexit
import logging
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from posttrain.serving.launch import WEIGHTS_DIR
from posttrain.serving.memory import memory_folder

_log = logging.getLogger(__name__)

PREFIX = "/v1/posttrain/weights"
_HALF_LOADED = "half-loaded"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class WeightsEndpoint:
    """ASGI middleware (`--middleware`): answers the addresses above, and hands on everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._process = secrets.token_hex(8)  # another one after a restart
        shared = os.environ.get(WEIGHTS_DIR)
        self._shared = Path(shared) if shared else None
        self._spool = memory_folder("uploads")
        atexit.register(shutil.rmtree, self._spool, ignore_errors=True)
        self._loading = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            return
        except Exception as error:  # whatever stops vLLM here: the trainer is told, and the log has the rest
            _log.exception("%s %s failed", request.method, request.url.path)
            first_line = str(error).strip().partition("\n")[0]
            response = _said(500, f"{type(error).__name__}: {first_line}")
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        state = request.app.state
        if not _may(request, state.args.api_key or [os.environ.get("VLLM_API_KEY")]):
            return _said(401, "Unauthorized")
        names = [name for name in request.url.path.removeprefix(PREFIX).split("/") if name]
        if not all(_NAME.fullmatch(name) for name in names):
            return _said(400, f"a label and a file are each like {_NAME.pattern}")
        match request.method, names:
            case "GET", []:
                return JSONResponse(await self._status(state))
            case "PUT", [label, file]:
                return await self._take(request, label, file)
            case "POST", [label]:
                return await self._update(state.engine_client, label, await request.json())
        return _said(404, "weights are asked for by GET, a file is sent by PUT, an update is begun by POST")

    async def _status(self, state: Any) -> dict[str, Any]:
        engine, model = state.engine_client, state.engine_client.model_config
        images, parallel = model.multimodal_config, engine.vllm_config.parallel_config
        return {
            "label": await engine.get_weight_version(),
            "process": self._process,
            "model": model.model,
            "max_model_len": model.max_model_len,
            "max_images": images.get_limit_per_prompt("image") if images is not None else None,
            "logprobs_mode": model.logprobs_mode,
            "device": engine.vllm_config.device_config.device_type,
            "workers": parallel.world_size * parallel.data_parallel_size,
        }

    async def _take(self, request: Request, label: str, file: str) -> Response:
        folder = self._spool / label
        folder.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as part:
            try:
                async for chunk in request.stream():
                    part.write(chunk)
            except ClientDisconnect:
                Path(part.name).unlink()
                raise
        Path(part.name).rename(folder / file)
        return Response(status_code=204)

    async def _update(self, engine: Any, label: str, told: dict[str, Any]) -> Response:
        async with self._loading:
            if await engine.get_weight_version() == label:
                return JSONResponse({"label": label})
            if "meeting" in told:
                await self._load(engine, label, "receive_posttrain_weights", (told["meeting"], told["first_rank"]))
                return JSONResponse({"label": label})
            files = told.get("files")
            if not files or not all(_NAME.fullmatch(name) for name in files):
                return _said(400, "no files are named, or one with a name that is none")
            found = {name: self._find(label, name, size) for name, size in files.items()}
            if missing := [name for name, path in found.items() if path is None]:
                return JSONResponse({"missing": missing}, status_code=409)
            await self._load(engine, label, "load_posttrain_weights", ([str(path) for path in found.values()],))
        return JSONResponse({"label": label})

    async def _load(self, engine: Any, label: str, method: str, arguments: tuple[Any, ...]) -> None:
        """method: of the workers."""
        await engine.pause_generation(mode="abort")
        try:
            await engine.update_weight_version(_HALF_LOADED)
            await engine.collective_rpc(method, args=arguments)
            await engine.reset_encoder_cache()
            await engine.reset_mm_cache()
            await engine.reset_prefix_cache()
            await engine.update_weight_version(label)
        finally:
            await engine.resume_generation()
            for uploaded in self._spool.iterdir():
                shutil.rmtree(uploaded)

    def _find(self, label: str, name: str, size: int) -> Path | None:
        """The file of exactly that size, of the shared folder or uploaded."""
        for folder in (self._shared, self._spool):
            path = folder / label / name if folder is not None else None
            if path is not None and path.is_file() and path.stat().st_size == size:
                return path
        return None


def _may(request: Request, keys: list[str | None]) -> bool:
    """This middleware stands before vLLM's own check of keys."""
    wanted = [f"Bearer {key}".encode() for key in keys if key]
    given = request.headers.get("Authorization", "").encode()
    return not wanted or any(secrets.compare_digest(given, key) for key in wanted)


def _said(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status_code=status)
