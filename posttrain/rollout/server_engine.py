"""Sampling on vLLM servers, one or many, wherever they are: the trainer sends prompts, images and its weights."""

import asyncio
import logging
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from posttrain.errors import ConfigError, EngineError
from posttrain.model import ModelFacts
from posttrain.rollout.engine import Capacity, Request, Sample, Sampling
from posttrain.rollout.server_broadcast import Broadcasting
from posttrain.rollout.server_client import ServerClient
from posttrain.rollout.server_fleet import Fleet, Patience
from posttrain.rollout.server_member import Member
from posttrain.rollout.server_stream import Background, ServerStream
from posttrain.rollout.server_weights import Published, read_through, weights_of, write_weights
from posttrain.rollout.vllm_prompts import vllm_seed
from posttrain.serving.memory import memory_folder
from posttrain.serving.weight_broadcast import Backend, BroadcastFailed

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class VllmServerEngine:
    """An engine on servers that `posttrain serve` has started, each with the model that is trained.

    Requests go to the server that knows the beginning of their prompt, or has the least to do; a server that dies loses
    nothing but time, for its requests are asked elsewhere, and it is given the present weights when it is back. Every
    sample says, by vLLM's own stamp, which weights it was drawn from; others than the present ones are never returned.
    Under a launcher all ranks ask the same servers, and rank 0 gives them weights; this has not been tried on several
    machines yet.
    """

    def __init__(
        self,
        servers: Sequence[str],
        facts: ModelFacts,
        *,
        weights_dir: Path | None = None,
        broadcast: Backend | None = None,
        broadcast_host: str | None = None,
        api_key_env: str | None = None,
        timeout_s: float = 600.0,
        retries: int = 5,
        without_servers_s: float = 120.0,
        concurrency: int = 256,
        load_s: float = 600.0,
        probe_every_s: float = 5.0,
        probe_s: float = 30.0,
    ) -> None:
        """servers: their addresses, like http://host:8000.

        weights_dir: a folder that trainer and servers both see (`posttrain serve --weights-dir`), for weights; None
        uploads them. broadcast: sends them from memory to memory instead, over TCP (gloo) or between GPUs (nccl, not
        tried yet); where that fails they go as files. broadcast_host: this machine's address for it, as the servers
        reach it; None finds it. api_key_env: the environment variable that holds the servers' key. timeout_s: for one
        try of one sample. retries: tries after the first. without_servers_s: how long no server at all may answer,
        before EngineError is raised. concurrency: samples that one server is at. load_s: for a server to be given
        weights. probe_every_s, probe_s: how often the health of a server at work is looked at, and how long that may
        take.
        Asks every server what it is. Raises EngineError where none answers, or one cannot be used; ConfigError for
        arguments that cannot be right.
        """
        if not servers or len(set(servers)) < len(servers):
            raise ConfigError(f"engine: servers must name at least one address, each once; got {list(servers)}")
        if concurrency < 1 or timeout_s <= 0 or retries < 0 or without_servers_s < 0:
            raise ConfigError(
                "engine: concurrency and timeout_s must be above 0, retries and without_servers_s not below"
            )
        if broadcast == "nccl" and not torch.cuda.is_available():
            raise ConfigError("engine: broadcast 'nccl' goes from GPU to GPU, and the trainer has none; use 'gloo'")
        if weights_dir is not None and not weights_dir.is_dir():
            raise ConfigError(f"engine: weights_dir {weights_dir} is no folder; make it where the servers see it too")
        self._facts = facts
        self._run = _same_for_all_ranks(secrets.token_hex(6))
        self._weights_dir = weights_dir
        self._own: Path | None = None
        self._load_s, self._without_servers_s = load_s, without_servers_s
        clients = [ServerClient(url, api_key_env=api_key_env) for url in servers]
        members = [Member(client, facts, load_s=load_s) for client in clients]
        patience = Patience(
            timeout_s=timeout_s,
            retries=retries,
            without_servers_s=without_servers_s,
            probe_every_s=probe_every_s,
            probe_s=probe_s,
        )
        self._fleet = Fleet(members, patience, concurrency=concurrency)
        self._background = Background()
        self._broadcasting = broadcast and Broadcasting(
            fleet=self._fleet,
            background=self._background,
            backend=broadcast,
            host=broadcast_host,
            timeout_s=load_s,
        )
        self._policy: nn.Module | None = None
        self._num_updates = 0
        try:
            self._wait_for(self._fleet.look(), without_servers_s + load_s)
        except BaseException:
            self.close()
            raise

    @property
    def max_model_len(self) -> int:
        """Of the server that reads the least."""
        return min(member.max_model_len for member in self._fleet.members if member.max_model_len)

    @property
    def capacity(self) -> Capacity:
        """That of the server that reads the least."""
        images = [member.max_images for member in self._fleet.members if member.max_images is not None]
        return Capacity(max_tokens=self.max_model_len - 1, max_images=min(images, default=None))

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        """`n` samples for every request. Equal seeds give equal samples, whichever servers answer, up to rounding.

        Raises EngineError where a prompt is too long or cannot be read, and when no server answers.
        """
        stream = self.stream(sampling)
        found: list[dict[int, Sample]] = [{} for _ in requests]
        try:
            for place, request in enumerate(requests):
                seed = vllm_seed(sampling.seed, place)
                stream.add_seeded(place, request, max_new_tokens=sampling.max_new_tokens, seed=seed)
            while stream.num_running:
                for answer in stream.poll(1.0):
                    found[answer.key][answer.index] = answer.sample
        finally:
            stream.close()
        return [[found[place][index] for index in range(request.n)] for place, request in enumerate(requests)]

    def stream(self, sampling: Sampling) -> ServerStream:
        return ServerStream(
            self._fleet, self._background, self._facts, sampling, self.max_model_len, between=self._write_if_wanted
        )

    def update_weights(self, policy: nn.Module, version: int) -> None:
        """Has every server load the policy's weights, adapters merged; samples that were still being drawn begin anew.
        Servers that are down get them when they are back.

        Raises EngineError where no server takes them, on every rank.
        """
        self._num_updates += 1
        label = f"{self._run}-{version}-{self._num_updates}"
        if self._weights_dir is None:
            self._weights_dir = self._own = memory_folder("weights")
        before, present = self._fleet.present, Published(label=label, version=version, folder=self._weights_dir / label)
        self._policy = policy
        try:
            if self._broadcasting is None or not self._gave(policy, partial(self._broadcasting.give, present=present)):
                self._gave(policy, partial(self._give_files, present=present))
        finally:
            self._fleet.present = present
            if before is not None and _rank() == 0:
                before.remove()

    def _gave(self, policy: nn.Module, give: Callable[[Iterator[tuple[str, torch.Tensor]]], None]) -> bool:
        """What rank 0 does with the weights, which all ranks gather together: False where a broadcast has failed.

        Raises EngineError, on every rank, where anything else has failed.
        """
        weights = weights_of(policy)
        failure, is_final = "", False
        if _rank() == 0:
            try:
                give(weights)
            except BroadcastFailed as error:
                failure = str(error)
                _log.warning("the broadcast of weights failed, they go as files: %s", failure)
            except (EngineError, OSError) as error:
                failure, is_final = str(error) or type(error).__name__, True
        if _world_size() > 1:
            read_through(weights)
        failure, is_final = _same_for_all_ranks((failure, is_final))
        if is_final:
            raise EngineError(failure)
        return not failure

    def _give_files(self, weights: Iterator[tuple[str, torch.Tensor]], present: Published) -> None:
        write_weights(weights, present.folder)
        self._wait_for(self._fleet.hold(present), 3 * self._load_s + self._without_servers_s)

    def _write_if_wanted(self) -> None:
        """Files after a broadcast, for a server that was not there. By the thread that trains, between two polls: at
        other times the policy may be half-way to its next weights. Several ranks are not together then."""
        present = self._fleet.present
        if present is None or not present.wanted.is_set() or present.folder.exists() or _world_size() > 1:
            return
        assert self._policy is not None, "there are no present weights without an update"
        try:
            write_weights(weights_of(self._policy), present.folder)
        except OSError as error:
            raise EngineError(f"the weights for a server that is back cannot be written: {error}") from error

    def rest(self) -> None:
        """Nothing: the servers' memory is theirs."""

    def close(self) -> None:
        """Lets go of the servers, which run on with the last weights, and removes the files of weights."""
        if self._background.is_alive:
            asyncio.run_coroutine_threadsafe(self._fleet.close(), self._background.loop).result(10)
            self._background.stop()
        if _rank() == 0 and self._fleet.present is not None:
            self._fleet.present.remove()
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)

    def _wait_for(self, work: Any, limit_s: float) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._background.loop)
        try:
            return future.result(limit_s)
        except FutureTimeout:
            future.cancel()
            raise EngineError(f"the vLLM servers did not take the weights within {limit_s:g} s: raise load_s") from None


def _rank() -> int:
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _same_for_all_ranks(found: _Result) -> _Result:
    """Rank 0's."""
    if _world_size() == 1:
        return found
    box = [found]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
