"""Of the processes that see one cause, one tells of it."""

from __future__ import annotations

from convsync.processes.tellers import Tellers


def test_the_first_tells_that_it_fires_and_the_last_that_it_is_over() -> None:
    tellers = Tellers()
    assert tellers.tells("a", "failing", "firing")
    assert not tellers.tells("b", "failing", "firing")
    assert not tellers.tells("a", "failing", "resolved"), "b still sees it"
    assert not tellers.tells("a", "failing", "firing"), "it was never over"
    assert not tellers.tells("b", "failing", "resolved")
    assert tellers.tells("a", "failing", "resolved")
    assert tellers.tells("b", "failing", "firing")


def test_what_lasts_is_told_again_by_one() -> None:
    tellers = Tellers()
    for who, told in (("a", True), ("b", False), ("a", True), ("b", False)):
        assert tellers.tells(who, "failing", "firing") is told


def test_causes_do_not_hide_each_other() -> None:
    tellers = Tellers()
    assert tellers.tells("a", "failing", "firing")
    assert tellers.tells("b", "refused", "firing")


def test_another_one_goes_on_telling_for_a_process_that_is_gone() -> None:
    tellers = Tellers()
    assert tellers.tells("a", "failing", "firing")
    assert not tellers.tells("b", "failing", "firing")
    tellers.gone("a")
    assert tellers.tells("b", "failing", "firing")
    assert tellers.tells("b", "failing", "resolved")
