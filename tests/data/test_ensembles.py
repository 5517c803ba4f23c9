"""parse_ensemble: what is written is what is read, and every mistake is answered with the way to write it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnninv_jax.data import ENSEMBLES, EnsembleError, EnsembleSpec, parse_ensemble


def test_one_and_two_axes():
    assert parse_ensemble("gaussian:K=96,M=32,ell=5") == EnsembleSpec("gaussian", 96, 32, (5,))
    assert parse_ensemble("laplace:K=64,M=3,ell=3x3") == EnsembleSpec("laplace", 64, 3, (3, 3))


def test_options_are_keyword_arguments():
    spec = parse_ensemble(" uniform : ell = 3x5 , scale=0.04, M=3 ,K=64,normalize=True")
    assert spec == EnsembleSpec("uniform", 64, 3, (3, 5), (("normalize", True), ("scale", 0.04)))
    assert dict(spec.options) == {"normalize": True, "scale": 0.04}
    assert hash(spec) == hash(parse_ensemble(str(spec)))


@given(
    st.sampled_from(ENSEMBLES),
    st.integers(1, 999),
    st.integers(1, 999),
    st.lists(st.integers(1, 40), min_size=1, max_size=2),
    st.one_of(st.none(), st.booleans()),
    st.one_of(st.none(), st.floats(min_value=0, exclude_min=True, allow_infinity=False)),
)
def test_round_trip(name, num_filters, channels, length, normalize, scale):
    options = [("normalize", normalize)] if normalize is not None else []
    options += [("scale", scale)] if scale is not None else []
    spec = EnsembleSpec(name, num_filters, channels, tuple(length), tuple(options))
    assert parse_ensemble(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "one of gaussian"),
        ("gausian:K=9,M=3,ell=5", "did you mean 'gaussian'"),
        ("Gaussian:K=9,M=3,ell=5", "did you mean 'gaussian'"),
        ("gaussian", "how large"),
        ("gaussian:", "how large"),
        ("sphere:K=9", "lacks M and ell"),
        ("sphere:K=9,M=3,ell=5,stride=2", "'stride' is not one of"),
        ("sphere:k=9,M=3,ell=5", "did you mean 'K'"),
        ("sphere:K=9,channels=3,ell=5", "did you mean 'M'"),
        ("sphere:K=9,M=3,l=5", "did you mean 'ell'"),
        ("sphere:K=9,M=3,ell=5,normalise=true", "did you mean 'normalize'"),
        ("sphere:K=9,M=3,ell=3,3", "ell=3x3"),
        ("sphere:K=9,M=3,ell=5,", "name=value"),
        ("sphere:K=9,M=,ell=5", "name=value"),
        ("sphere:K=9,K=8,M=3,ell=5", "given twice"),
        ("sphere:K=0,M=3,ell=5", "K must be a positive whole number"),
        ("sphere:K=-1,M=3,ell=5", "K must be a positive whole number"),
        ("sphere:K=9.5,M=3,ell=5", "K must be a positive whole number"),
        ("sphere:K=١,M=3,ell=5", "K must be a positive whole number"),
        ("sphere:K=" + "9" * 10**5 + ",M=3,ell=5", "K must be a positive whole number"),
        ("sphere:K=99999,M=99999,ell=5", "more than"),
        ("sphere:K=9,M=3,ell=0x3", "ell must be a positive whole number"),
        ("sphere:K=9,M=3,ell=3x3x3", "one or two"),
        ("sphere:K=9,M=3,ell=3X3", "ell=3x3"),
        ("sphere:K=9,M=3,ell=x", "ell=3x3"),
        ("sphere:K=9,M=3,ell=5,scale=0", "scale must be"),
        ("sphere:K=9,M=3,ell=5,scale=nan", "scale must be"),
        ("sphere:K=9,M=3,ell=5,scale=1e999", "scale must be"),
        ("sphere:K=9,M=3,ell=5,scale=big", "scale must be"),
        ("sphere:K=9,M=3,ell=5,normalize=1", "true or false"),
    ],
)
def test_mistakes(text, expected):
    with pytest.raises(EnsembleError) as caught:
        parse_ensemble(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@given(st.text(max_size=60))
def test_arbitrary_text_is_read_or_refused(text):
    try:
        spec = parse_ensemble("gaussian:" + text)
    except EnsembleError:
        return
    assert parse_ensemble(str(spec)) == spec
