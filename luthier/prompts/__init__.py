"""Examples become token ids, in one way for training, evaluation, chat and serving.

In: `Example`s, a tokenizer, a `PromptFormat`. Out: `Row`s with their streams. The format is saved with the model, and
its fingerprint is checked when the model is used, so the prompt at serving time is the prompt of training.
"""

from luthier.prompts.format import FORMAT_FILE, PromptFormat, choose_format, choose_template
from luthier.prompts.tokenise import Tokenised, prompt_row, tokenise, tokenise_pieces
from luthier.prompts.turns import Turns, stop_ids

__all__ = [
    "FORMAT_FILE",
    "PromptFormat",
    "Tokenised",
    "Turns",
    "choose_format",
    "choose_template",
    "prompt_row",
    "stop_ids",
    "tokenise",
    "tokenise_pieces",
]
