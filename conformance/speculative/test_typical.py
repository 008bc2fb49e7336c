"""What typical acceptance keeps, and what it costs: it is lossy, and the tests say by how much. Then fast is held to the spec."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import agree, exactly
from twofold.conformance.inputs import array, dtypes, rounded, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, autoregressive, completed, law, total_variation
from twofold.conformance.rounding import Precision, bounded
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.forests import drafted, parents_of, pruned
from twofold.conformance.tape import UNIT
from twofold.spec.speculative import greedy, tree, typical

layouts = st.sampled_from(["contiguous", "sliced", "offset"])
EPS, DELTA = (float(np.float32(x)) for x in (0.09, 0.3))


def dirichlet(rng, *shape, dtype="float32"):
    return rounded(rng.dirichlet(np.full(shape[-1], 0.3), shape[:-1]), dtype)


def forest(seed, B, N, V, dtype="float32"):
    """Rows, sharp and flat, trees, and tokens of which most are plausible."""
    rng = np.random.default_rng(seed)
    p, parents = dirichlet(rng, B, N, V, dtype=dtype), parents_of(rng, B, N)
    p = np.where(rng.random((B, N, 1)) < 0.5, p, rounded(0.5 * p + 0.5 / V, dtype))
    return p, drafted(rng, 0.7 * p + 0.3 / V, parents), parents, rng.integers(1, N + 1, B)


# Laws

problems = st.tuples(seeds, st.integers(1, 9), st.sampled_from([1, 2, 4, 12]))
usual = st.sampled_from([(EPS, DELTA), (1.0, 0.3), (0.0, 0.0)])


def test_the_threshold_of_equally_likely_tokens():
    """n of them leave the target as undecided as n choices: e^H = n, whatever else is in the vocabulary."""
    n = np.array([1.0, 2, 3, 8, 100])
    rows = np.where(np.arange(105) < n[:, None], 1 / n[:, None], 0)
    expected = bounded(lambda n: np.minimum(0.25, 0.3 / n), n, precision=Precision("float32"))
    agree(typical.threshold(rows, 0.25, 0.3), expected, "threshold")


@given(problems, usual)
@example((4, 9, 4), (1.0, 0.3))
@example((11, 9, 12), (1.0, 0.3))
@example((12, 9, 12), (EPS, DELTA))
def test_a_node_is_accepted_if_every_step_to_it_passes_and_the_longest_such_path_is_kept(problem, numbers):
    seed, N, V = problem
    p, tokens, parents, _ = (x[0] for x in forest(seed, 1, N, V))
    passes = lambda line: all(p[up][tokens[n]] > typical.threshold(p[up], *numbers) for up, n in zip(line, line[1:]))
    lines = [line[: n + 1] for line in tree.paths(parents) for n in range(len(line))]
    score = lambda line: sum(np.log(p[up][tokens[n]]) for up, n in zip(line, line[1:]))
    best = max((line for line in lines if passes(line)), key=lambda line: (len(line), score(line), -line[-1]))
    assert typical.verify_tree(p, tokens, parents, *numbers) == (best[1:], int(np.argmax(p[best[-1]])))


@given(problems, usual)
def test_a_certain_target_is_verified_greedily(problem, numbers):
    seed, N, V = problem
    p, tokens, parents, _ = (x[0] for x in forest(seed, 1, N, V))
    certain = (np.arange(V) == p.argmax(1)[:, None]) * 1.0
    path, token = typical.verify_tree(certain, tokens, parents, *numbers)
    kept = [greedy.verify(certain[line], tokens[line[1:]])[0] for line in tree.paths(parents)]
    assert len(path) == max(kept) and token == np.argmax(certain[[0, *path][-1]])


@given(problems, st.sampled_from([0.1, 0.99]))
def test_an_undecided_target_accepts_every_token(problem, delta):
    seed, N, V = problem
    _, tokens, parents, _ = (x[0] for x in forest(seed, 1, N, V))
    path, _ = typical.verify_tree(np.full((N, V), 1 / V), np.maximum(tokens, 0), parents, 1.0, delta)
    depth = tree.depth(parents).tolist()
    assert len(path) == max(depth) and [0, *path][-1] == depth.index(max(depth))  # of equals the lowest id


@given(problems, st.floats(0.01, 1), st.floats(0.01, 1))
def test_stricter_thresholds_keep_no_more(problem, eps, delta):
    seed, N, V = problem
    p, tokens, parents, _ = (x[0] for x in forest(seed, 1, N, V))
    kept = lambda *thresholds: len(typical.verify_tree(p, tokens, parents, *thresholds)[0])
    assert kept(2 * eps, delta) <= kept(eps, delta) >= kept(eps, 2 * delta)


def chain_of(eps, delta):
    def verify(p, q, draft, rng):
        rows = np.array([[float(x) for x in row] for row in p])
        path, token = typical.verify_tree(rows, [-1, *draft], [-1, *range(len(draft))], eps, delta)
        return len(path), token

    return verify


def test_the_text_does_not_have_the_targets_law():
    """On the reference pair, with two drafted tokens: every token passes, so the text is two of the drafter's and a greedy one."""
    outputs = law(rounds.chain(TARGET, DRAFT, 2, chain_of(EPS, DELTA)))
    likeliest = lambda text: int(np.argmax(TARGET(text)))
    assert outputs == {(*text, likeliest(text)): weight for text, weight in autoregressive(DRAFT, 2).items()}
    assert total_variation(completed(outputs, TARGET, 3), autoregressive(TARGET, 3)) == Fraction(11, 18)


