from famix import StyleMiningHook
from famix.style import StyleBank


def test_the_bank_is_obtained_once_and_handed_over_before_training():
    events, bank = [], StyleBank()
    hook = StyleMiningHook(obtain=lambda: events.append("obtain") or bank, use=events.append)
    assert events == []
    hook.before_train()
    assert events == ["obtain", bank]
    hook.prepare()
    hook.before_train()
    assert events == ["obtain", bank]
