"""What the loss is. One file each; a new objective is one file and one row in `OBJECTIVES`."""

from luthier.tune.objectives.adversarial import Adversarial
from luthier.tune.objectives.base import Context, Known, Learner, MoreData, Objective
from luthier.tune.objectives.classify import Classify
from luthier.tune.objectives.contrastive import Contrastive
from luthier.tune.objectives.distil import Distil
from luthier.tune.objectives.dpo import Dpo
from luthier.tune.objectives.grpo import Grpo
from luthier.tune.objectives.kto import Kto
from luthier.tune.objectives.lm import Lm
from luthier.tune.objectives.ppo import Ppo
from luthier.tune.objectives.regress import Regress
from luthier.tune.objectives.reward import Reward
from luthier.tune.objectives.selftrain import Selftrain
from luthier.tune.objectives.sft import Sft
from luthier.tune.objectives.sum import sum_of
from luthier.tune.objectives.tag import Tag

OBJECTIVES: dict[str, type[Objective]] = {
    "adversarial": Adversarial,
    "classify": Classify,
    "contrastive": Contrastive,
    "distil": Distil,
    "dpo": Dpo,
    "grpo": Grpo,
    "kto": Kto,
    "lm": Lm,
    "ppo": Ppo,
    "regress": Regress,
    "reward": Reward,
    "selftrain": Selftrain,
    "sft": Sft,
    "tag": Tag,
}
OBJECTIVES["sum"] = sum_of(OBJECTIVES)

__all__ = ["OBJECTIVES", "Context", "Known", "Learner", "MoreData", "Objective"]
