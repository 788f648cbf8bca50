from autopeft.specs import Claim


def test_a_claim_is_read_with_its_label_and_source():
    claim = Claim(about="r", text="r 16 is enough", basis="interpolated", source="a paper, table 4")
    assert str(claim) == "r 16 is enough [interpolated: a paper, table 4]"


def test_a_claim_without_a_source_still_has_its_label():
    assert str(Claim(about="r", text="r 16", basis="judgement")) == "r 16 [judgement]"
