"""Whose turn it is, on a clock of its own."""

from generalist.serve.turns import ANSWERS, LATEST, ROUNDS, SHARE, Turns


def test_texts_go_on_while_no_agent_answers() -> None:
    turns = Turns()
    assert turns.of_texts(0.0)
    turns.wrote(0.0, 0.1)
    assert turns.of_texts(0.1), "no agent plays"
    turns.acted(1.0)
    assert not turns.of_texts(1.0) and turns.of_texts(1.0 + ANSWERS), "a robot takes its time"
    assert turns.texts_from() == 1.0 + ANSWERS


def test_between_two_steps_of_the_texts_agents_that_answer_at_once_have_several() -> None:
    turns, now, steps = Turns(), 0.0, []
    for _ in range(40):  # each a step of 2 ms, of an agent that has its next observation at once
        now += 0.002
        turns.acted(now)
        if turns.of_texts(now):
            steps.append("text")
            turns.wrote(now, now + 0.002)
            now += 0.002
        else:
            steps.append("")
    between = [len(one) for one in "".join(one[:1] or "." for one in steps).split("t")[1:-1]]
    assert min(between) >= ROUNDS - 1 and set(between) == {ROUNDS - 1}


def test_a_long_step_of_the_texts_is_followed_by_more_of_agents() -> None:
    turns = Turns()
    turns.wrote(0.0, 0.1)
    for step in range(1, 200):
        now = 0.1 + 0.002 * step
        turns.acted(now)
        if turns.of_texts(now):
            assert abs(now - (0.1 + SHARE * 0.1)) < 0.003
            return
    raise AssertionError("texts come in any case")


def test_an_agent_on_a_busy_machine_is_waited_for_a_little_longer() -> None:
    turns = Turns()
    turns.wrote(0.0, 0.1)
    turns.acted(1.0, took=0.012)
    assert not turns.of_texts(1.0 + 0.012) and turns.of_texts(1.0 + 0.019)
    turns.acted(2.0, took=LATEST + 0.1)
    assert turns.of_texts(2.0 + ANSWERS), "a robot is not waited for"
