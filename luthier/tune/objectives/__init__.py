"""What the loss is. One file each; a new objective is one file and one row in `OBJECTIVES`."""

from luthier.tune.objectives.base import Context, Learner, Objective
from luthier.tune.objectives.classify import Classify
from luthier.tune.objectives.lm import Lm
from luthier.tune.objectives.regress import Regress
from luthier.tune.objectives.sft import Sft
from luthier.tune.objectives.tag import Tag

OBJECTIVES: dict[str, type[Objective]] = {"classify": Classify, "lm": Lm, "regress": Regress, "sft": Sft, "tag": Tag}

__all__ = ["OBJECTIVES", "Context", "Learner", "Objective"]
