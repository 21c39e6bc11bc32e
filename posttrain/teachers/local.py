"""Teachers in this process: a frozen model of its own, and the student without its adapters."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig

from posttrain.errors import ConfigError, TeacherError
from posttrain.model import Budget, ModelFacts, PackedPolicy, facts_of
from posttrain.model.attention import Kernel
from posttrain.model.loading import ModelLoadError, Processor, load_model, load_processor
from posttrain.teachers.dense import DenseTeacher, head_of
from posttrain.teachers.identity import base_of, checkpoint_identity
from posttrain.teachers.tokenizers import check_tokenizers, image_misfit, tokenizer_of


class LocalTeacher(DenseTeacher):
    """A frozen model on its own device and in its own dtype, loaded when it is first asked."""

    def __init__(
        self,
        name: str,
        policy: PackedPolicy | Callable[[], PackedPolicy],
        *,
        identity: str,
        budget: Budget,
        context: int | None = None,
        vocab_size: int | None = None,
        misfit: str | None = None,
    ) -> None:
        """budget: of its own passes, for scores ahead; a `dense` row is the student's.

        context: left out, it is read from the model, which is then loaded. vocab_size: rows of the student's head,
        where the teacher may have more. misfit: why it cannot read the student's images, as `image_misfit` says it.
        """
        super().__init__(name, identity=identity, budget=budget, vocab_size=vocab_size)
        self._load = (lambda: policy) if isinstance(policy, PackedPolicy) else policy
        self._context, self._misfit = context, misfit
        self._policy: PackedPolicy | None = None

    @classmethod
    def from_checkpoint(
        cls,
        name: str,
        path: str | Path,
        *,
        student: Processor,
        student_facts: ModelFacts,
        budget: Budget,
        device: str | torch.device,
        dtype: torch.dtype,
        kernel: Kernel | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> "LocalTeacher":
        """The checkpoint or adapter in a folder or of a hub name; its weights are not read yet, its tokenizer is.

        Raises TeacherError where it is not there, is of another kind, or has another tokenizer than the student.
        """
        hub = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
        folder = Path(path).expanduser()
        try:
            processor = load_processor(path, revision=revision, trust_remote_code=trust_remote_code)
            whole = (base_of(folder) if (folder / "adapter_config.json").is_file() else None) or path
            config = AutoConfig.from_pretrained(whole, **hub)
            tokenizer = tokenizer_of(processor)
            facts = facts_of(config, tokenizer)
        except (ModelLoadError, OSError, ValueError) as error:
            raise TeacherError(f"teacher '{name}': {error}") from error
        check_tokenizers(tokenizer_of(student), tokenizer, name=name)

        def load() -> PackedPolicy:
            try:
                model = load_model(
                    path, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code
                )
            except ModelLoadError as error:
                raise TeacherError(f"teacher '{name}': {error}") from error
            return PackedPolicy(model, facts, kernel=kernel)

        return cls(
            name,
            load,
            identity=checkpoint_identity(path, revision=revision),
            budget=budget,
            context=config.get_text_config().max_position_embeddings,
            vocab_size=student_facts.vocab_size,
            misfit=image_misfit(student, processor),
        )

    @property
    def is_loaded(self) -> bool:
        return self._policy is not None

    @property
    def context(self) -> int:
        if self._context is None:
            self._context = _context_of(self._loaded())
        return self._context

    def close(self) -> None:
        """Frees its memory."""
        self._policy, self._head_copy = None, None

    @contextmanager
    def _asked(self) -> Iterator[PackedPolicy]:
        policy = self._loaded()
        device = next(policy.model.parameters()).device
        with torch.autocast(device.type, enabled=False):  # the student's precision is not the teacher's
            yield policy

    def _loaded(self) -> PackedPolicy:
        if self._policy is None:
            policy = self._load()
            if not torch.isfinite(head_of(policy)).all():
                raise TeacherError(f"teacher '{self.name}' has a head with weights that are not finite: copy it again")
            self._policy = policy.requires_grad_(False).eval()
        return self._policy

    def _why_blind(self, facts: ModelFacts) -> str | None:
        if not facts.has_vision:
            return "is a text model and cannot see images: route their tasks to a vision-language teacher"
        if self._misfit is not None:
            return f"{self._misfit}: route tasks with images to a teacher of the student's generation"
        return None


class StudentTeacher(DenseTeacher):
    """The student without its adapters, for self-distillation: no copy, no memory, always as it was before training."""

    def __init__(self, name: str, policy: PackedPolicy, *, identity: str, budget: Budget) -> None:
        """Raises ConfigError for a student that has no adapters to switch off."""
        if not isinstance(policy.model, PeftModel):
            raise ConfigError(
                f"teacher '{name}' is the student without its adapters, but the student is trained without any: add "
                "model.lora, or give the teacher a path"
            )
        super().__init__(name, identity=identity, budget=budget, vocab_size=None)
        self._policy = policy

    @property
    def context(self) -> int:
        return _context_of(self._policy)

    def close(self) -> None:
        """Nothing is its own."""

    @contextmanager
    def _asked(self) -> Iterator[PackedPolicy]:
        with self._policy.without_adapters():
            yield self._policy


def _context_of(policy: PackedPolicy) -> int:
    return policy.base_model.config.get_text_config().max_position_embeddings
