"""What the loss is. One file each; a new objective is one file and one row in `OBJECTIVES`."""

from luthier.tune.objectives.adversarial import Adversarial
from luthier.tune.objectives.base import Context, Known, Learner, MoreData, Objective
from luthier.tune.objectives.classify import Classify
from luthier.tune.objectives.contrastive import Contrastive
from luthier.tune.objectives.distil import Distil
from luthier.tune.objectives.dpo import Dpo
from luthier.tune.objectives.grpo import Grpo
from luthier.tune.objectives.kto import Kto
from luthier.tune.objectives.ppo import Ppo
from luthier.tune.objectives.reward import Reward
from luthier.tune.objectives.selftrain import Selftrain
from luthier.tune.objectives.sft import Sft

OBJECTIVES: dict[str, type[Objective]] = {
    "adversarial": Adversarial,
    "classify": Classify,
    "contrastive": Contrastive,
    "distil": Distil,
    "dpo": Dpo,
    "grpo": Grpo,
    "kto": Kto,
    "ppo": Ppo,
    "reward": Reward,
    "selftrain": Selftrain,
    "sft": Sft,
}

__all__ = ["OBJECTIVES", "Context", "Known", "Learner", "MoreData", "Objective"]
