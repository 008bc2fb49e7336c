"""The prover certifies what keeps its law, refutes what does not, and says where and by how much."""

from fractions import Fraction

import pytest

from twofold.conformance import prove
from twofold.conformance.law import DRAFT, TARGET, law, total_variation
from twofold.conformance.prove import Claim
from twofold.conformance.speculative import rounds
from twofold.spec.speculative import chain


def verify(p, q, draft, rng):
    """A verifier with a common mistake: the correction is drawn from p."""
    for position, token in enumerate(draft):
        if not rng.bernoulli(p[position][token] / q[position][token]):
            return position, rng.categorical(p[position])
    return len(draft), rng.categorical(p[len(draft)])


def first_of_two(p, drafts, rng):
    """Takes the first draft whatever p says."""
    return drafts[0], True


def off_the_end(p, q, draft, rng):
    return len(draft), rng.categorical(p[len(draft) + 1])


def follow(p, draft):
    """Greedy: keeps what the target likes best."""
    kept = next((i for i, token in enumerate(draft) if token != p[i].argmax()), len(draft))
    return kept, int(p[kept].argmax())


def test_a_keeper_is_certified_and_its_bias_is_zero():
    verdicts = list(prove.prove(prove.claims("speculative.chain"), examples=20))
    assert {verdict.claim.what.partition(",")[0] for verdict in verdicts} == {"verify", "verify_onehot"}  # lenience claims nothing
    assert all(verdict.certified and verdict.bias == 0 and verdict.pair is None for verdict in verdicts)
    assert prove.bias("speculative.chain") == 0


def test_a_common_mistake_is_refuted_with_its_exact_bias_on_a_smallest_pair():
    verdicts = list(prove.prove(prove.claims(f"{__name__}:verify"), examples=20))
    assert [verdict.bias for verdict in verdicts] == [Fraction(1, 6)] * 3 and not any(verdict.certified for verdict in verdicts)
    assert prove.bias(f"{__name__}:verify") == Fraction(1, 6)
    for verdict in verdicts:
        emitted, claimed = verdict.claim.laws(*verdict.pair)
        assert total_variation(emitted, claimed) > 0
        heaviest = [sum(x.denominator for x in row) for model in verdict.pair for row in model.values()]
        assert sum(weight > 3 for weight in heaviest) <= 3, "hypothesis was to make the rows that do not matter certain"


def test_what_a_sampler_raises_is_a_finding():
    verdict = next(prove.prove(prove.claims(f"{__name__}:off_the_end"), examples=5))
    assert not verdict.certified and verdict.bias is None and verdict.error.startswith("IndexError")


def test_what_raises_on_the_reference_pair_alone_is_not_certified():
    def three_words_are_too_many(target, drafter):
        return lambda rng: (rng.categorical(target(())),) if len(target(())) < 3 else (_ for _ in ()).throw(IndexError("a third word"))

    verdict = next(prove.prove([Claim("knows two words", three_words_are_too_many, 1, vocabulary=2)], examples=5))
    assert verdict.pair is None and verdict.bias is None and not verdict.certified


def test_levels_and_greedy_verifiers_are_known_by_their_arguments():
    verdict = next(prove.prove(prove.claims(f"{__name__}:first_of_two"), examples=20))
    assert not verdict.certified and verdict.bias == Fraction(1, 3)  # 1 - sum(min(p, q)) at the start of the reference pair
    assert all(verdict.certified for verdict in prove.prove(prove.claims(f"{__name__}:follow"), examples=20))


def test_a_claim_of_another_law_is_held_to_that_law():
    drafts = lambda target, drafter: lambda rng: (rng.categorical(drafter(())),)
    wrong, right = Claim("draws from q, claims p", drafts, 1), Claim("reversed", lambda t, d: drafts(d, t), 1)
    assert [verdict.certified for verdict in prove.prove([wrong, right], examples=20)] == [False, True]


LOSSLESS = [
    "adaedl", "block", "blockwise", "cascade", "chain", "coupled", "decoding", "greedy", "heuristic", "jacobi", "kseq", "lookahead",
    "match", "rsd", "sampling", "slem", "specdec_plus", "spechub", "specinfer", "staged", "tli", "traversal", "warp",
]  # fmt: skip


@pytest.mark.parametrize("chapter", LOSSLESS)
def test_lossless_chapters_are_certified_on_the_reference_pair(chapter):
    for claim in prove.claims(f"speculative.{chapter}"):
        assert total_variation(*claim.laws(TARGET, DRAFT)) == 0, claim.what


def test_the_bias_of_a_chapter_is_that_of_the_code_it_runs(monkeypatch):
    monkeypatch.setattr(chain.verify, "__code__", (lambda p, q, draft, rng: (len(draft), rng.categorical(p[len(draft)]))).__code__)
    assert prove.bias("speculative.sampling") == prove.bias("speculative.chain") == Fraction(17, 36)  # every draft token kept


NOT_SAMPLERS = ["speculative.cost", "attention.flash", f"{__name__}:rounds", f"{__name__}:nothing", "no_such_module:verify"]


@pytest.mark.parametrize("name", NOT_SAMPLERS)
def test_what_cannot_be_proved_is_said(name):
    with pytest.raises(prove.Unprovable, match="cannot be imported|claims no law"):
        prove.claims(name)


def test_only_contexts_that_can_be_written_are_told():
    never, always = [Fraction(1), Fraction(0)], [Fraction(0), Fraction(1)]
    target = {(): always, (0,): never, (1,): never}
    assert prove.reachable(target, {(): always, (0,): always, (1,): always}) == [(), (1,)]


def test_a_tree_of_the_harness_is_the_tree_asked_for():
    seen = []

    def verify_tree(p, q, tokens, parents, rng):
        seen.append((tuple(tokens), tuple(parents)))
        return [], rng.categorical(p[0])

    model = lambda context: [Fraction(1, 2), Fraction(1, 2)]
    outputs = law(rounds.tree(model, model, rounds.branching(2, 1), verify_tree))
    assert outputs == {(0,): Fraction(1, 2), (1,): Fraction(1, 2)}
    assert {parents for _, parents in seen} == {(-1, 0, 0, 1, 2)} and len({tokens for tokens, _ in seen}) == 16
