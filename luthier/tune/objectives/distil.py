"""Learning from a teacher: beside the plain loss, the divergence from what a finished model says of the same text
(Hinton et al. 2015, arXiv:1503.02531, section 2).

In: rows with labels, or conversations whose answers carry loss. Out: the loss sum
`(1 - alpha) * plain + alpha * T^2 * KL`, both distributions at temperature T; the factor keeps the teacher's part of
the gradient as large at any temperature.

Shape letters: E sequences, C labels, N tokens, M tokens that carry loss, V vocabulary, D hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.errors import Problem, UserError
from luthier.records import Batch, Loss, Row
from luthier.tasks import Form, Head
from luthier.tune.objectives.base import Context, Known, Learner, Objective
from luthier.tune.objectives.classify import label_losses

if TYPE_CHECKING:
    import torch

    from luthier.models.network import Network
    from luthier.models.teacher import TeacherFiles

BASE = "base"
WHERE = "objective.distil.teacher"


class Distil(Objective):
    """Learn what a teacher says, not only which answer is right: a small model from a larger one, or a model from
    itself as it was, so that it forgets less."""

    forms: ClassVar[tuple[Form, ...]] = ("classify", "generate")

    teacher: str = BASE
    """A run folder of Luthier, or anything that model.path takes. `base`: the model as it started."""
    temperature: float = Field(2.0, gt=0)
    """Scores are divided by it before they become probabilities: above 1 the teacher's second thoughts count more."""
    alpha: float = Field(0.5, ge=0, le=1)
    """The teacher's share of the loss; the rest is the plain loss."""
    direction: Literal["forward", "reverse"] = "forward"
    """`forward`: KL(teacher, student), which spreads over all that the teacher holds possible. `reverse`:
    KL(student, teacher), which keeps to what it holds likely."""

    def for_form(self, form: Form) -> Objective:
        kinds: dict[Form, type[Distil]] = {"classify": DistilLabels, "generate": DistilTokens}
        return kinds[form].model_validate(self.model_dump()) if form in kinds else self

    def outside(self, base: Path) -> str:
        from luthier.models.teacher import find_teacher

        return "" if self.teacher == BASE else find_teacher(self.teacher, base).fingerprint

    def misfits(self, known: Known) -> list[Problem]:
        from luthier.models.teacher import find_teacher

        if self.teacher == BASE:
            return self.misfits_of_base(known)
        try:
            return self.misfits_of(find_teacher(self.teacher, known.base), known)
        except UserError as error:
            return [replace(each, where=f"{WHERE}: {each.where}") for each in error.problems]

    def misfits_of_base(self, known: Known) -> list[Problem]:
        return []

    def misfits_of(self, teacher: TeacherFiles, known: Known) -> list[Problem]:
        raise NotImplementedError

    def divergence(self, teacher_log: torch.Tensor, student_log: torch.Tensor) -> torch.Tensor:
        """KL in nats over the last dimension, from log probabilities."""
        first, second = (teacher_log, student_log) if self.direction == "forward" else (student_log, teacher_log)
        return (first.exp() * (first - second)).sum(dim=-1)

    def mixed(self, plain: torch.Tensor, divergence: torch.Tensor) -> torch.Tensor:
        return (1 - self.alpha) * plain + self.alpha * self.temperature**2 * divergence


class DistilLabels(Distil):
    """The divergence between label distributions; with several labels, of each label's yes or no, averaged."""

    head: ClassVar[Head] = "classes"
    forms: ClassVar[tuple[Form, ...]] = ("classify",)
    example_streams: ClassVar[tuple[str, ...]] = ("label", "weight")
    divided_by: ClassVar[Literal["tokens", "examples"]] = "examples"

    def misfits_of_base(self, known: Known) -> list[Problem]:
        from luthier.models.teacher import labels_of

        found = labels_of(known.folder)
        if found == (known.prompt_format.labels, known.prompt_format.multi_label):
            return []
        what = "the model has no label head of these labels yet, so it can't teach any"
        return [Problem(what, WHERE, "name a teacher that was tuned for them, such as a run folder")]

    def misfits_of(self, teacher: TeacherFiles, known: Known) -> list[Problem]:
        from luthier.models.teacher import label_problems

        return label_problems(teacher, known.prompt_format, WHERE)

    def weight(self, batch: Batch) -> float:
        return float(batch.example_streams["weight"].sum())

    def loss(self, network: Network, batch: Batch) -> Loss:
        logits_EC = network.class_logits(batch).float()
        label, weight_E = batch.example_streams["label"], batch.example_streams["weight"]
        several = label.dim() == 2
        student_log, teacher_log = (
            log_shares(scores / self.temperature, several) for scores in (logits_EC, batch.example_streams["teacher"])
        )
        divergence = self.divergence(teacher_log, student_log)
        divergence_E = divergence.mean(dim=1) if several else divergence
        plain_E = label_losses(logits_EC, label)
        return Loss(
            (self.mixed(plain_E, divergence_E) * weight_E).sum(),
            {"plain_loss": total(plain_E, weight_E), "divergence": total(divergence_E, weight_E)},
        )

    def begin(self, context: Context) -> Learner:
        return LabelsLearner(self, context)


def log_shares(scores_EC: torch.Tensor, several: bool) -> torch.Tensor:
    """Log probabilities: of the labels [E, C], or of each label's yes and no [E, C, 2]."""
    import torch

    if several:
        return torch.nn.functional.logsigmoid(torch.stack([scores_EC, -scores_EC], dim=-1))
    return torch.log_softmax(scores_EC, dim=-1)


