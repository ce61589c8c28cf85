"""The trainer hook that obtains the style bank before the first iteration."""

from collections.abc import Callable

from detectron2.engine import HookBase

from famix.style.bank import StyleBank

__all__ = ["StyleMiningHook"]


class StyleMiningHook(HookBase):
    """Obtains the style bank and hands it over. Register it first, so that a bad bank stops the run before other hooks.

    Args:
        obtain: loads or mines the bank; called in every process of a job, which share the work.
        use: receives the bank.
    """

    def __init__(self, *, obtain: Callable[[], StyleBank], use: Callable[[StyleBank], None]) -> None:
        self.obtain = obtain
        self.use = use
        self._done = False

    def before_train(self) -> None:
        """Obtain the bank unless `prepare` did."""
        self.prepare()

    def prepare(self) -> None:
        """Obtain the bank and hand it over; further calls do nothing."""
        if not self._done:
            self.use(self.obtain())
            self._done = True
