"""A stage of `answers`: a recipe's teachers answer prompts once, and what rewards let through becomes a data set."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from posttrain.answers import AnswerSource, CollectSettings, EngineAnswers, SolverAnswers, collect, make_solver
from posttrain.answers.one_turn import OneTurnAnswers
from posttrain.build import make_mixture, make_renderer
from posttrain.config import AnswersStage, ModelSection, TeacherSection, routes_of
from posttrain.data import Renderer
from posttrain.errors import ConfigError
from posttrain.loaded import Loaded, load, tokenizer_of
from posttrain.model.loading import load_processor
from posttrain.playable import check_first_rows
from posttrain.run_parts import RunParts
from posttrain.runs import StageFolder, read_json, write_json
from posttrain.stage_builder import fingerprint
from posttrain.teachers.identity import checkpoint_identity


@dataclass(kw_only=True)
class AnswersRun:
    """A stage of answers with all that its run wants."""

    parts: RunParts
    name: str
    stage: AnswersStage
    folder: StageFolder
    fingerprint: str

    def result(self) -> dict[str, Any]:
        """Asks what is not asked yet."""
        if self.folder.result.is_file():
            self.parts.console.print(f"[bold]{self.name}[/bold] is finished: not run again")
            return read_json(self.folder.result)
        started = time.perf_counter()
        stage = self.stage
        self.parts.console.rule(f"[bold]{self.name}[/bold]  answers")
        routes = routes_of(self.name, stage, self.parts.recipe.teachers)
        self._check_engine(set(routes.values()))
        mixture = make_mixture(stage.data, self.parts.recipe.seed)
        check_first_rows(mixture.sources.values(), self.parts.environments)
        sources = {
            name: self._source(name, self.parts.recipe.teachers[name]) for name in dict.fromkeys(routes.values())
        }
        collected = collect(
            self.folder.data,
            teachers={task: sources[name] for task, name in routes.items()},
            mixture=mixture,
            settings=CollectSettings(
                max_new_tokens=stage.max_new_tokens,
                num_prompts=stage.prompts,
                answers_per_prompt=stage.answers_per_prompt,
                thinking=stage.thinking,
                thinking_frac=stage.thinking_frac,
                temperature=stage.temperature,
                top_p=stage.top_p,
                top_k=stage.top_k,
                min_reward=stage.min_reward,
                keep_per_prompt=stage.keep_per_prompt,
                batch_size=stage.batch_size,
                seed=self.parts.recipe.seed,
            ),
            rewards=self.parts.rewards,
            encode=self._encode(),
            title=self.name,
            console=self.parts.console,
            rank=self.parts.accelerator.process_index,
            world=self.parts.accelerator.num_processes,
            wait=self.parts.accelerator.wait_for_everyone,
        )
        self.parts.engines.close()  # its memory is the next stage's
        result = {
            "name": self.name,
            "algorithm": stage.algorithm,
            "seconds": round(time.perf_counter() - started, 1),
            "steps": collected.counts["prompts"],
            "before": {},
            "after": {},
            "counts": dict(collected.counts),
            "fingerprint": self.fingerprint,
        }
        if self.parts.accelerator.is_main_process:
            write_json(self.folder.result, result)
        self.parts.accelerator.wait_for_everyone()
        return result

    def _encode(self) -> Callable[[str], Sequence[int]] | None:
        """Tokens of an answer as the student reads it, for rewards that count them."""
        path = self.parts.recipe.model.path
        if path is None or self.parts.rewards is None:
            return None
        tokenizer = tokenizer_of(load_processor(path, revision=self.parts.recipe.model.revision))
        return lambda text: tokenizer.encode(text, add_special_tokens=False)

    def _check_engine(self, asked: set[str]) -> None:
        """vLLM in process holds the weights of one model, and prompts as far as its context leaves room for answers."""
        engine = self.parts.recipe.engine
        given = {name: self.parts.recipe.teachers[name] for name in asked}
        local = sorted(name for name, teacher in given.items() if teacher.server is None and teacher.solver is None)
        if engine.kind == "vllm" and local and engine.max_model_len <= self.stage.max_new_tokens:
            raise ConfigError(
                f"stages.{self.name}: max_new_tokens {self.stage.max_new_tokens} leaves no room for a prompt in "
                f"engine.max_model_len {engine.max_model_len}; raise it, or ask for shorter answers"
            )
        if engine.kind != "transformers" and len(local) > 1:
            raise ConfigError(
                f"stages.{self.name}: teachers {' and '.join(local)} would share one vLLM engine; give each a stage of "
                "its own, serve them, or set engine.kind to transformers"
            )

    def _source(self, name: str, section: TeacherSection) -> AnswerSource:
        environments = self.parts.environments
        if section.solver is not None:
            identity = fingerprint({"solver": section.solver, "options": section.options})
            solver = make_solver(section.solver, section.options)
            return SolverAnswers(name=name, identity=identity, solver=solver, environments=environments)
        if section.server is not None:
            return OneTurnAnswers(source=self.parts.teachers.server(name, section), played=environments)
        path = self.parts.teachers.path_of(name)
        model = ModelSection(
            path=path,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            dtype=section.dtype or self.parts.recipe.model.dtype,
            attention=self.parts.recipe.model.attention,
            min_pixels=self.parts.recipe.model.min_pixels,
            max_pixels=self.parts.recipe.model.max_pixels,
        )  # pyright: ignore[reportCallIssue]
        # vLLM reads the checkpoint itself: a copy of ours beside it would take the GPU's memory twice.
        by_vllm = self.parts.recipe.engine.kind == "vllm"
        loaded = load(model, path, self.parts.accelerator, trained=False, device="cpu" if by_vllm else section.device)
        loaded.policy.requires_grad_(False).eval()
        engine = self.parts.engines.engine_for(loaded, dtype=model.dtype)
        if not by_vllm or isinstance(loaded.policy.model, PeftModel):
            engine.update_weights(loaded.policy, 0)
        return EngineAnswers(
            name=name,
            identity=checkpoint_identity(path, revision=section.revision),
            engine=engine,
            renderers={mode: self._renderer(model, loaded, mode) for mode in (True, False, None)},
            decode=loaded.decode,
            autocast=lambda: self.parts.accelerator.autocast(),
            environments=environments,
            repeatable=self.parts.recipe.engine.repeatable,
        )

    def _renderer(self, model: ModelSection, loaded: Loaded, thinking: bool | None) -> Renderer:
        longest = self.stage.max_length
        if self.parts.recipe.engine.kind == "vllm":
            longest = min(longest, self.parts.recipe.engine.max_model_len - self.stage.max_new_tokens)
        return make_renderer(model.model_copy(update={"thinking": thinking}), loaded, longest)