def test_thresholds_of_the_released_helper_are_swapped():
    """eps 0.3 and delta 0.09 ask more of a sure target and less of an undecided one."""
    sure, undecided = np.array([0.9, 0.1]), np.full(8, 1 / 8)
    assert typical.threshold(sure, EPS, DELTA) < 0.1 < typical.threshold(np.array([1.0, 0.0]), DELTA, EPS) * 4
    assert typical.threshold(undecided, EPS, DELTA) > typical.threshold(undecided, DELTA, EPS)


@pytest.mark.parametrize("parents", [[0], [-1, 1], [-1, 0, 2], [-1]])
def test_a_tree_out_of_order_is_an_error(parents):
    with pytest.raises(ValueError, match="parents must be -1 and then ids lower"):
        typical.verify_tree(np.full((3, 2), 0.5), [-1] * (len(parents) + (parents == [-1])), parents, EPS, DELTA)


def test_a_nan_is_an_error():
    with pytest.raises(ValueError, match="must be numbers"):
        typical.verify_tree(np.array([[0.5, np.nan]]), [-1], [-1], EPS, DELTA)


# Fast


@given(seeds, st.sampled_from([1, 2, 33, 2049]), dtypes(), usual)
@example(1, 33, "float32", (1.0, 0.3))
@example(2, 2049, "bfloat16", (1.0, 0.3))
def test_thresholds_agree_with_the_definition(fast, seed, V, dtype, numbers):
    p = dirichlet(np.random.default_rng(seed), 6, V, dtype=dtype)
    found = array(fast.threshold(tensor(p, dtype), *numbers))
    agree(found, bounded(typical.threshold, p, *numbers, precision=Precision("float32")), "threshold")


def by_spec(p, tokens, parents, lengths, eps, delta):
    """Paths `(B, N - 1)` and tokens `(B,)` of the spec, and whether float32 must come to the same `(B,)`.

    Nodes whose token is no id are left out, and all below them.
    """
    paths, drawn, sure = np.full((len(p), p.shape[1] - 1), -1), [], []
    for b, length in enumerate(lengths):
        names = pruned(tokens[b, :length], parents[b, :length])
        rows, x = p[b, names], [-1, *tokens[b, names[1:]]]
        up = [-1, *(names.index(parents[b, n]) for n in names[1:])]
        path, token = typical.verify_tree(rows, x, up, eps, delta)
        paths[b, : len(path)] = [names[n] for n in path]
        drawn.append(token)
        sure.append(certain(rows, x, up, eps, delta, path))
    return paths, np.array(drawn), np.array(sure)


