from autopeft.recommend.rejections import grouped_lines


def test_a_reason_is_told_once_with_all_that_it_rejects():
    entries = [("dora", "nf4", "no head"), ("lora", "none", "too large"), ("lora", "nf4", "no head")]
    assert grouped_lines(entries) == ["dora, lora (nf4): no head", "lora (none): too large"]


def test_variants_of_one_method_stand_together():
    entries = [("dora", "none", "refused"), ("dora", "nf4", "refused"), ("loftq", "nf4", "refused")]
    assert grouped_lines(entries) == ["dora (none, nf4); loftq (nf4): refused"]


def test_a_method_without_variants_is_named_alone():
    assert grouped_lines([("full", "", "not asked for")]) == ["full: not asked for"]
