"""The tuned model and everything it is compared with, asked on the same test rows.

In: the saved model, `Prepared`. Out: what each system answered and what that took; which were left out, and why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError
from luthier.models.heads import made
from luthier.planning.prepared import Prepared
from luthier.progress import Progress
from luthier.tasks import TASKS

if TYPE_CHECKING:
    from luthier.evaluate.baselines import Answered, Asked
    from luthier.evaluate.verdict import LeftOut, SystemResult
    from luthier.models.network import Network
    from luthier.models.save import Saved
    from luthier.records import Example


class Alternatives:
    """Asks one system after another; models take each other's place in memory."""

    def __init__(self, saved: Saved, prepared: Prepared, progress: Progress) -> None:
        from luthier.evaluate.baselines import wanted

        self.saved, self.prepared, self.progress = saved, prepared, progress
        self.settings = prepared.recipe.evaluate
        self.test = test_examples(prepared)
        self.left_out: list[LeftOut] = []
        self.kept: dict[Any, Any] = {}
        task = TASKS[prepared.recipe.task]
        self.names = self.fitting(wanted(self.settings, task.baselines, task.form))

    def fitting(self, names: Sequence[str]) -> list[str]:
        """Those that this model and these rows can be asked with; the others are said to be left out."""
        from luthier.evaluate.baselines import BASELINES

        chosen = []
        for name in names:
            baseline = BASELINES[name]
            if baseline.prompted and made("language", self.prepared.facts) is None:
                self.leave_out(name, f"an {self.prepared.facts.kind} can't be prompted")
            elif baseline.pairs_only and "completion" in self.test[0].fields:
                self.leave_out(name, "a row holds one answer and not two")
            else:
                chosen.append(name)
        return chosen

    def leave_out(self, name: str, reason: str, failed: bool = False) -> None:
        from luthier.evaluate.baselines import BASELINES
        from luthier.evaluate.verdict import LeftOut

        title = BASELINES[name].title
        self.left_out.append(LeftOut(name, title, reason, failed))
        self.progress.say(f"left out: {title}, because {reason}")

    def tuned(self) -> SystemResult:
        """The tuned model's answers."""
        from luthier.evaluate.baselines.base import Answered
        from luthier.evaluate.costs import usage_of
        from luthier.evaluate.predict import predict

        saved = self.saved
        selection = next(iter(self.prepared.recipe.resolved()["selection"]))
        started = time.perf_counter()
        with self.progress.stage("judging the tuned model", len(self.test)) as tell:
            longest = self.settings.max_new_tokens
            made = predict(saved.network, self.test, saved.prompt_format, longest, lambda done: tell(done, ""))
        seconds = time.perf_counter() - started
        usage = usage_of(saved.network.tokenizer, saved.prompt_format, self.test, made)
        return self.result("tuned", "tuned", Answered(made, f"tuned with {selection}", usage, seconds))

    def with_tuned_model(self) -> list[SystemResult]:
        """The baselines that ask the tuned model; to be asked before another takes its place."""
        from luthier.evaluate.baselines import BASELINES

        asked = self.asked(self.saved.network, self.saved.prompt_format)
        if asked.window is not None:
            asked = replace(asked, window=asked.window - self.prepared.recipe.chosen_selection.extra_tokens)
        return self.run([name for name in self.names if BASELINES[name].tuned], asked)

    def others(self) -> list[SystemResult]:
        """Every other baseline."""
        from luthier.evaluate.baselines import BASELINES

        names = [name for name in self.names if not BASELINES[name].tuned]
        prompted = [name for name in names if BASELINES[name].prompted]
        with base_network(self.saved, self.prepared, prompted, self.progress) as network:
            results = self.run(prompted, self.asked(network, self.prepared.prompt_format))
        del network  # an earlier run's model may take its place
        results += self.run([n for n in names if n not in prompted], self.asked(None, self.prepared.prompt_format))
        return sorted(results, key=lambda result: names.index(result.name))

    def asked(self, network: Network | None, prompt_format: Any) -> Asked:
        from luthier.evaluate.baselines import Asked

        prepared = self.prepared
        return Asked(
            network=network,
            prompt_format=prompt_format,
            train=prepared.data.splits["train"],
            test=self.test,
            shots=self.settings.shots,
            instruction=self.settings.prompt,
            max_new_tokens=self.settings.max_new_tokens,
            window=prepared.facts.window,
            validation=prepared.data.splits["validation"],
            metric=prepared.metrics[0],
            documents=prepared.documents,
            settings=self.settings,
            base_path=prepared.base,
            kept=self.kept,
            test_fingerprint=prepared.data.fingerprint("test"),
        )

    def run(self, names: Sequence[str], asked: Asked) -> list[SystemResult]:
        from luthier.evaluate.baselines import BASELINES
        from luthier.evaluate.predict import further

        results = []
        for name in names:
            baseline = BASELINES[name]
            started = time.perf_counter()
            try:
                with self.progress.stage(f"judging {baseline.title}", len(self.test)) as tell:
                    answered = baseline.run(asked, teller(tell))
            except UserError as error:
                if not baseline.remote:
                    raise
                # What was tuned and asked so far is worth a verdict; this one can be asked again later.
                self.leave_out(name, "; ".join(problem.what for problem in error.problems), failed=True)
                continue
            seconds = time.perf_counter() - started if answered.seconds is None else answered.seconds
            rows = zip(answered.predictions, self.test, strict=True)  # metrics look at what else the rows hold
            answered = replace(answered, predictions=[replace(p, fields=further(example)) for p, example in rows])
            results.append(self.result(name, baseline.title, answered, seconds))
        return results

    def result(self, name: str, title: str, answered: Answered, seconds: float | None = None) -> SystemResult:
        from luthier.evaluate.baselines import BASELINES
        from luthier.evaluate.costs import cost_of_thousand
        from luthier.evaluate.verdict import SystemResult

        baseline, usage = BASELINES.get(name), answered.usage
        seconds = answered.seconds if seconds is None else seconds
        remote = baseline is not None and baseline.remote
        return SystemResult(
            name,
            title,
            answered.predictions,
            seconds,
            tokens=None if usage is None else usage.read + usage.written,
            description=answered.note,
            kind="tuning" if baseline is None else baseline.kind,
            tokens_written=None if usage is None else usage.written,
            cost_per_thousand=cost_of_thousand(self.settings.prices, name, remote, usage, seconds, len(self.test)),
        )

    def costs(self, systems: Sequence[SystemResult]) -> dict[str, Any]:
        """The prices, and in words what they cover."""
        from luthier.evaluate.costs import NO_PRICES

        prices = self.settings.prices
        if prices is None:
            return {"prices": None, "sentence": NO_PRICES}
        blank = [system.title for system in systems if system.cost_per_thousand is None]
        sentence = "Costs are of 1,000 requests, at the prices that the recipe states and the speed measured here."
        if blank:
            sentence += f" Left blank, because no stated price fits them: {', '.join(blank)}."
        return {"prices": prices.model_dump(mode="json"), "sentence": sentence}


def teller(tell: Callable[[int, str], None]) -> Callable[[int], None]:
    return lambda done: tell(done, "")


@contextmanager
def base_network(
    saved: Saved, prepared: Prepared, prompted: Sequence[str], progress: Progress
) -> Iterator[Network | None]:
    """The untouched model with its language head, or None where no baseline needs it.

    A tuned model that writes is that model with its tuning switched off; a classifier makes room for it.
    """
    from luthier.models.load import load_network

    if not prompted:
        yield None
    elif saved.network.head == "language":
        with saved.selection.off(saved.network):
            yield saved.network
    else:
        saved.network.model = None  # its memory goes to the base model
        with progress.stage("loading the base model"):
            network = load_network(
                prepared.found, prepared.recipe.model, head="language", quantisation=saved.selection.quantisation
            )
        yield network


def test_examples(prepared: Prepared) -> list[Example]:
    """The test rows that are judged, the same ones for every system and run."""
    return prepared.data.splits["test"].first_by_id(prepared.recipe.evaluate.max_rows)
