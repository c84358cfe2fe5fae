"""What learns. One file each; a new selection is one file and one row in `SELECTIONS`.

In: a `Network`. Out: the same network, changed so that `requires_grad` marks exactly what learns.
"""

from luthier.selection.adapter import BottleneckAdapter
from luthier.selection.base import Selection
from luthier.selection.bias import Bias
from luthier.selection.full import Full
from luthier.selection.head import LabelHead
from luthier.selection.ia3 import Ia3
from luthier.selection.last_layers import LastLayers
from luthier.selection.lora import Lora
from luthier.selection.norms import Norms
from luthier.selection.prefix import Prefix
from luthier.selection.prompt import Prompt
from luthier.selection.qlora import QLora
from luthier.selection.tokens import Tokens

SELECTIONS: dict[str, type[Selection]] = {
    "full": Full,
    "last_layers": LastLayers,
    "head": LabelHead,
    "bias": Bias,
    "norms": Norms,
    "lora": Lora,
    "ia3": Ia3,
    "adapter": BottleneckAdapter,
    "tokens": Tokens,
    "prefix": Prefix,
    "prompt": Prompt,
    "qlora": QLora,
}

__all__ = ["SELECTIONS", "Selection"]