def certain(rows, x, up, eps, delta, path):
    """No token within the bound of its threshold, no other path of this length whose score comes near.

    A logarithm is within 4 roundings of 2^-24, and a score of n of them within n + 4, relative, since all have one sign.
    """
    least = bounded(typical.threshold, rows, eps, delta, precision=Precision("float32"))
    chance = np.array([1.0, *(rows[up[n], x[n]] for n in range(1, len(x)))])
    steps = np.array([0, *up[1:]])
    clear = np.abs(chance - least.value[steps]) > least.error[steps]
    lines = [[*line[1 : n + 1]] for line in tree.paths(up) for n in range(len(line))]
    rivals = [line for line in lines if len(line) == len(path) and line != path and all(chance[line] > least.value[steps[line]])]
    score = lambda line: np.log(chance[line]).sum()
    near = lambda line: abs(score(line) - score(path)) <= 4 * (len(path) + 4) * float(UNIT) * abs(score(path))
    return bool(clear[1:].all()) and not any(chance[line].tolist() != chance[path].tolist() and near(line) for line in rivals)


def by_fast(fast, p, tokens, parents, eps, delta, dtype="float32", layout="contiguous", **keywords):
    found = fast.verify_tree(tensor(p, dtype, layout), tensor(tokens), tensor(parents), eps, delta, **keywords)
    return tuple(array(x) for x in found)


@given(seeds, st.integers(1, 9), st.sampled_from([1, 2, 5, 33, 2049]), dtypes(), layouts, usual)
@example(1, 9, 5, "float32", "contiguous", (EPS, DELTA))
@example(2, 9, 5, "bfloat16", "sliced", (0.0, 0.0))
@example(3, 9, 5, "float32", "contiguous", (0.0, 0.0))
def test_paths_and_tokens_are_the_specs_wherever_rounding_could_not_matter(fast, seed, N, V, dtype, layout, numbers):
    p, tokens, parents, lengths = forest(seed, 4, N, V, dtype)
    path, token = by_fast(fast, p, tokens, parents, *numbers, dtype, layout, lengths=tensor(lengths))
    spec_path, spec_token, sure = by_spec(p, tokens, parents, lengths, *numbers)
    exactly(path[sure], spec_path[sure], "path")
    exactly(token[sure], spec_token[sure], "token")


def test_hardly_any_decision_is_left_to_rounding():
    problem = forest(3, 300, 9, 5)
    assert np.mean(~by_spec(*problem, EPS, DELTA)[2]) < 0.01


def test_of_equally_long_paths_the_likelier_one_is_kept(fast):
    """5/8 times 1/4 is more than 3/8 times 3/8, whatever the last steps are by themselves."""
    p = np.array([[[0.625, 0.375], [0.25, 0.75], [0.375, 0.625], [0.5, 0.5], [0.5, 0.5]]])
    tokens, parents = np.array([[-1, 0, 1, 0, 0]]), np.array([[-1, 0, 0, 2, 1]])
    assert typical.verify_tree(p[0], tokens[0], parents[0], EPS, DELTA)[0] == [1, 4]
    assert by_fast(fast, p, tokens, parents, EPS, DELTA)[0].tolist() == [[1, 4, -1, -1]]


def test_equal_scores_go_to_the_lowest_id(fast):
    """Two chains of the same probabilities, their nodes interleaved; and a third that is as long but less likely."""
    p = np.full((1, 7, 4), 0.25)
    p[0, 0] = [0.375, 0.375, 0.25, 0.0]
    tokens, parents = np.array([[-1, 2, 0, 1, 3, 3, 3]]), np.array([[-1, 0, 0, 0, 1, 3, 2]])
    path, _ = by_fast(fast, p, tokens, parents, 0.1, 0.3)
    assert path.tolist() == [[3, 5, -1, -1, -1, -1]]
    assert typical.verify_tree(p[0], tokens[0], parents[0], 0.1, 0.3)[0] == [3, 5]


@pytest.mark.parametrize("N", [1, 2, 3, 16, 17])
def test_a_chain_as_long_as_the_tree_is_kept_whole(fast, N):
    """Paths are found by doubling: every length has its own bits."""
    p, tokens, parents = np.full((1, N, 2), 0.5), np.zeros((1, N), int), np.arange(-1, N - 1)[None]
    path, token = by_fast(fast, p, tokens, parents, EPS, DELTA)
    assert path.tolist() == [list(range(1, N))] and token.tolist() == [0]
