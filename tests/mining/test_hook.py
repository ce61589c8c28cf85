from famix.mining import StyleMiningHook
from famix.style import StyleBank


def test_the_bank_is_obtained_when_training_begins_and_handed_over():
    events, bank = [], StyleBank()
    hook = StyleMiningHook(obtain=lambda: events.append("obtain") or bank, use=events.append)
    assert events == []
    hook.before_train()
    assert events == ["obtain", bank]


def test_a_bank_that_was_obtained_ahead_is_not_obtained_again():
    events, bank = [], StyleBank()
    hook = StyleMiningHook(obtain=lambda: events.append("obtain") or bank, use=events.append)
    hook.prepare()
    hook.before_train()
    assert events == ["obtain", bank]
