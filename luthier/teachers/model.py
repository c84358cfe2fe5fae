"""A teacher on this machine.

In: questions. Out: texts; for labels the likelihood of each as the whole answer, over the sum of all labels'.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import exp
from typing import TYPE_CHECKING, Any

from luthier.endpoint.replies import Replies
from luthier.errors import UserError
from luthier.storage.files import fingerprint
from luthier.teachers.base import Opinion, Question, Said, Wording, opinion_as_json

if TYPE_CHECKING:
    from luthier.models.network import Network
    from luthier.prompts import PromptFormat, Turns

AT_ONCE = 16
"""Questions that are answered together: what an interruption loses."""
TOP_P = 0.95
NO_END = 2**20


class ModelTeacher:
    """Loaded when something is asked that was not asked before."""

    def __init__(self, path: str, replies: Replies, where: str) -> None:
        from luthier.models.describe import describe_model
        from luthier.models.find import find_model
        from luthier.models.heads import made

        self.path, self.replies = path, replies
        self.found = find_model(path)
        facts = describe_model(self.found.folder)
        if facts.kind != "decoder" or made("language", facts) is None:
            what = f"{path} ({facts.model_type}) is no model that writes"
            raise UserError(what, where=where, mend="name a decoder, such as HuggingFaceTB/SmolLM2-135M-Instruct")
        self.window = facts.window
        self.loaded: tuple[Network, PromptFormat, Turns] | None = None

    @property
    def name(self) -> str:
        return self.path

    def write(self, questions: Sequence[Question]) -> list[Said]:
        """What is drawn for a batch depends on all of it: a sampled text is the same when the same ones are asked with
        it, in the same order."""
        said: list[Said] = []
        for start in range(0, len(questions), AT_ONCE):
            batch = questions[start : start + AT_ONCE]
            content = json.dumps([[[dict(turn) for turn in each.messages], *each[1:]] for each in batch])
            key = fingerprint("write", self.found.fingerprint, content)
            if (kept := self.replies.get(key)) is None:
                kept = self.written(batch, int(key[:8], 16))
                self.replies.put(key, kept)
            said += [Said(text) for text in kept]
        return said

    def written(self, batch: Sequence[Question], seed: int) -> list[str]:
        from luthier.engine.generate import Sampling, generate
        from luthier.prompts import prompt_row

        network, form, turns = self.load()
        prompts = [list(prompt_row({"messages": list(q.messages)}, network.tokenizer, form).tokens) for q in batch]
        answers = generate(
            network,
            prompts,
            max_new_tokens=max(each.max_tokens for each in batch),
            stop_ids=turns.stop_ids,
            sampling=Sampling(batch[0].temperature, TOP_P, seed),
        )
        return [answer.text.strip() for answer in answers]

    def label(self, texts: Sequence[str], wording: Wording) -> list[Opinion]:
        about = fingerprint("label", self.found.fingerprint, json.dumps([wording.messages(""), list(wording.labels)]))
        keys = [fingerprint(about, text) for text in texts]
        kept = {key: self.replies.get(key) for key in keys}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if kept[key] is None}
        names = list(missing)
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            for key, opinion in zip(some, self.judged([missing[key] for key in some], wording), strict=True):
                kept[key] = opinion_as_json(opinion)
                self.replies.put(key, kept[key])
        return [Opinion(**kept[key]) for key in keys]

    def judged(self, texts: Sequence[str], wording: Wording) -> list[Opinion]:
        from luthier.engine.continuations import Continuation, score_continuations

        network, _, turns = self.load()
        encoded = network.tokenizer(list(wording.labels), add_special_tokens=False)["input_ids"]
        answers = [[*ids, turns.end_id] for ids in encoded]
        room = max(map(len, answers))
        prompts = [self.prompt(text, wording, room) for text in texts]
        groups = [[Continuation([*prompt, *answer], len(prompt)) for answer in answers] for prompt in prompts if prompt]
        if worth_joining([prompt for prompt in prompts if prompt], answers):
            groups = [[each for group in groups for each in group]]
        found = iter([each.sum for group in score_continuations(network, groups) for each in group])
        nothing = Opinion(failure="the examples and the text do not fit the model's window")
        return [
            Opinion(shares(wording.labels, [next(found) for _ in answers]), "likelihood") if prompt else nothing
            for prompt in prompts
        ]

    def prompt(self, text: str, wording: Wording, room: int) -> list[int]:
        """Token ids that ask about the text, cut at its end to fit the window; empty where nothing of it would fit."""
        from luthier.prompts import prompt_row

        network, form, _ = self.load()

        def asked(text: str) -> list[int]:
            return list(prompt_row({"messages": wording.messages(text)}, network.tokenizer, form).tokens)

        prompt, most = asked(text), (self.window or NO_END) - room
        if len(prompt) <= most:
            return prompt
        ids = network.tokenizer(text, add_special_tokens=False)["input_ids"]
        while ids and len(prompt) > most:
            ids = ids[: most - len(prompt)]  # by so many too long, and once more if joints shift
            prompt = asked(str(network.tokenizer.decode(ids)))
        return prompt if ids else []

    def load(self) -> tuple[Network, PromptFormat, Turns]:
        from luthier.models.load import load_network
        from luthier.models.settings import ModelSettings
        from luthier.prompts import PromptFormat, Turns, choose_template

        if self.loaded is None:
            network = load_network(self.found, ModelSettings(path=self.path), head="language")
            network.model.eval()
            template = choose_template(network.tokenizer)
            form = PromptFormat("chat", max_length=self.window or NO_END, chat_template=template)
            self.loaded = network, form, Turns(network.tokenizer, form)
        return self.loaded


@contextmanager
def open_model(path: str, replies: Replies, where: str) -> Iterator[ModelTeacher]:
    yield ModelTeacher(path, replies, where)


def worth_joining(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> bool:
    """Whether fewer tokens are computed when what all prompts begin with (examples) is computed once for all of them,
    and each text once for each answer, than when each prompt is computed once."""
    from luthier.engine.batching import common_start

    if len(prompts) < 2:
        return False
    begins = common_start(prompts)
    alone = sum(map(len, prompts))
    joined = begins + len(answers) * (alone - begins * len(prompts))
    return joined < alone


def shares(labels: Sequence[str], sums: Sequence[float]) -> Mapping[str, Any]:
    """Each label's likelihood (given as its logarithm, in nats) over the sum of all."""
    most = max(sums)
    weights = [exp(each - most) for each in sums]
    return {label: weight / sum(weights) for label, weight in zip(labels, weights, strict=True)}