def total(values: torch.Tensor, weights: torch.Tensor) -> float:
    return float((values.detach() * weights).sum())


class LabelsLearner(Learner):
    """Adds to each row what the teacher says of it, asked in the teacher's own tokens."""

    def __init__(self, objective: DistilLabels, context: Context) -> None:
        from luthier.models.teacher import find_teacher, load_teacher

        super().__init__(objective, context)
        self.teacher = None
        assert context.prompt_format is not None
        if objective.teacher == BASE:
            context.network.keep_reference()
        else:
            files = find_teacher(objective.teacher, context.base)
            self.teacher = load_teacher(files, "classes", context.network, context.prompt_format)
            names = list(self.teacher.prompt_format.labels)
            self.order = [names.index(label) for label in context.prompt_format.labels]

    def updates(self, step: int, indices: Sequence[int]) -> Iterator[Sequence[Row]]:
        rows = [self.context.rows[index] for index in indices]
        yield [
            replace(row, example_streams={**row.example_streams, "teacher": scores})
            for row, scores in zip(rows, self.scores(rows, indices), strict=True)
        ]

    def scores(self, rows: Sequence[Row], indices: Sequence[int]) -> list[list[float]]:
        """What the teacher says of these rows, its labels in the student's order."""
        from luthier.engine.classify import class_scores
        from luthier.prompts import prompt_row

        if self.teacher is None:
            with self.context.network.as_reference():
                return class_scores(self.context.network, rows).tolist()
        asked = [
            prompt_row(self.context.examples[index].fields, self.teacher.network.tokenizer, self.teacher.prompt_format)
            for index in indices
        ]
        return class_scores(self.teacher.network, asked)[:, self.order].tolist()


class DistilTokens(Distil):
    """The divergence between next-token distributions, at each token that carries loss."""

    head: ClassVar[Head] = "language"
    forms: ClassVar[tuple[Form, ...]] = ("generate",)
    token_streams: ClassVar[tuple[str, ...]] = ("weight",)
    divided_by: ClassVar[Literal["tokens", "examples"]] = "tokens"

    def misfits_of(self, teacher: TeacherFiles, known: Known) -> list[Problem]:
        from luthier.models.teacher import vocabulary_problems

        return vocabulary_problems(teacher, known.tokenizer, WHERE)

    def weight(self, batch: Batch) -> float:
        return float(batch.token_streams["weight"].sum())

    def begin(self, context: Context) -> Learner:
        return TokensLearner(self, context)


class TokensLearner(Learner):
    """Runs the teacher on the student's own tokens, and compares them some tokens at a time."""

    objective: DistilTokens

    def __init__(self, objective: DistilTokens, context: Context) -> None:
        from luthier.models.teacher import find_teacher, load_teacher

        super().__init__(objective, context)
        self.teacher = context.network
        if objective.teacher == BASE:
            context.network.keep_reference()
        else:
            assert context.prompt_format is not None
            files = find_teacher(objective.teacher, context.base)
            self.teacher = load_teacher(files, "language", context.network, context.prompt_format).network

    @contextlib.contextmanager
    def teaching(self) -> Iterator[None]:
        """Inside the block, the teacher may be asked."""
        import torch

        with self.context.network.as_reference() if self.teacher is self.context.network else torch.no_grad():
            yield

    def loss(self, batch: Batch) -> Loss:
        import torch

        from luthier.kernels.chunked import chunked_sums
        from luthier.kernels.cross_entropy import CHUNK_VALUES

        network, objective = self.context.network, self.objective
        weight_N = batch.token_streams["weight"]
        target = weight_N.nonzero().squeeze(1)
        with self.teaching():
            taught_MD = self.teacher.hidden_at(batch, target - 1)
        hidden_MD = network.hidden_at(batch, target - 1)
        if target.numel() == 0:
            return Loss(hidden_MD.sum())
        label_M, weight_M = batch.tokens_N[target], weight_N[target]

        def sums(hidden_KD: torch.Tensor, part: slice) -> torch.Tensor:
            with self.teaching():
                taught_KV = self.teacher.token_logits(taught_MD[part]).float()
            scores_KV = network.token_logits(hidden_KD).float()
            shared = min(scores_KV.shape[1], taught_KV.shape[1])  # beyond lie rows that belong to no token
            student_log, teacher_log = (
                torch.log_softmax(scores[:, :shared] / objective.temperature, dim=-1)
                for scores in (scores_KV, taught_KV)
            )
            divergence_K = objective.divergence(teacher_log, student_log)
            plain_K = torch.nn.functional.cross_entropy(scores_KV, label_M[part], reduction="none")
            parts = (objective.mixed(plain_K, divergence_K), plain_K, divergence_K)
            return torch.stack([(each * weight_M[part]).sum() for each in parts])

        head = network.model.get_output_embeddings()
        learned = [parameter for parameter in head.parameters() if parameter.requires_grad]
        vocabulary = network.model.config.get_text_config().vocab_size
        size = max(1, CHUNK_VALUES // (4 * vocabulary))  # four times: both models' scores, and their logarithms
        found = chunked_sums(sums, hidden_MD, learned, size)
        return Loss(found[0], {"plain_loss": float(found[1].detach()), "divergence": float(found[2].detach())})
