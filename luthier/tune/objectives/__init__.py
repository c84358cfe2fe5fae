"""What the loss is. One file each; a new objective is one file and one row in `OBJECTIVES`."""

from luthier.tune.objectives.base import Context, Learner, Objective
from luthier.tune.objectives.classify import Classify
from luthier.tune.objectives.dpo import Dpo
from luthier.tune.objectives.grpo import Grpo
from luthier.tune.objectives.kto import Kto
from luthier.tune.objectives.ppo import Ppo
from luthier.tune.objectives.reward import Reward
from luthier.tune.objectives.sft import Sft

OBJECTIVES: dict[str, type[Objective]] = {
    "classify": Classify,
    "dpo": Dpo,
    "grpo": Grpo,
    "kto": Kto,
    "ppo": Ppo,
    "reward": Reward,
    "sft": Sft,
}

__all__ = ["OBJECTIVES", "Context", "Learner", "Objective"]
