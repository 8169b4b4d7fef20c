import pytest

from agentrl.rewards.math_tree import MAX_DEPTH, Leaf, Listing, Malformed, Relation, parse

ONE, TWO = Leaf("1"), Leaf("2")


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("1", ONE),
        ("(1)", ONE),
        ("1,2", Listing(",", (ONE, TWO))),
        ("1, and 2", Listing(",", (ONE, TWO))),
        ("(1,2]", Listing("(]", (ONE, TWO))),
        ("\\{1,2\\}", Listing("{}", (ONE, TWO))),
        ("((1,2),2)", Listing("()", (Listing("()", (ONE, TWO)), TWO))),
        ("1,234", Leaf("1,234")),
        ("(1,234)", Listing("()", (ONE, Leaf("234")))),
        ("1,234, 2", Listing(",", (Leaf("1,234"), TWO))),
        ("(x+1)(x+2)", Leaf("(x+1)(x+2)")),
        ("f(1,2)", Leaf("f(1,2)")),
        ("x = 1", Relation(("=",), (Leaf("x"), ONE))),
        ("1 < x \\le 2", Relation(("<", "\\le"), (ONE, Leaf("x"), TWO))),
        ("= 1", ONE),
        ("\\sum_{k=1}^{2} k", Leaf("\\sum_{k=1}^{2} k")),
        ("1:2", Listing(":", (ONE, TWO))),
        ("[1,2]\\cup\\{1\\}", Listing("cup", (Listing("[]", (ONE, TWO)), Listing("{}", (ONE,))))),
        ("1\\pm 2", Listing(",", (Leaf("1+ 2"), Leaf("1- 2")))),
        ("sword", Leaf("sword")),
        ("", Leaf("")),
    ],
)
def test_structure(text, tree):
    assert parse(text) == tree


@pytest.mark.parametrize("text", ["(1", "{", "1 <", "< 1 <", "(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1)])
def test_what_has_no_structure_is_refused(text):
    with pytest.raises(Malformed):
        parse(text)
