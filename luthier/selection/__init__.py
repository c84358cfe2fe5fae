"""What learns. One file each; a new selection is one file and one row in `SELECTIONS`.

In: a `Network`. Out: the same network, changed so that `requires_grad` marks exactly what learns.
"""

from luthier.selection.base import Selection
from luthier.selection.full import Full
from luthier.selection.last_layers import LastLayers
from luthier.selection.lora import Lora
from luthier.selection.prefix import Prefix
from luthier.selection.prompt import Prompt
from luthier.selection.qlora import QLora

SELECTIONS: dict[str, type[Selection]] = {
    "full": Full,
    "last_layers": LastLayers,
    "lora": Lora,
    "prefix": Prefix,
    "prompt": Prompt,
    "qlora": QLora,
}

__all__ = ["SELECTIONS", "Selection"]
