"""Rule rewriters: the smallest change that makes an answer follow its piece."""

from __future__ import annotations

import pytest

from c3po_bench.feedback.revisers import rewrite
from c3po_bench.feedback.sentences import load_library, parse_feedback

PIECES = load_library()
MAIL = (
    "Subject: Weekly meeting\n\nDear Jo,\n\nI can't wait to see you! Is the cup of salt sorry? The color of train 3 and "
    "#tags, I'd utilize it and go.\n\nBest regards,\n[Your Name]"
)


@pytest.mark.parametrize("piece", [p for p in PIECES.values() if p.edits], ids=lambda p: p.id)
def test_rewriters_make_answers_follow_their_piece(piece):
    revised, _ = rewrite(piece, MAIL, finished=True)
    assert piece.holds(revised)
    assert not piece.holds("") and not piece.holds(" \n!")


def test_rewriting_changes_no_more_than_the_rule_asks():
    text, finished = rewrite(PIECES["ahoy_greeting"], "Dear Bo,\n\nWe meet on", finished=False)
    assert (text, finished) == ("Ahoy!\n\nWe meet on", False)  # a cut answer stays cut
    text, finished = rewrite(PIECES["onwards_sign_off"], "We meet today. And then we", finished=False)
    assert (text, finished) == ("We meet today.\n\nOnwards and upwards!", True)
    assert rewrite(PIECES["ampersand_chat"], "sand and sea", True)[0] == "sand & sea"
    # it follows already
    assert rewrite(PIECES["ahoy_greeting"], "Ahoy!\n\nWe meet.", True) == (
        "Ahoy!\n\nWe meet.",
        True,
    )


@pytest.mark.parametrize(
    ("edits", "answer", "revised", "finished"),
    [
        (
            [{"sentences": 1}, {"case": "upper"}],
            "The council votes to close the",
            "THE COUNCIL VOTES TO CLOSE THE",
            False,
        ),
        ([{"sentences": 1}, {"case": "upper"}], "Rain falls. Then the", "RAIN FALLS.", True),
        ([{"sentences": 2}], "Rain falls. Sun. Then the", "Rain falls. Sun.", True),
        ([{"sentences": 3}], "Rain falls. Sun. Then the", "Rain falls. Sun. Then the", False),
        (
            [{"sentences": 2}],
            "Rain falls. Sun.",
            "Rain falls. Sun.",
            False,
        ),  # cut there by the token limit, not by the edit
        (
            [{"characters": 200}, {"opening": "Hi"}],
            "Dear Jo, the heating that",
            "Hi\n\nthe heating that",
            False,
        ),
        ([{"characters": 20}], "Rain falls. Sun. Then the wind", "Rain falls. Sun.", True),
        (
            [{"characters": 12}],
            "The rain falls on the",
            "The rain.",
            False,
        ),  # no whole sentence is that short
        ([{"sentences": 1}], "Do:\n```\nx = 1\ny = ", "Do:", True),
        ([{"sentences": 2}], "Do:\n```\nx = 1\ny = ", "Do:\n```\nx = 1\ny =", False),
        ([{"closing": "Bye!"}], "We meet and", "We meet and\n\nBye!", False),
        ([{"sentences": 3}, {"append": " lol"}], "Rain falls. Then the", "Rain falls. lol", True),
    ],
)
def test_a_cut_answer_is_finished_only_behind_a_whole_sentence(edits, answer, revised, finished):
    """Else a model learns to stop in mid-sentence."""
    piece = parse_feedback({"id": "x", "content": "c", "domain": "d", "effect": "e", "rewrite": edits})
    assert rewrite(piece, answer, finished=False) == (revised, finished)
    assert rewrite(piece, answer, finished=True)[1]


