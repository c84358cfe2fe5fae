"""What the server asks of whatever answers behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from luthier.engine.serving.adapters import Adapters
    from luthier.engine.serving.request import End, EngineFacts, Piece, Request, Scores
    from luthier.models.calibration import Calibration
    from luthier.models.network import Network


class ServingEngine(Protocol):
    """One model that works in a thread of its own, from `start` to `stop`; all else may be called from any thread.

    What is asked for is checked at once and refused with a `RefusedError`; otherwise a ticket comes back, which only
    `cancel` reads, and the listener is called from the engine's thread until it has got an `End` or `Scores`, once.
    """

    @property
    def network(self) -> Network: ...

    @property
    def adapters(self) -> Adapters:
        """What can be asked for by name; None is the model itself."""

    def start(self) -> None: ...

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Take nothing more; what runs may finish within the time, what is left then is cancelled."""

    def submit(self, request: Request, listen: Callable[[Piece | End], None]) -> Any:
        """Have the model write."""

    def score(self, adapter: str | None, prompt: Sequence[int], listen: Callable[[Scores | End], None]) -> Any:
        """Have the head score a text."""

    def embed(self, adapter: str | None, prompt: Sequence[int], listen: Callable[[Scores | End], None]) -> Any:
        """The mean of a text's last hidden states, scaled to length one."""

    def cancel(self, ticket: Any) -> None:
        """What the ticket is for is not wanted any longer; it ends soon."""

    def calibration(self, adapter: str | None) -> Calibration | None:
        """What makes a head's scores mean what they say; None where nothing is known of it."""

    def facts(self) -> EngineFacts: ...