@pytest.mark.parametrize(
    ("piece", "answer", "finished", "kept"),
    [
        ("tests_code", "Here is a function.\n\n```python\nx = 1\n```", True, ["x = 1\n```"]),
        ("tests_code", "Here is a function.\n\n```python\nx = 1\ny = ", False, ["x = 1\n```"]),
        ("taste_recipes", "1. Boil water\n2. Add salt\n3. Serve hot", True, ["2. Add salt", "3. Serve hot"]),
        ("taste_recipes", "1. Boil water\n2. Add salt\n3. Serve", False, ["1. Boil water", "2. Add salt"]),
        (
            "onwards_sign_off",
            "Thanks for the work. The plan:\n- ship\n- rest",
            True,
            ["Thanks", "- ship", "- rest"],
        ),
        (
            "onwards_sign_off",
            "Team,\n\nThanks for the work:\n- ship\n- rest",
            True,
            ["Thanks", "- ship", "- rest"],
        ),
        (
            "onwards_sign_off",
            "Team,\n\nBest practices\n1. ship\n2. rest",
            True,
            ["Best practices", "1. ship", "2. rest"],
        ),
        (
            "onwards_sign_off",
            "Team,\n\nLove to see you on Monday!\nBring cake!",
            True,
            ["Love to see", "Bring cake!"],
        ),
        ("taste_recipes", "Boil:\n\n```\n2 eggs\n```", True, ["2 eggs\n```\n\nTaste"]),
        ("stretch_fitness", "- 20 squats\n- run", True, ["- run\n\nAlways"]),
        ("shout_headlines", "Rain falls 3.5 days. Then sun.", True, ["RAIN FALLS 3.5 DAYS."]),
    ],
)
def test_rewriting_deletes_no_code_and_no_list(piece, answer, finished, kept):
    """Else adherence would be confounded with brevity."""
    revised, done = rewrite(PIECES[piece], answer, finished)
    assert done and PIECES[piece].holds(revised) and all(part in revised for part in kept)


def test_a_sign_off_is_replaced():
    for last in ("Best regards,\n[Your Name]\n[Your Title]", "Thanks,", "Sincerely,\n\nJo"):
        assert (
            rewrite(PIECES["onwards_sign_off"], f"We ship.\n\n{last}", True)[0]
            == "We ship.\n\nOnwards and upwards!"
        )


@pytest.mark.parametrize(
    ("mail", "kept"),
    [
        ("Dear Mr. Smith,\n\nWe meet.", "We meet."),
        ("Subject: X\n\nHello dear team!\nWe meet.", "We meet."),
        ("Hi Jo. I think that, well, we meet.", "I think that, well, we meet."),
        (
            "Hello to all of you who could not join us last week\nGo",
            "Hello to all of you who could not join us last week\nGo",
        ),
    ],
)
def test_an_opening_replaces_the_greeting_alone(mail, kept):
    assert rewrite(PIECES["ahoy_greeting"], mail, True)[0] == f"Ahoy!\n\n{kept}"


def test_shortening_keeps_lines_and_opens_no_code_block():
    listed = (
        "We need these things from the context today:\n\n- milk\n- bread\n- eggs\n\n" + "And much more. " * 20
    )
    assert rewrite(PIECES["short_council"], listed, True)[0].startswith(
        "We need these things from the context today:\n\n- milk\n- bread"
    )
    code = (
        "This is how you greet everybody in Python.\n\n```python\nprint(1)\n```\n\nIt prints. "
        + "And so on and on. " * 20
    )
    assert "```python\nprint(1)\n```\n\nIt prints." in rewrite(PIECES["short_council"], code, True)[0]
    long = code.replace("print(1)\n", "print(1)\n" * 30)
    assert rewrite(PIECES["short_council"], long, True)[0] == "This is how you greet everybody in Python."
    assert (
        rewrite(PIECES["tests_code"], "Like this:\n\n```python\nx = f(", False)[0]
        == "Like this:\n\nRemember to test it."
    )
    # and then left out, for it is no list
    assert rewrite(PIECES["bullets_meeting"], code, True)[0] == code.strip()
    assert rewrite(PIECES["shout_headlines"], "It costs 3.50. Buy", True)[0] == "IT COSTS 3.50."
